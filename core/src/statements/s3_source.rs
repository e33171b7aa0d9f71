//! How ClickHouse reaches objects: the `s3()` table function, its URL, and the keys in it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::object::ObjectRef;
use crate::secret::Secret;
use crate::sql;

/// The credentials with which ClickHouse reads S3. A secret is in plain text, as in statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum S3Access {
    /// The server's own environment (instance role, variables).
    Server,
    /// `{bucket}` in the name stands for the bucket.
    NamedCollection {
        name: String,
    },
    Keys {
        access_key_id: String,
        secret_access_key: Secret,
    },
    /// `{bucket}` in the ARN stands for the bucket.
    Role {
        role_arn: String,
    },
    Anonymous,
}

impl S3Access {
    /// Returns the secrets in statements, which must not be shown.
    pub fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::Keys {
                secret_access_key, ..
            } => vec![secret_access_key.clone()],
            _ => Vec::new(),
        }
    }
}

/// The URL and the credentials with which ClickHouse reaches the objects.
#[derive(Clone, Debug)]
pub struct S3Source {
    /// Path-style; `None` for AWS.
    pub endpoint: Option<String>,
    /// The region of objects that were announced without one; not used with an endpoint.
    pub default_region: String,
    pub access: S3Access,
}

/// How a key can be named in an `s3()` call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAddressing {
    /// In a list, of any length.
    Globbable,
    /// Alone: ClickHouse interprets some characters as syntax in a list.
    Single,
    /// Not at all: ClickHouse would read other objects, or none.
    Unaddressable,
}

/// Returns how ClickHouse can be made to read this key and no other.
pub fn addressing(key: &str) -> KeyAddressing {
    let segments = || key.split('/');
    if key.contains(['*', '?', '\n', '\r', '\0'])
        || key.contains("//")
        || key.starts_with('/')
        || segments().any(|segment| segment == "." || segment == "..")
        || has_braces(key)
    {
        KeyAddressing::Unaddressable
    } else if key.contains(['{', '}', ',']) {
        KeyAddressing::Single
    } else {
        KeyAddressing::Globbable
    }
}

/// Returns whether the key has braces. ClickHouse interprets most of their content as alternatives
/// or a range, encoded or not: it reads other objects, or none at all, without an error.
fn has_braces(key: &str) -> bool {
    key.split_once('{')
        .is_some_and(|(_, rest)| rest.contains('}'))
}

impl S3Source {
    /// Returns the `s3()` table expression that reads these objects of one bucket.
    pub fn table(&self, objects: &[&ObjectRef], format: &str, structure: &str) -> String {
        self.expression(objects, format, structure, None)
    }

    /// Returns the `s3()` table expression that reads an object as it is stored, without
    /// decompressing it.
    pub fn table_as_stored(&self, object: &ObjectRef, format: &str, structure: &str) -> String {
        self.expression(&[object], format, structure, Some("none"))
    }

    fn expression(
        &self,
        objects: &[&ObjectRef],
        format: &str,
        structure: &str,
        compression: Option<&str>,
    ) -> String {
        let url = sql::string(&self.url(objects));
        let (format, structure) = (sql::string(format), sql::string(structure));
        let compression = |label: &str| {
            let value = compression.map(|name| format!(", {label}{}", sql::string(name)));
            value.unwrap_or_default()
        };
        let bucket = objects.first().map_or("", |object| &object.bucket);
        let of_bucket = |name: &str| name.replace("{bucket}", bucket);
        match &self.access {
            S3Access::Server => format!("s3({url}, {format}, {structure}{})", compression("")),
            S3Access::Anonymous => format!(
                "s3({url}, NOSIGN, {format}, {structure}{})",
                compression("")
            ),
            S3Access::Keys {
                access_key_id,
                secret_access_key,
            } => format!(
                "s3({url}, {}, {}, {format}, {structure}{})",
                sql::string(access_key_id),
                sql::string(secret_access_key.expose()),
                compression(""),
            ),
            S3Access::Role { role_arn } => format!(
                "s3({url}, {format}, {structure}{}, extra_credentials(role_arn = {}))",
                compression(""),
                sql::string(&of_bucket(role_arn)),
            ),
            S3Access::NamedCollection { name } => format!(
                "s3({}, url = {url}, format = {format}, structure = {structure}{})",
                sql::ident(&of_bucket(name)),
                compression("compression_method = "),
            ),
        }
    }

