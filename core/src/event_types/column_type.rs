//! The ClickHouse types that a column can have, and how the text of a JSON value is converted to
//! them.
//!
//! Every declared path is read as `Nullable(String)`: a string as it is, anything else as its JSON
//! text. With one type for all paths, two event types never need one path in two types, and unusual
//! values are handled here rather than by the casts of a JSON parser, which reads `true` as the
//! number 1 and "nan" as `false`.

use std::fmt;

use super::file_type::FileType;
use crate::sql;

/// A parsed column type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnType {
    kind: Kind,
    nullable: bool,
    low_cardinality: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    String,
    Integer { signed: bool, bits: u8 },
    Float { bits: u8 },
    Bool,
    Time { precision: u8 },
    Uuid,
}

/// The known types, as quoted in messages. docs/event-types.md also lists them.
pub(super) const KNOWN_TYPES: &str = "String, UInt8 to UInt64, Int8 to Int64, Float32, Float64, Bool, UUID, DateTime64(0|3|6, 'UTC'), \
     each also as Nullable(…), and LowCardinality(String)";

/// An existing date and time of day in ISO 8601, with `Z`, an offset or neither. ClickHouse's own
/// parser is far more lenient: it accepts `1784030400`, `14 Jul` and `25:00` as times.
const ISO_8601: &str = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)?$";

/// 2300-01-01 in seconds since 1970: the first moment that DateTime64 cannot represent in full.
const END_OF_TIME: u64 = 10_413_792_000;

impl ColumnType {
    /// Parses a type as written in a declaration.
    ///
    /// # Errors
    ///
    /// Names the type, and the types that are valid.
    pub fn parse(text: &str) -> Result<ColumnType, String> {
        let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (low_cardinality, rest) = unwrap_type(&bare, "LowCardinality");
        let (nullable, rest) = unwrap_type(rest, "Nullable");
        let kind = match rest {
            "String" => Kind::String,
            "UInt8" => Kind::Integer {
                signed: false,
                bits: 8,
            },
            "UInt16" => Kind::Integer {
                signed: false,
                bits: 16,
            },
            "UInt32" => Kind::Integer {
                signed: false,
                bits: 32,
            },
            "UInt64" => Kind::Integer {
                signed: false,
                bits: 64,
            },
            "Int8" => Kind::Integer {
                signed: true,
                bits: 8,
            },
            "Int16" => Kind::Integer {
                signed: true,
                bits: 16,
            },
            "Int32" => Kind::Integer {
                signed: true,
                bits: 32,
            },
            "Int64" => Kind::Integer {
                signed: true,
                bits: 64,
            },
            "Float32" => Kind::Float { bits: 32 },
            "Float64" => Kind::Float { bits: 64 },
            "Bool" => Kind::Bool,
            "UUID" => Kind::Uuid,
            "DateTime64(0,'UTC')" => Kind::Time { precision: 0 },
            "DateTime64(3,'UTC')" => Kind::Time { precision: 3 },
            "DateTime64(6,'UTC')" => Kind::Time { precision: 6 },
            _ => return Err(format!("unknown type {text:?}; use one of {KNOWN_TYPES}")),
        };
        if low_cardinality && kind != Kind::String {
            return Err(format!(
                "{text:?} is not supported; use LowCardinality only with String"
            ));
        }
        Ok(ColumnType {
            kind,
            nullable,
            low_cardinality,
        })
    }

    /// Returns whether the column can hold NULL.
    pub fn is_nullable(&self) -> bool {
        self.nullable
    }

    pub(super) fn is_time(&self) -> bool {
        matches!(self.kind, Kind::Time { .. })
    }

    pub(crate) fn is_text(&self) -> bool {
        self.kind == Kind::String
    }

