//! Deserializes a document, and says which node does not fit.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use yaml_rust2::Yaml;

use super::Position;
use super::tree::{Content, Document, Entry, Node, Scalar};

/// The path of a node.
pub(super) type Path = Vec<Segment>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// Formats a path as `columns[3].type`.
pub(super) fn display(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) if text.is_empty() => text.push_str(key),
            Segment::Key(key) => text.push_str(&format!(".{key}")),
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// The nodes that are left out.
#[derive(Debug, Default)]
pub(super) struct Skipped(BTreeSet<Path>);

impl Skipped {
    /// Adds a node. Returns whether it was not among them.
    pub(super) fn add(&mut self, path: &Path) -> bool {
        self.0.insert(path.clone())
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        self.0.contains(path)
    }
}

/// Why a node does not fit, and where it is.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) path: Path,
    pub(super) position: Option<Position>,
    pub(super) reason: Reason,
}

#[derive(Debug)]
pub(super) enum Reason {
    MissingKey(&'static str),
    Other(String),
}

impl Error {
    fn new(message: impl Into<String>) -> Self {
        Self::of(Reason::Other(message.into()))
    }

    fn of(reason: Reason) -> Self {
        Self {
            path: Path::new(),
            position: None,
            reason,
        }
    }

    /// Adds the path and the position of the node, unless those of a node in it are known.
    fn at(mut self, path: &Path, position: Position) -> Self {
        if self.position.is_none() {
            self.path = path.clone();
            self.position = Some(position);
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::MissingKey(key) => write!(f, "has no `{key}`"),
            Reason::Other(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("must be {expected}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!(
            "{variant:?} is unknown; {}",
            advice(variant, expected)
        ))
    }

    fn unknown_field(key: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("unknown key `{key}`; {}", advice(key, expected)))
    }

    fn missing_field(key: &'static str) -> Self {
        Self::of(Reason::MissingKey(key))
    }
}

/// Returns the nearest of the expected names, or all of them.
fn advice(found: &str, expected: &[&str]) -> String {
    let distance = |name: &&&str| strsim::damerau_levenshtein(found, name);
    let nearest = expected.iter().min_by_key(distance);
    match nearest {
        Some(name) if distance(&name) * 2 <= found.chars().count() => {
            format!("did you mean `{name}`?")
        }
        _ => format!("use one of {}", expected.join(", ")),
    }
}

/// Returns the value of a document, without the nodes that are left out.
pub(super) fn value<T: DeserializeOwned>(
    document: &Document,
    skipped: &Skipped,
) -> Result<T, Error> {
    let root = Cursor {
        node: &document.root,
        path: Path::new(),
        skipped,
    };
    let position = document.root.position;
    T::deserialize(root).map_err(|error| error.at(&Path::new(), position))
}

/// A node with its path.
struct Cursor<'a> {
    node: &'a Node,
    path: Path,
    skipped: &'a Skipped,
}

impl<'a> Cursor<'a> {
    fn scalar(&self, expected: &str) -> Result<&'a Scalar, Error> {
        match &self.node.content {
            Content::Scalar(scalar) if scalar.value != Yaml::Null => Ok(scalar),
            _ => Err(Error::new(format!("must be {expected}"))),
        }
    }

    /// Returns the text of a scalar, whatever it would be otherwise: `7` is the text "7".
    fn text(&self) -> Result<&'a str, Error> {
        Ok(&self.scalar("a text")?.text)
    }

    fn boolean(&self) -> Result<bool, Error> {
        let expected = "true or false";
        match self.scalar(expected)?.text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            text => Err(Error::new(format!("must be {expected}, not {text:?}"))),
        }
    }

    fn number<N: std::str::FromStr>(&self, expected: &str) -> Result<N, Error> {
        let text = &self.scalar(expected)?.text;
        let number = text.parse();
        number.map_err(|_| Error::new(format!("must be {expected}, not {text:?}")))
    }

    fn below(&self, segment: Segment, node: &'a Node) -> Cursor<'a> {
        let mut path = self.path.clone();
        path.push(segment);
        Cursor {
            node,
            path,
            skipped: self.skipped,
        }
    }

    fn visit_items<'de, V: Visitor<'de>>(
        self,
        items: &'a [Node],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Items {
            of: self,
            items: items.iter().enumerate(),
        })
    }

    fn visit_entries<'de, V: Visitor<'de>>(
        self,
        entries: &'a [Entry],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Entries {
            of: self,
            entries: entries.iter(),
            value: None,
        })
    }
}

