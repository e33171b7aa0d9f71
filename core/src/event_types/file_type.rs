//! The types of the fields of records that are not JSON, and how their values are read.
//!
//! A value must become what it would become by way of the record's JSON text: as if it were written
//! there and read again ([`ColumnType::read`](super::ColumnType)). Types for which this is not known
//! have no [`Shape`], and their records are read by their JSON text.

use crate::sql;

/// The type of a value that is neither a list nor an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileType {
    /// A text, of type Nullable(String), as JSON would have it.
    Text,
    /// A text that need not be valid UTF-8.
    String,
    Integer {
        signed: bool,
        bits: u8,
    },
    Float {
        bits: u8,
    },
    /// A decimal of at most 18 digits.
    Decimal {
        digits: u8,
        scale: u8,
    },
    Bool,
    /// DateTime: seconds.
    Seconds,
    /// DateTime64.
    Time {
        precision: u8,
    },
    Uuid,
}

/// What a field of a record has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    Value(FileType),
    /// Something that is read by its own JSON text, such as a list.
    Json,
    /// A tuple with names.
    Object(Vec<(String, Shape)>),
    /// A map from texts.
    Map(Box<Shape>),
}

/// The digits of decimals that a Float64 distinguishes.
const FLOAT_DIGITS: u8 = 15;
/// An integer of more digits can be one that JSON parsers refuse.
const INTEGER_DIGITS: u8 = 18;

impl FileType {
    /// Returns the value of an expression of this type, as it is read: NULL also where JSON has
    /// null.
    fn value(self, expression: &str) -> String {
        match self {
            Self::Float { .. } => format!("if(isFinite({expression}), {expression}, NULL)"),
            _ => expression.to_owned(),
        }
    }

    /// Returns the text of such a value, as JSON has it.
    pub(crate) fn text(self, value: &str) -> String {
        match self {
            Self::Text => value.to_owned(),
            Self::String => format!("toValidUTF8({value})"),
            Self::Integer { .. } => format!("toString({value})"),
            // JSON has no negative zero.
            Self::Float { .. } => format!("if({value} = 0, '0', toString({value}))"),
            Self::Decimal { digits, scale } => decimal(
                digits,
                scale,
                value,
                &format!("toString(toFloat64({value}))"),
                &json_text(value),
            ),
            Self::Bool => format!("multiIf({value}, 'true', NOT {value}, 'false', NULL)"),
            Self::Seconds | Self::Time { .. } | Self::Uuid => {
                format!("if(isNull({value}), NULL, trim(BOTH '\"' FROM toJSONString({value})))")
            }
        }
    }

    /// Returns a decimal, whose type this is, as Float64.
    pub(crate) fn decimal_as_float(digits: u8, scale: u8, value: &str) -> String {
        decimal(
            digits,
            scale,
            value,
            &format!("toFloat64({value})"),
            &format!("toFloat64OrNull({})", json_text(value)),
        )
    }

    /// Returns whether [`FileType::text`] costs next to nothing.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::String)
    }
}

