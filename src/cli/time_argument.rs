//! A time on the command line.

use std::time::SystemTime;

use crate::config::HumanDuration;

/// Parses a day or a time in UTC, or a duration before now.
#[expect(
    clippy::disallowed_methods,
    reason = "relative to now, as the user means it"
)]
pub(super) fn parse_time_arg(text: &str) -> Result<SystemTime, String> {
    let midnight = format!("{text}T00:00:00Z");
    if let Ok(time) =
        humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339(&midnight))
    {
        return Ok(time);
    }
    let ago: HumanDuration = text.parse()?;
    SystemTime::now()
        .checked_sub(ago.get())
        .ok_or_else(|| format!("`{text}` is too long ago"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_is_absolute_or_a_duration_before_now() {
        let time = parse_time_arg("1970-01-01T01:00:00Z").unwrap();
        assert_eq!(time, SystemTime::UNIX_EPOCH + Duration::from_secs(3600));
        let day = parse_time_arg("1970-01-02").unwrap();
        assert_eq!(day, SystemTime::UNIX_EPOCH + Duration::from_secs(86_400));
        let earlier = parse_time_arg("2h").unwrap();
        assert!(earlier < parse_time_arg("1h").unwrap());
        assert!(parse_time_arg("yesterday").is_err());
        assert!(parse_time_arg("5").is_err());
    }
}