    /// Returns an expression for the value of `text`, an expression of type Nullable(String). It is
    /// NULL where the text is missing or is not a value of this type, and never throws.
    pub(crate) fn read(&self, text: &str) -> String {
        match self.kind {
            Kind::String => text.to_owned(),
            Kind::Integer { signed, bits } => {
                let parse = format!("to{}Int{bits}OrNull", if signed { "" } else { "U" });
                let direct = format!("{parse}({text})");
                // Only text that did not parse is read again: a list of one element, or `2001.0` in
                // quotes.
                let sign = if signed { "[+-]?" } else { "\\+?" };
                let odd = sql::string(&format!(r#"^\[?"?({sign}\d+)(?:\.0*)?"?\]?$"#));
                format!(
                    "if(isNull({direct}) AND isNotNull({text}), {parse}(extract({text}, {odd})), {direct})"
                )
            }
            Kind::Float { bits } => {
                let parsed = format!("toFloat{bits}OrNull({text})");
                format!("if(isFinite({parsed}), {parsed}, NULL)")
            }
            Kind::Bool => {
                format!(
                    "multiIf({text} IN ('true', '1'), true, {text} IN ('false', '0'), false, NULL)"
                )
            }
            Kind::Uuid => format!("toUUIDOrNull({text})"),
            Kind::Time { precision } => {
                let parsed = self.read_time(text);
                format!(
                    "if(match({text}, {iso}) AND {parsed} >= toDateTime64(0, {precision}, 'UTC') \
                     AND {parsed} < toDateTime64({END_OF_TIME}, {precision}, 'UTC'), {parsed}, NULL)",
                    iso = sql::string(ISO_8601),
                )
            }
        }
    }

    /// Returns the expression of [`ColumnType::read`] for a value that a required column is known
    /// to have: the format of a time is not checked again.
    pub(crate) fn read_checked(&self, text: &str) -> String {
        match self.kind {
            Kind::Time { .. } => self.read_time(text),
            _ => self.read(text),
        }
    }

    /// Returns an expression for the value of `value`, an expression of the type `from` or NULL, that
    /// is NULL where [`ColumnType::read`] of its text is, and never throws. It is `None` if the text
    /// must be read.
    pub(crate) fn read_from(&self, from: FileType, value: &str) -> Option<String> {
        match (self.kind, from) {
            (
                Kind::Integer { signed, bits },
                FileType::Integer {
                    signed: is_signed,
                    bits: from,
                },
            ) if from <= bits && signed == is_signed || from < bits && signed => {
                Some(if from == bits {
                    value.to_owned()
                } else {
                    format!("to{}Int{bits}({value})", if signed { "" } else { "U" })
                })
            }
            (Kind::Integer { signed, bits }, FileType::Integer { .. }) => {
                Some(exact_integer(value, signed, bits))
            }
            (Kind::Integer { signed, bits }, FileType::Float { bits: 64 }) => {
                let exact = exact_integer(value, signed, bits);
                if bits < 64 {
                    return Some(exact);
                }
                // The text of a large number has zeros where the number has other digits.
                let read = self.read(&from.text(value));
                Some(format!(
                    "if(isNull({value}) OR abs({value}) < {EXACT_INTEGERS}, {exact}, {read})"
                ))
            }
            (Kind::Float { bits: to }, FileType::Float { bits }) if to == bits => {
                Some(value.to_owned())
            }
            (Kind::Float { bits: 64 }, FileType::Integer { .. }) => {
                Some(format!("toFloat64({value})"))
            }
            (Kind::Float { bits: 64 }, FileType::Decimal { digits, scale }) => {
                Some(FileType::decimal_as_float(digits, scale, value))
            }
            (Kind::Bool, FileType::Bool) | (Kind::Uuid, FileType::Uuid) => Some(value.to_owned()),
            (Kind::Time { precision }, FileType::Seconds) => {
                Some(format!("toDateTime64({value}, {precision}, 'UTC')"))
            }
            (Kind::Time { precision }, FileType::Time { precision: from }) => {
                Some(converted_time(value, from, precision))
            }
            _ => None,
        }
    }

    /// Returns NULL as a value of this type.
    pub(crate) fn null(&self) -> String {
        let nullable = Self {
            nullable: true,
            low_cardinality: false,
            ..*self
        };
        format!("CAST(NULL, {})", sql::string(&nullable.to_string()))
    }

    fn read_time(&self, text: &str) -> String {
        let Kind::Time { precision } = self.kind else {
            unreachable!("called only for columns of type DateTime64")
        };
        if precision == 0 {
            // Without digits after the second, the parser returns a DateTime, which ends in 2106.
            return format!(
                "toDateTime64(parseDateTime64BestEffortOrNull({text}, 3, 'UTC'), 0, 'UTC')"
            );
        }
        format!("parseDateTime64BestEffortOrNull({text}, {precision}, 'UTC')")
    }

    /// Returns `value`, an expression of this type or NULL, with NULL replaced by the default if
    /// the column cannot hold NULL.
    pub(crate) fn or_default(&self, value: &str) -> String {
        if self.nullable {
            value.to_owned()
        } else {
            format!("ifNull({value}, {})", self.default())
        }
    }

    fn default(&self) -> String {
        match self.kind {
            Kind::String => "''".to_owned(),
            Kind::Integer { .. } | Kind::Float { .. } => "0".to_owned(),
            Kind::Bool => "false".to_owned(),
            Kind::Uuid => "defaultValueOfTypeName('UUID')".to_owned(),
            Kind::Time { precision } => format!("toDateTime64(0, {precision}, 'UTC')"),
        }
    }
}

/// 2^53: above it, a Float64 does not have every integer.
const EXACT_INTEGERS: u64 = 1 << 53;

/// Returns a number as an integer; NULL if it is not one of this type.
fn exact_integer(value: &str, signed: bool, bits: u8) -> String {
    let sign = if signed { "" } else { "U" };
    format!("accurateCastOrNull({value}, '{sign}Int{bits}')")
}

/// Returns a DateTime64 in another precision; NULL outside of the range in which ClickHouse can
/// represent times in full.
///
/// What is outside is removed before the conversion, in which it could overflow. No DateTime64(9)
/// is after the range, whose end it cannot represent.
fn converted_time(value: &str, from: u8, to: u8) -> String {
    let mut is_inside = format!("{value} >= toDateTime64(0, {from}, 'UTC')");
    if from < 9 {
        is_inside += &format!(" AND {value} < toDateTime64({END_OF_TIME}, {from}, 'UTC')");
    }
    let inside = format!("if({is_inside}, {value}, NULL)");
    if from == to {
        inside
    } else {
        format!("toDateTime64({inside}, {to}, 'UTC')")
    }
}

/// Formats the type as ClickHouse does.
impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = match self.kind {
            Kind::String => "String".to_owned(),
            Kind::Integer { signed: true, bits } => format!("Int{bits}"),
            Kind::Integer {
                signed: false,
                bits,
            } => format!("UInt{bits}"),
            Kind::Float { bits } => format!("Float{bits}"),
            Kind::Bool => "Bool".to_owned(),
            Kind::Uuid => "UUID".to_owned(),
            Kind::Time { precision } => format!("DateTime64({precision}, 'UTC')"),
        };
        if self.nullable {
            name = format!("Nullable({name})");
        }
        if self.low_cardinality {
            name = format!("LowCardinality({name})");
        }
        f.write_str(&name)
    }
}