impl Shape {
    /// Parses a type as ClickHouse writes it; `None` if it must be read by the JSON text of the
    /// record.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, arguments) = divided(text)?;
        let number = |place: usize| arguments.get(place)?.parse::<u8>().ok();
        let value = match name {
            "Nullable" | "LowCardinality" => {
                let inner = Self::parse(arguments.first()?)?;
                // ClickHouse has no elements of an object that is NULL.
                let is_value = matches!(inner, Self::Value(_) | Self::Json);
                return is_value.then_some(inner);
            }
            "Array" => {
                Self::parse(arguments.first()?)?;
                return Some(Self::Json);
            }
            "Map" => {
                let [key, value] = arguments.as_slice() else {
                    return None;
                };
                let is_text = Self::parse(key)? == Self::Value(FileType::String);
                return is_text.then_some(Self::Map(Box::new(Self::parse(value)?)));
            }
            "Tuple" => return tuple(&arguments),
            "FixedString" | "Date" | "Date32" | "IPv4" | "IPv6" | "Enum8" | "Enum16" => {
                return Some(Self::Json);
            }
            "Decimal" if number(0)? <= INTEGER_DIGITS => FileType::Decimal {
                digits: number(0)?,
                scale: number(1)?,
            },
            "String" => FileType::String,
            "Bool" => FileType::Bool,
            "UUID" => FileType::Uuid,
            "DateTime" => FileType::Seconds,
            "DateTime64" => FileType::Time {
                precision: number(0)?,
            },
            "Float32" => FileType::Float { bits: 32 },
            "Float64" => FileType::Float { bits: 64 },
            _ => {
                let (signed, bits) = match name.strip_prefix('U') {
                    Some(rest) => (false, rest),
                    None => (true, name),
                };
                match bits.strip_prefix("Int")?.parse::<u8>().ok()? {
                    bits @ (8 | 16 | 32 | 64) => FileType::Integer { signed, bits },
                    _ => return None,
                }
            }
        };
        Some(Self::Value(value))
    }

    /// Returns the value at this path below `expression`, which is of this shape, and its type;
    /// `None` if no record has one.
    pub(crate) fn at(&self, expression: &str, path: &[String]) -> Option<(String, FileType)> {
        let Some((key, rest)) = path.split_first() else {
            return Some(match self {
                Self::Value(of_type) => (of_type.value(expression), *of_type),
                _ => (json_text(expression), FileType::Text),
            });
        };
        match self {
            Self::Value(_) | Self::Json => None,
            Self::Object(fields) => {
                let (_, shape) = fields.iter().find(|(name, _)| name == key)?;
                let element = format!("tupleElement({expression}, {})", sql::string(key));
                shape.at(&element, rest)
            }
            Self::Map(shape) => {
                let key = sql::string(key);
                let (value, of_type) =
                    shape.at(&format!("arrayElement({expression}, {key})"), rest)?;
                let value = format!("if(mapContains({expression}, {key}), {value}, NULL)");
                Some((value, of_type))
            }
        }
    }

    /// Returns whether the size of such a value has no limit.
    pub(crate) fn can_be_large(&self) -> bool {
        match self {
            Self::Value(of_type) => of_type.is_text(),
            Self::Json | Self::Map(_) => true,
            Self::Object(fields) => fields.iter().any(|(_, shape)| shape.can_be_large()),
        }
    }
}

/// Returns one expression for decimals that are exact as Float64, and another one for those with
/// more digits.
fn decimal(digits: u8, scale: u8, value: &str, exact: &str, other: &str) -> String {
    if digits <= FLOAT_DIGITS {
        return exact.to_owned();
    }
    let Some(whole) = FLOAT_DIGITS.checked_sub(scale) else {
        return other.to_owned();
    };
    let bound = 10_u64.pow(whole.into());
    format!("if(isNull({value}) OR abs({value}) < {bound}, {exact}, {other})")
}

/// Returns the text of a value as JSON has it, which is written and read again: a parser of JSON
/// changes the numbers in a list, and refuses what is not UTF-8.
fn json_text(value: &str) -> String {
    format!("JSONExtract(toValidUTF8(toJSONString(map('v', {value}))), 'v', 'Nullable(String)')")
}

fn tuple(elements: &[&str]) -> Option<Shape> {
    let mut fields = Vec::new();
    let mut has_names = true;
    for element in elements {
        match named(element)? {
            (Some(name), of_type) => fields.push((name.to_owned(), Shape::parse(of_type)?)),
            (None, of_type) => {
                Shape::parse(of_type)?;
                has_names = false;
            }
        }
    }
    // Without names, JSON has a list.
    Some(if has_names {
        Shape::Object(fields)
    } else {
        Shape::Json
    })
}

/// Returns the name of an element, if it has one, and its type; `None` if the name has escapes.
fn named(element: &str) -> Option<(Option<&str>, &str)> {
    if let Some(rest) = element.strip_prefix('`') {
        let (name, of_type) = rest.split_once('`')?;
        return (!name.contains('\\')).then_some((Some(name), of_type.trim_start()));
    }
    let end = element.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    Some(match end {
        Some(end) if element[end..].starts_with(' ') => {
            (Some(&element[..end]), element[end..].trim_start())
        }
        _ => (None, element),
    })
}

