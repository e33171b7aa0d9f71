//! Which messages are meant.

use std::time::SystemTime;

use super::letter::Letter;
use crate::config::HumanDuration;
use crate::object::ObjectUrl;

#[derive(clap::Args, Debug, Default, PartialEq)]
pub(super) struct Choice {
    /// Only messages that are here for this, such as missing, malformed or loaded
    #[arg(long, value_name = "CLASS")]
    error_class: Option<String>,

    /// Only messages that announce an object under this, such as s3://bucket/2026/
    #[arg(long, value_name = "S3-URL")]
    prefix: Option<ObjectUrl>,

    /// Only messages sent since then: 2h ago, or a time in UTC such as 2026-07-14T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<SystemTime>,

    /// Only messages sent before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<SystemTime>,

    /// Only this message (can be repeated)
    #[arg(long = "message-id", value_name = "ID")]
    message_ids: Vec<String>,
}

impl Choice {
    pub(super) fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn takes(&self, letter: &Letter) -> bool {
        let Self {
            error_class,
            prefix,
            since,
            until,
            message_ids,
        } = self;
        let under = |prefix: &ObjectUrl| {
            let mut objects = letter.objects.iter();
            objects.any(|it| it.bucket == prefix.bucket && it.key.starts_with(&prefix.key))
        };
        error_class.as_ref().is_none_or(|it| letter.is_of_class(it))
            && prefix.as_ref().is_none_or(under)
            && since.is_none_or(|since| letter.sent_at >= since)
            && until.is_none_or(|until| letter.sent_at < until)
            && (message_ids.is_empty() || message_ids.contains(&letter.message_id))
    }
}

/// So long ago, or a time.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
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
    fn a_moment_is_a_time_or_so_long_ago() {
        let told = moment("1970-01-01T01:00:00Z").unwrap();
        assert_eq!(told, SystemTime::UNIX_EPOCH + Duration::from_secs(3600));
        let earlier = moment("2h").unwrap();
        assert!(earlier < moment("1h").unwrap());
        assert!(moment("yesterday").is_err());
        assert!(moment("5").is_err());
    }
}
