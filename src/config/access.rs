//! The credentials with which ClickHouse reads the objects.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::layers::Origins;
use super::problems::{Findings, Problem};
use super::secret::{Secret, SecretSource};
use crate::statements::s3_source::S3Access;

/// The credentials with which ClickHouse reads the objects, as configured: a secret can still be in
/// a file. [`S3Access`] is the same with the secret itself.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[schemars(inline)]
pub enum S3AccessConfig {
    /// The server's own credentials: its `s3` configuration, or its instance's
    /// role.
    Server,
    /// A named collection on the server, so that no key appears in a statement.
    NamedCollection {
        /// The named collection on the ClickHouse server. `{bucket}` in its name is replaced with
        /// the name of the bucket, in case buckets need different rights.
        name: String,
    },
    /// An access key that Sluice includes in its statements. ClickHouse hides it in its logs,
    /// except in statements with a syntax error.
    Keys {
        /// The id of the access key.
        access_key_id: String,
        /// The secret access key; set either this or `secret_access_key_file`. Set it in the
        /// environment rather than in the configuration file.
        #[serde(skip_serializing_if = "Secret::is_empty")]
        secret_access_key: Secret,
        /// A file that contains the secret access key, such as a mounted secret. It is read at
        /// startup.
        #[serde(skip_serializing_if = "Option::is_none")]
        secret_access_key_file: Option<PathBuf>,
    },
    /// An IAM role that ClickHouse assumes (`extra_credentials`), as on ClickHouse Cloud.
    Role {
        /// The ARN of the role that ClickHouse assumes. `{bucket}` in it is replaced with the name
        /// of the bucket.
        role_arn: String,
    },
    /// No credentials, for public buckets.
    Anonymous,
}

impl S3AccessConfig {
    /// Reads the secret, and returns what statements need.
    ///
    /// # Errors
    ///
    /// Returns the field of the secret, and why the secret cannot be read.
    pub fn resolve(&self) -> Result<S3Access, String> {
        Ok(match self.clone() {
            Self::Server => S3Access::Server,
            Self::NamedCollection { name } => S3Access::NamedCollection { name },
            Self::Keys {
                access_key_id,
                secret_access_key,
                secret_access_key_file,
            } => S3Access::Keys {
                access_key_id,
                secret_access_key: SecretSource::of(
                    &secret_access_key,
                    secret_access_key_file.as_ref(),
                )
                .read()
                .map_err(|problem| format!("{PATH}.secret_access_key_file: {problem}"))?,
            },
            Self::Role { role_arn } => S3Access::Role { role_arn },
            Self::Anonymous => S3Access::Anonymous,
        })
    }
}

/// [`S3AccessConfig`] as written in the configuration. Every field is optional, so that each field
/// that is missing, or not valid for the kind, is reported with its own path.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAccess {
    kind: Kind,
    name: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<Secret>,
    secret_access_key_file: Option<PathBuf>,
    role_arn: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Server,
    NamedCollection,
    Keys,
    Role,
    Anonymous,
}

const PATH: &str = "s3.clickhouse_access";

/// The fields that only one kind has, each with that kind.
const FIELDS: [(&str, Kind); 5] = [
    ("name", Kind::NamedCollection),
    ("access_key_id", Kind::Keys),
    ("secret_access_key", Kind::Keys),
    ("secret_access_key_file", Kind::Keys),
    ("role_arn", Kind::Role),
];

/// Returns the access that `raw` describes, or `None` if it is invalid.
pub(super) fn check_access(
    raw: RawAccess,
    origins: &Origins,
    findings: &mut Findings,
) -> Option<S3AccessConfig> {
    // Without a valid kind, the other fields cannot be checked.
    if !findings.is_good(&format!("{PATH}.kind")) {
        return None;
    }
    for (field, of) in FIELDS {
        check_presence(&raw, field, of, origins, findings);
    }
    match raw.kind {
        Kind::Server => Some(S3AccessConfig::Server),
        Kind::Anonymous => Some(S3AccessConfig::Anonymous),
        Kind::NamedCollection => Some(S3AccessConfig::NamedCollection { name: raw.name? }),
        Kind::Role => Some(S3AccessConfig::Role {
            role_arn: raw.role_arn?,
        }),
        Kind::Keys => Some(S3AccessConfig::Keys {
            access_key_id: raw.access_key_id?,
            secret_access_key: raw.secret_access_key.unwrap_or_default(),
            secret_access_key_file: raw.secret_access_key_file,
        }),
    }
}

impl RawAccess {
    /// Returns whether a field is empty, or `None` if it is not set.
    fn is_empty(&self, field: &str) -> Option<bool> {
        match field {
            "name" => self.name.as_ref().map(String::is_empty),
            "access_key_id" => self.access_key_id.as_ref().map(String::is_empty),
            "secret_access_key" => self.secret_access_key.as_ref().map(Secret::is_empty),
            "secret_access_key_file" => {
                let path = self.secret_access_key_file.as_ref();
                path.map(|path| path.as_os_str().is_empty())
            }
            _ => self.role_arn.as_ref().map(String::is_empty),
        }
    }

    /// Returns whether a field is required. The secret can come from a file
    /// instead.
    fn needs(&self, field: &str) -> bool {
        match field {
            "secret_access_key" => self.secret_access_key_file.is_none(),
            "secret_access_key_file" => false,
            _ => true,
        }
    }
}

fn check_presence(
    raw: &RawAccess,
    field: &str,
    of: Kind,
    origins: &Origins,
    findings: &mut Findings,
) {
    let path = format!("{PATH}.{field}");
    let kind = kind_name(raw.kind);
    let problem = match raw.is_empty(field) {
        // A value that could not be read was reset to `None`, and has already been reported.
        None if of == raw.kind && raw.needs(field) && findings.is_good(&path) => {
            let variable = super::layers::variable_name(&path);
            Problem::new(&path, format!("is required for kind `{kind}`")).advice(format!(
                "set it in the configuration file or as {variable}, or choose another {PATH}.kind"
            ))
        }
        Some(_) if of != raw.kind => {
            let belongs = kind_name(of);
            Problem::new(&path, format!("is not valid for kind `{kind}`"))
                .advice(format!("remove it, or set {PATH}.kind to `{belongs}`"))
        }
        Some(true) => Problem::new(&path, "is empty").advice("set a value"),
        _ => return,
    };
    findings.add(problem.origin(origins.of(&path)));
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Server => "server",
        Kind::NamedCollection => "named_collection",
        Kind::Keys => "keys",
        Kind::Role => "role",
        Kind::Anonymous => "anonymous",
    }
}