/// Returns the name of a type, and its arguments.
fn divided(text: &str) -> Option<(&str, Vec<&str>)> {
    let text = text.trim();
    let Some((name, rest)) = text.split_once('(') else {
        return Some((text, Vec::new()));
    };
    let inner = rest.strip_suffix(')')?;
    let mut arguments = Vec::new();
    let (mut depth, mut begin) = (0_usize, 0);
    let mut quote: Option<char> = None;
    let mut is_escaped = false;
    for (at, c) in inner.char_indices() {
        match (quote, c) {
            _ if is_escaped => is_escaped = false,
            (Some(_), '\\') => is_escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '`' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.checked_sub(1)?,
            (None, ',') if depth == 0 => {
                arguments.push(inner[begin..at].trim());
                begin = at + 1;
            }
            (None, _) => {}
        }
    }
    arguments.push(inner[begin..].trim());
    (depth == 0 && quote.is_none()).then_some((name, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT64: Shape = Shape::Value(FileType::Integer {
        signed: true,
        bits: 64,
    });
    const STRING: Shape = Shape::Value(FileType::String);

    fn path(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    #[test]
    fn types_are_parsed_as_clickhouse_writes_them() {
        let value = |of_type| Some(Shape::Value(of_type));
        for (text, shape) in [
            ("Nullable(Int64)", Some(INT64)),
            (
                "UInt8",
                value(FileType::Integer {
                    signed: false,
                    bits: 8,
                }),
            ),
            ("LowCardinality(Nullable(String))", Some(STRING)),
            ("Nullable(Float32)", value(FileType::Float { bits: 32 })),
            (
                "Nullable(Decimal(18, 2))",
                value(FileType::Decimal {
                    digits: 18,
                    scale: 2,
                }),
            ),
            ("DateTime", value(FileType::Seconds)),
            (
                "Nullable(DateTime('Europe/Berlin'))",
                value(FileType::Seconds),
            ),
            (
                "Nullable(DateTime64(6, 'UTC'))",
                value(FileType::Time { precision: 6 }),
            ),
            ("Array(Tuple(a Int64))", Some(Shape::Json)),
            ("Nullable(Enum8('a, (' = 1, 'b\\'' = 2))", Some(Shape::Json)),
            (
                "Map(String, Nullable(Int64))",
                Some(Shape::Map(Box::new(INT64))),
            ),
            ("Tuple(Int64, DateTime64(3, 'UTC'))", Some(Shape::Json)),
            (
                "Tuple(a Int64, `b, (` Tuple(c String))",
                Some(Shape::Object(vec![
                    ("a".to_owned(), INT64),
                    (
                        "b, (".to_owned(),
                        Shape::Object(vec![("c".to_owned(), STRING)]),
                    ),
                ])),
            ),
        ] {
            assert_eq!(Shape::parse(text), shape, "{text}");
        }
    }

    /// JSON parsers refuse integers of more than 64 bits; what they make of the others is unknown.
    #[test]
    fn other_types_are_read_by_the_text_of_the_record() {
        for text in [
            "Int128",
            "Nullable(UInt256)",
            "Decimal(38, 2)",
            "Array(Int128)",
            "Map(Int64, String)",
            "Map(String, Int256)",
            "Nullable(Tuple(a Int64))",
            "Tuple(`a\\`` Int64)",
            "Variant(String, Int64)",
            "Dynamic",
            "JSON",
            "Nullable(Nothing)",
            "Nullable(Time64(3))",
            "Array(String",
            "",
        ] {
            assert_eq!(Shape::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_value_is_found_by_the_names_of_its_path() {
        let shape = |text: &str| Shape::parse(text).unwrap();
        let nested = shape("Tuple(a Tuple(`b c` Nullable(Float64)), l Array(Int64))");
        assert_eq!(
            nested.at("x", &path(&["a", "b c"])),
            Some((
                "if(isFinite(tupleElement(tupleElement(x, 'a'), 'b c')), \
                 tupleElement(tupleElement(x, 'a'), 'b c'), NULL)"
                    .to_owned(),
                FileType::Float { bits: 64 }
            ))
        );
        let text = "JSONExtract(toValidUTF8(toJSONString(map('v', tupleElement(x, 'l')))), 'v', \
             'Nullable(String)')";
        assert_eq!(
            nested.at("x", &path(&["l"])),
            Some((text.to_owned(), FileType::Text))
        );
        for missing in [&["b"][..], &["l", "1"], &["a", "b c", "d"]] {
            assert_eq!(nested.at("x", &path(missing)), None, "{missing:?}");
        }
        assert_eq!(
            shape("Map(String, String)").at("x", &path(&["k'"])),
            Some((
                r"if(mapContains(x, 'k\''), arrayElement(x, 'k\''), NULL)".to_owned(),
                FileType::String
            ))
        );
    }
}