/// Deserializes integers, which are read from the text of a scalar.
macro_rules! integers {
    ($($method:ident $visit:ident)*) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
                visitor.$visit(self.number("a whole number")?)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for Cursor<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::List(items) => self.visit_items(items, visitor),
            Content::Mapping(entries) => self.visit_entries(entries, visitor),
            Content::Scalar(scalar) => match &scalar.value {
                Yaml::Null => visitor.visit_unit(),
                Yaml::Boolean(value) => visitor.visit_bool(*value),
                Yaml::Integer(value) => visitor.visit_i64(*value),
                Yaml::Real(_) => visitor.visit_f64(self.number("a number")?),
                _ => visitor.visit_str(&scalar.text),
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(self.boolean()?)
    }

    integers! {
        deserialize_i8 visit_i8
        deserialize_i16 visit_i16
        deserialize_i32 visit_i32
        deserialize_i64 visit_i64
        deserialize_u8 visit_u8
        deserialize_u16 visit_u16
        deserialize_u32 visit_u32
        deserialize_u64 visit_u64
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_f32(self.number("a number")?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_f64(self.number("a number")?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Scalar(scalar) if scalar.value == Yaml::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::List(items) => self.visit_items(items, visitor),
            _ => Err(Error::new("must be a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Mapping(entries) => self.visit_entries(entries, visitor),
            _ => Err(Error::new("must have keys")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match (&self.node.content, keys) {
            (Content::Mapping(entries), _) => self.visit_entries(entries, visitor),
            (_, []) => Err(Error::new("must be {}")),
            (_, [first, ..]) => Err(Error::new(format!("must have keys, such as `{first}`"))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Scalar(scalar) if scalar.value != Yaml::Null => visitor.visit_enum(
                IntoDeserializer::<Error>::into_deserializer(scalar.text.as_str()),
            ),
            Content::Mapping(entries) if entries.len() == 1 => visitor.visit_enum(Variant {
                of: &self,
                entry: &entries[0],
            }),
            _ => Err(Error::new(format!("use one of {}", variants.join(", ")))),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// The items of a list.
struct Items<'a> {
    of: Cursor<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        for (index, node) in self.items.by_ref() {
            let item = self.of.below(Segment::Index(index), node);
            if item.skipped.has(&item.path) {
                continue;
            }
            let path = item.path.clone();
            let value = seed.deserialize(item);
            return value
                .map(Some)
                .map_err(|error| error.at(&path, node.position));
        }
        Ok(None)
    }
}

/// The entries of a mapping.
struct Entries<'a> {
    of: Cursor<'a>,
    entries: std::slice::Iter<'a, Entry>,
    /// The entry of which the key has been visited.
    value: Option<&'a Entry>,
}

impl Entries<'_> {
    fn path(&self, entry: &Entry) -> Path {
        let mut path = self.of.path.clone();
        path.push(Segment::Key(entry.key.clone()));
        path
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        while let Some(entry) = self.entries.next() {
            let path = self.path(entry);
            if self.of.skipped.has(&path) {
                continue;
            }
            self.value = Some(entry);
            let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
            let key = seed.deserialize(key);
            return key
                .map(Some)
                .map_err(|error| error.at(&path, entry.position));
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let entry = self.value.take();
        let entry = entry.ok_or_else(|| Error::new("a value is read before its key"))?;
        let value = self.of.below(Segment::Key(entry.key.clone()), &entry.value);
        let path = value.path.clone();
        let value = seed.deserialize(value);
        value.map_err(|error| error.at(&path, entry.position))
    }
}

/// A variant with content, as a mapping with one key.
struct Variant<'c, 'a> {
    of: &'c Cursor<'a>,
    entry: &'a Entry,
}

impl<'a, 'de> EnumAccess<'de> for Variant<'_, 'a> {
    type Error = Error;
    type Variant = Cursor<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Cursor<'a>), Error> {
        let Entry { key, value, .. } = self.entry;
        let name: StrDeserializer<'_, Error> = key.as_str().into_deserializer();
        let name = seed.deserialize(name)?;
        Ok((name, self.of.below(Segment::Key(key.clone()), value)))
    }
}

impl<'de> VariantAccess<'de> for Cursor<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Err(Error::new("takes no value; write its name alone"))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_struct("", keys, visitor)
    }
}
