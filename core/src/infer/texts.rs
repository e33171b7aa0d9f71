//! What the content of a text is.
//!
//! A text is of a kind only if [`ColumnType`](crate::event_types::ColumnType) reads every such text,
//! and no two of them as the same value: `007` is not an integer, since its zeros would be lost.

/// The kind of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextKind {
    Empty,
    Uuid,
    Time(Time),
    /// A day, such as `2026-11-30`.
    Date,
    Integer(i128),
    /// A number that is not an integer.
    Number,
    /// `true` or `false`.
    Boolean,
    Other,
}

/// A time in ISO 8601.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time {
    /// Since 1970.
    pub(super) seconds: i64,
    /// The number of digits after the seconds.
    pub(super) digits: u32,
}

pub(super) fn kind_of(text: &str) -> TextKind {
    if text.is_empty() {
        TextKind::Empty
    } else if is_uuid(text) {
        TextKind::Uuid
    } else if let Some(time) = time_of(text) {
        TextKind::Time(time)
    } else if text.len() == 10 && days_of(text).is_some_and(|days| days <= LAST_DATE) {
        TextKind::Date
    } else if let Some(integer) = integer_of(text) {
        TextKind::Integer(integer)
    } else if is_number(text) {
        TextKind::Number
    } else if matches!(text, "true" | "false") {
        TextKind::Boolean
    } else {
        TextKind::Other
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Returns an integer of 64 bits that is written as a number is.
fn integer_of(text: &str) -> Option<i128> {
    let integer: i128 = text.parse().ok()?;
    let is_plain = integer.to_string() == text;
    let fits = (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&integer);
    (is_plain && fits).then_some(integer)
}

/// Returns whether this is a decimal fraction without further zeros before it.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let Some((whole, fraction)) = digits.split_once('.') else {
        return false;
    };
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    let is_plain = whole == "0" || !whole.starts_with('0');
    text.len() <= 17 && is_plain && are_digits(whole) && are_digits(fraction)
}

const DAY: i64 = 86_400;

/// 2300-01-01 in days since 1970: the first day that a DateTime64 cannot represent in full.
const END_OF_TIME: i64 = 120_530;

/// 2149-06-06 in days since 1970: the last day of the type Date.
const LAST_DATE: i64 = 65_535;

/// Returns the days since 1970 of a date such as `2026-11-30`, with which the text begins.
fn days_of(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let is_separated = bytes.len() >= 10 && bytes[4] == b'-' && bytes[7] == b'-';
    let (year, month, day) = (
        number(text.get(..4)?)?,
        number(text.get(5..7)?)?,
        number(text.get(8..10)?)?,
    );
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !is_separated || !(1..=length).contains(&day) || !(1970..2300).contains(&year) {
        return None;
    }
    // The days before a month of a year that begins in March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let before = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5;
    Some(before + day - 1 - 719_468)
}

fn number(digits: &str) -> Option<i64> {
    let are_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    are_digits.then(|| digits.parse().ok()).flatten()
}

/// Returns a time that a column of type DateTime64 accepts.
fn time_of(text: &str) -> Option<Time> {
    let days = days_of(text)?;
    let (clock, offset) = split_offset(text.get(10..)?.strip_prefix('T')?)?;
    let (clock, digits) = match clock.split_once('.') {
        Some((clock, fraction)) if clock.len() == 8 => {
            number(fraction.get(..1)?)?;
            number(fraction)?;
            (
                clock,
                u32::try_from(fraction.len()).ok().filter(|it| *it <= 9)?,
            )
        }
        Some(_) => return None,
        None => (clock, 0),
    };
    let clock = match clock.len() {
        5 => clock_of(clock)? * 60,
        8 if clock.as_bytes()[5] == b':' => {
            let seconds = number(&clock[6..]).filter(|it| *it < 60)?;
            clock_of(&clock[..5])? * 60 + seconds
        }
        _ => return None,
    };
    let seconds = days * DAY + clock - offset;
    (0..END_OF_TIME * DAY)
        .contains(&seconds)
        .then_some(Time { seconds, digits })
}

/// Returns the minutes of `08:30`.
fn clock_of(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let is_short = hours.len() == 2 && minutes.len() == 2;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (is_short && hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// Returns a time of day without its offset, and the offset in seconds.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if !text.is_ascii() {
        return None;
    }
    if let Some(clock) = text.strip_suffix('Z') {
        return Some((clock, 0));
    }
    let Some(at) = text.find(['+', '-']) else {
        return Some((text, 0));
    };
    let (clock, offset) = text.split_at(at);
    let (sign, digits) = offset.split_at(1);
    let minutes = match digits.len() {
        2 => clock_of(&format!("{digits}:00"))?,
        4 => clock_of(&format!("{}:{}", &digits[..2], &digits[2..]))?,
        _ => clock_of(digits)?,
    };
    Some((clock, if sign == "-" { -minutes } else { minutes } * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_of_the_kind_that_a_column_reads() {
        let time = |seconds, digits| TextKind::Time(Time { seconds, digits });
        for (text, expected) in [
            ("", TextKind::Empty),
            ("7d0f3f0e-6a51-4c2f-9a77-2f9f1d6b1c55", TextKind::Uuid),
            ("7d0f3f0e-6a51-4c2f-9a77-2f9f1d6b1c5", TextKind::Other),
            ("1970-01-01T00:00:00Z", time(0, 0)),
            ("2026-07-14T12:00:00.5+02:00", time(1_784_023_200, 1)),
            ("2026-07-14T12:00", time(1_784_030_400, 0)),
            ("2026-07-14T12:00:00-0030", time(1_784_032_200, 0)),
            ("2026-07-14T12:00:00+02", time(1_784_023_200, 0)),
            ("2024-02-29T00:00:00Z", time(1_709_164_800, 0)),
            ("2299-12-31T23:59:59Z", time(10_413_791_999, 0)),
            ("1970-01-01T00:00:00+02:00", TextKind::Other),
            ("2300-01-01T00:00:00Z", TextKind::Other),
            ("2026-02-29T00:00:00Z", TextKind::Other),
            ("2026-07-14 12:00:00", TextKind::Other),
            ("2026-07-14T24:00:00", TextKind::Other),
            ("2026-07-14T12:00:60Z", TextKind::Other),
            ("2026-07-14T12:00:00.Z", TextKind::Other),
            ("2026-07-14T12:00.5Z", TextKind::Other),
            ("2026-07-14T12:00:00é", TextKind::Other),
            ("2026-07-14", TextKind::Date),
            ("2149-06-06", TextKind::Date),
            ("2149-06-07", TextKind::Other),
            ("2026-07-32", TextKind::Other),
            ("12", TextKind::Integer(12)),
            (
                "-9223372036854775808",
                TextKind::Integer(i128::from(i64::MIN)),
            ),
            ("18446744073709551616", TextKind::Other),
            ("007", TextKind::Other),
            ("+7", TextKind::Other),
            ("0.50", TextKind::Number),
            ("-1.5", TextKind::Number),
            ("1.", TextKind::Other),
            ("00.5", TextKind::Other),
            ("1e5", TextKind::Other),
            ("false", TextKind::Boolean),
            ("False", TextKind::Other),
        ] {
            assert_eq!(kind_of(text), expected, "{text}");
        }
    }
}