fn unwrap_type<'a>(text: &'a str, wrapper: &str) -> (bool, &'a str) {
    let inner = text
        .strip_prefix(wrapper)
        .and_then(|rest| rest.strip_prefix('('))
        .and_then(|rest| rest.strip_suffix(')'));
    inner.map_or((false, text), |inner| (true, inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_converted_only_where_its_text_would_have_the_same_value() {
        let integer = |signed, bits| FileType::Integer { signed, bits };
        let inside = "toDateTime64(if(x >= toDateTime64(0, 9, 'UTC'), x, NULL), 3, 'UTC')";
        let time = |precision| FileType::Time { precision };
        for (to, from, expected) in [
            ("Int64", integer(true, 64), Some("x")),
            ("Int64", integer(true, 8), Some("toInt64(x)")),
            ("Int64", integer(false, 32), Some("toInt64(x)")),
            (
                "Int64",
                integer(false, 64),
                Some("accurateCastOrNull(x, 'Int64')"),
            ),
            (
                "UInt64",
                integer(true, 8),
                Some("accurateCastOrNull(x, 'UInt64')"),
            ),
            (
                "Nullable(Int8)",
                FileType::Float { bits: 64 },
                Some("accurateCastOrNull(x, 'Int8')"),
            ),
            (
                "Int64",
                FileType::Decimal {
                    digits: 9,
                    scale: 2,
                },
                None,
            ),
            ("Int8", FileType::Float { bits: 32 }, None),
            ("Int64", FileType::Bool, None),
            ("Int64", FileType::String, None),
            ("Float64", FileType::Float { bits: 64 }, Some("x")),
            // `0.1` is another number as a Float32.
            ("Float64", FileType::Float { bits: 32 }, None),
            ("Float64", integer(true, 64), Some("toFloat64(x)")),
            ("Float32", integer(true, 64), None),
            ("Bool", FileType::Bool, Some("x")),
            ("Bool", integer(false, 8), None),
            ("UUID", FileType::Uuid, Some("x")),
            ("String", FileType::String, None),
            (
                "DateTime64(3, 'UTC')",
                FileType::Seconds,
                Some("toDateTime64(x, 3, 'UTC')"),
            ),
            ("DateTime64(3, 'UTC')", time(9), Some(inside)),
            (
                "DateTime64(6, 'UTC')",
                time(6),
                Some(
                    "if(x >= toDateTime64(0, 6, 'UTC') AND \
                     x < toDateTime64(10413792000, 6, 'UTC'), x, NULL)",
                ),
            ),
            ("DateTime64(3, 'UTC')", integer(true, 64), None),
        ] {
            let read = ColumnType::parse(to).unwrap().read_from(from, "x");
            assert_eq!(read.as_deref(), expected, "{to} {from:?}");
        }
    }

    #[test]
    fn known_types_are_written_as_clickhouse_writes_them() {
        for name in [
            "String",
            "LowCardinality(String)",
            "LowCardinality(Nullable(String))",
            "Nullable(UInt64)",
            "Int8",
            "Float32",
            "Nullable(Bool)",
            "UUID",
            "DateTime64(3, 'UTC')",
            "Nullable(DateTime64(6, 'UTC'))",
        ] {
            assert_eq!(ColumnType::parse(name).unwrap().to_string(), name);
        }
        assert_eq!(
            ColumnType::parse("DateTime64(3,'UTC')")
                .unwrap()
                .to_string(),
            "DateTime64(3, 'UTC')"
        );
    }

    #[test]
    fn other_types_are_refused_with_the_list_of_known_ones() {
        for name in [
            "Strng",
            "Array(String)",
            "DateTime64(3)",
            "DateTime",
            "Nullable(",
            "",
            "uint64",
        ] {
            let error = ColumnType::parse(name).unwrap_err();
            assert!(error.contains("UInt64"), "{error}");
        }
        assert!(
            ColumnType::parse("LowCardinality(UInt64)")
                .unwrap_err()
                .contains("only with String")
        );
    }
}
