//! Formats seconds since 1970 as ISO 8601, without a calendar library.

const DAY: u64 = 86_400;

/// Returns the time in UTC with microseconds, such as `2026-07-14T12:00:00.123456Z`.
pub(super) fn iso(seconds: u64, micros: u32) -> String {
    format!("{}.{micros:06}Z", without_zone(seconds))
}

/// Returns the time without a zone, such as `2026-07-14T12:00:00`.
pub(super) fn without_zone(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / DAY);
    let rest = seconds % DAY;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Returns the date of a day, counted from 1970-01-01. This is Howard Hinnant's algorithm, which
/// counts in eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_as_iso_8601() {
        assert_eq!(iso(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(without_zone(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(iso(1_784_030_400, 123_456), "2026-07-14T12:00:00.123456Z");
        assert_eq!(without_zone(4_107_542_399), "2100-02-28T23:59:59");
    }
}
