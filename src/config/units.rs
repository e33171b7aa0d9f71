//! Human-readable quantities: `1h30m`, `128MiB`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};
use serde::{Serialize, Serializer};

/// A duration, written with its unit: `500ms`, `10s`, `1h30m`, `90d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(Duration);

/// A number of bytes, written with its unit: `64KB` (1,000s) or `128MiB` (1,024s).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanSize(u64);

/// A fraction, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
pub struct Ratio(f64);

impl Ratio {
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl HumanDuration {
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl HumanSize {
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(number) = bare_number(text) {
            return Err(format!(
                "`{number}` has no unit; write `{number}s` for seconds or `{number}ms` for milliseconds"
            ));
        }
        humantime::parse_duration(text).map(Self).map_err(|error| {
            let reason = error.to_string();
            format!("`{text}` is not a duration: {reason}")
        })
    }
}

impl FromStr for HumanSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(number) = bare_number(text) {
            return Err(format!(
                "`{number}` has no unit; write `{number}MiB` for mebibytes or `{number}B` for bytes"
            ));
        }
        match text.trim().parse::<bytesize::ByteSize>() {
            Ok(size) => Ok(Self(size.as_u64())),
            Err(_) => Err(format!(
                "`{text}` is not a size; write a number and one of B, KB, MB, GB, KiB, MiB, GiB"
            )),
        }
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Self(ratio)),
            _ => Err(format!("`{text}` is not a number from 0 to 1")),
        }
    }
}

fn bare_number(text: &str) -> Option<&str> {
    let number = text.trim();
    number.parse::<f64>().is_ok().then_some(number)
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for HumanDuration {
    /// Writes days as the largest unit. humantime's own formatting would turn
    /// `90d` into `2months 29days 3h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        let seconds = self.0.as_secs();
        let nanos = u64::from(self.0.subsec_nanos());
        let parts = [
            (seconds / 86_400, "d"),
            (seconds / 3_600 % 24, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (nanos / 1_000_000, "ms"),
            (nanos / 1_000 % 1_000, "us"),
            (nanos % 1_000, "ns"),
        ];
        for (count, unit) in parts {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for HumanSize {
    /// Writes the largest unit that divides the size exactly, so that nothing is
    /// lost.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 8] = [
            (1 << 40, "TiB"),
            (1_000_000_000_000, "TB"),
            (1 << 30, "GiB"),
            (1_000_000_000, "GB"),
            (1 << 20, "MiB"),
            (1_000_000, "MB"),
            (1 << 10, "KiB"),
            (1_000, "KB"),
        ];
        for (size, unit) in UNITS {
            if self.0 > 0 && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Debug for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for HumanSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for HumanSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for HumanSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor(PhantomData))
    }
}

/// Reads a quantity. A bare number goes through the same parser, whose error
/// names the unit to add.
struct QuantityVisitor<T>(PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for QuantityVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<T, E> {
        value.parse().map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        value.to_string().parse().map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        value.to_string().parse().map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        value.to_string().parse().map_err(E::custom)
    }
}

/// Reads a whole number, or a string that contains one: environment variables and flags are
/// strings.
pub(super) fn whole_number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let number = deserializer.deserialize_any(WholeNumberVisitor)?;
    T::try_from(number).map_err(|_| D::Error::custom(format!("`{number}` is too large")))
}

struct WholeNumberVisitor;

impl Visitor<'_> for WholeNumberVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<u64, E> {
        value
            .trim()
            .parse()
            .map_err(|_| E::invalid_value(Unexpected::Str(value), &self))
    }
}

/// Reads `true` or `false`, or a string that contains one of them.
pub(super) fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    deserializer.deserialize_any(BooleanVisitor)
}

struct BooleanVisitor;

impl Visitor<'_> for BooleanVisitor {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`true` or `false`")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<bool, E> {
        Ok(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<bool, E> {
        match value.trim() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(E::invalid_value(Unexpected::Str(value), &self)),
        }
    }
}

/// Reads a list of strings. Environment variables and flags contain one string, or a JSON list.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(TextsVisitor)
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Vec<String>, E> {
        match value.trim() {
            "" => Ok(Vec::new()),
            list if list.starts_with('[') => serde_json::from_str(list)
                .map_err(|error| E::custom(format!("`{list}` is not a JSON list: {error}"))),
            one => Ok(vec![one.to_owned()]),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = values.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }
}

impl JsonSchema for HumanDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "duration",
            "type": "string",
            "pattern": r"^\s*([0-9.]+\s*[A-Za-zµ]+\s*)+$",
            "examples": ["500ms", "10s", "1h30m", "90d"],
        })
    }
}

impl JsonSchema for HumanSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "size",
            "type": "string",
            "pattern": r"^\s*[0-9.]+\s*([KMGTkmgt]i?[Bb]?|[Bb])\s*$",
            "examples": ["64KB", "128MiB"],
        })
    }
}

impl JsonSchema for Ratio {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Ratio".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "a number from 0 to 1",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn duration(text: &str) -> Result<String, String> {
        text.parse::<HumanDuration>().map(|it| it.to_string())
    }

    fn size(text: &str) -> Result<u64, String> {
        text.parse::<HumanSize>().map(HumanSize::bytes)
    }

    #[test]
    fn durations_are_read_and_shown_as_written() {
        for text in ["0s", "500ms", "10s", "2m", "1h30m", "90d", "1d2h3m4s5ms"] {
            assert_eq!(duration(text).as_deref(), Ok(text));
        }
        assert_eq!(duration("90s").as_deref(), Ok("1m30s"));
        assert_eq!(duration("2 minutes").as_deref(), Ok("2m"));
    }

    #[test]
    fn sizes_are_read_in_their_unit() {
        assert_eq!(size("128MiB"), Ok(128 << 20));
        assert_eq!(size("64KB"), Ok(64_000));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("7B"), Ok(7));
    }

    #[test]
    fn a_number_without_unit_is_told_which_to_add() {
        for text in ["10", "0", "1.5", "-3"] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(&format!("write `{text}s`")), "{error}");
            let error = size(text).unwrap_err();
            assert!(error.contains(&format!("write `{text}MiB`")), "{error}");
        }
        let error = serde_json::from_str::<HumanDuration>("10").unwrap_err();
        assert!(error.to_string().contains("has no unit"), "{error}");
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "fast", "10 parsecs", "10s-"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["", "big", "10 acres", "-1MiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(nanos in any::<u64>(), bytes in any::<u64>()) {
            let duration = HumanDuration::new(Duration::from_nanos(nanos));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
            let size = HumanSize::new(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