    /// Returns one URL for all keys: a single key as it is, several as a list in braces.
    fn url(&self, objects: &[&ObjectRef]) -> String {
        let Some(first) = objects.first() else {
            return String::new();
        };
        let base = match &self.endpoint {
            Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
            None => aws_endpoint(first.region.as_deref().unwrap_or(&self.default_region)),
        };
        let mut keys: Vec<String> = objects
            .iter()
            .map(|object| encode_key(&object.key))
            .collect();
        keys.sort_unstable();
        let keys = match keys.as_slice() {
            [only] => only.clone(),
            several => format!("{{{}}}", several.join(",")),
        };
        format!("{base}/{}/{keys}", first.bucket)
    }
}

fn aws_endpoint(region: &str) -> String {
    let domain = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("https://s3.{region}.{domain}")
}

/// The characters that are encoded: all but RFC 3986's unreserved ones and the slash.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

fn encode_key(key: &str) -> String {
    utf8_percent_encode(key, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::object;
    use crate::object::ObjectParts;

    fn source(access: S3Access, endpoint: Option<&str>) -> S3Source {
        S3Source {
            endpoint: endpoint.map(str::to_owned),
            default_region: "us-east-1".into(),
            access,
        }
    }

    #[test]
    fn each_key_is_addressed_so_that_no_other_is_read() {
        for (key, expected) in [
            ("a/b.jsonl", KeyAddressing::Globbable),
            ("a b+c%41#é", KeyAddressing::Globbable),
            ("a{b", KeyAddressing::Single),
            ("a}b{", KeyAddressing::Single),
            ("{a,b}", KeyAddressing::Unaddressable),
            ("a{1..3}", KeyAddressing::Unaddressable),
            ("a{b/c}", KeyAddressing::Unaddressable),
            ("a,b", KeyAddressing::Single),
            ("a*", KeyAddressing::Unaddressable),
            ("a?b", KeyAddressing::Unaddressable),
            ("a//b", KeyAddressing::Unaddressable),
            ("/a", KeyAddressing::Unaddressable),
            ("a/../b", KeyAddressing::Unaddressable),
            ("a\nb", KeyAddressing::Unaddressable),
        ] {
            assert_eq!(addressing(key), expected, "{key}");
        }
    }

    #[test]
    fn one_url_names_all_keys() {
        let local = source(S3Access::Server, Some("http://127.0.0.1:1/"));
        let (a, b) = (object("bk", "a b", "1"), object("bk", "c/d%é,", "2"));
        assert_eq!(local.url(&[&a]), "http://127.0.0.1:1/bk/a%20b");
        assert_eq!(
            local.url(&[&b, &a]),
            "http://127.0.0.1:1/bk/{a%20b,c/d%25%C3%A9%2C}"
        );
        let aws = source(S3Access::Server, None);
        assert_eq!(
            aws.url(&[&a]),
            "https://s3.us-east-1.amazonaws.com/bk/a%20b"
        );
        let announced = ObjectRef::from(ObjectParts {
            region: Some("cn-north-1".into()),
            ..a.into_parts()
        });
        assert_eq!(
            aws.url(&[&announced]),
            "https://s3.cn-north-1.amazonaws.com.cn/bk/a%20b"
        );
    }

    #[test]
    fn each_kind_of_access_has_its_own_syntax() {
        let a = object("b", "k", "1");
        let keys = S3Access::Keys {
            access_key_id: "id".into(),
            secret_access_key: Secret::new("s'k"),
        };
        for (access, expected) in [
            (S3Access::Server, "s3('http://e/b/k', 'One', 'x')"),
            (
                S3Access::Anonymous,
                "s3('http://e/b/k', NOSIGN, 'One', 'x')",
            ),
            (keys, r"s3('http://e/b/k', 'id', 's\'k', 'One', 'x')"),
            (
                S3Access::Role {
                    role_arn: "arn:r/{bucket}".into(),
                },
                "s3('http://e/b/k', 'One', 'x', extra_credentials(role_arn = 'arn:r/b'))",
            ),
            (
                S3Access::NamedCollection {
                    name: "nc_{bucket}".into(),
                },
                "s3(`nc_b`, url = 'http://e/b/k', format = 'One', structure = 'x')",
            ),
        ] {
            assert_eq!(
                source(access, Some("http://e")).table(&[&a], "One", "x"),
                expected
            );
        }
    }

    #[test]
    fn an_object_can_be_read_as_it_is_stored() {
        let a = object("b", "k.gz", "1");
        let named = S3Access::NamedCollection { name: "nc".into() };
        for (access, expected) in [
            (
                S3Access::Anonymous,
                "s3('http://e/b/k.gz', NOSIGN, 'One', 'x', 'none')",
            ),
            (
                named,
                "s3(`nc`, url = 'http://e/b/k.gz', format = 'One', structure = 'x', \
                 compression_method = 'none')",
            ),
        ] {
            let source = source(access, Some("http://e"));
            assert_eq!(source.table_as_stored(&a, "One", "x"), expected);
        }
    }
}
