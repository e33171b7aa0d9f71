//! Options that select dead letters.

use std::time::SystemTime;

use super::dead_letter::{self, DeadLetter};
use crate::cli::classes;
use crate::cli::time_argument::parse_time_arg;
use crate::object::ObjectUrl;

#[derive(clap::Args, Debug, Default, PartialEq)]
pub(super) struct Selector {
    /// Only messages of this class
    #[arg(long, value_name = "CLASS", value_parser = classes::of_objects_and(&dead_letter::CLASSES))]
    error_class: Option<String>,

    /// Only messages that announce an object under this prefix, such as s3://bucket/2026/
    #[arg(long, value_name = "S3-URL")]
    prefix: Option<ObjectUrl>,

    /// Only messages sent since TIME: a UTC time such as 2026-07-14T08:00:00Z, or 2h for 2h ago
    #[arg(long, value_name = "TIME", value_parser = parse_time_arg)]
    since: Option<SystemTime>,

    /// Only messages sent before TIME
    #[arg(long, value_name = "TIME", value_parser = parse_time_arg)]
    until: Option<SystemTime>,

    /// Only the message with this id (can be repeated)
    #[arg(long = "message-id", value_name = "ID")]
    message_ids: Vec<String>,
}

impl Selector {
    /// Selects the messages with these ids; all messages, if there are none.
    pub(super) fn of_messages(message_ids: Vec<String>) -> Self {
        Self {
            message_ids,
            ..Self::default()
        }
    }

    pub(super) fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn matches(&self, dead_letter: &DeadLetter) -> bool {
        let Self {
            error_class,
            prefix,
            since,
            until,
            message_ids,
        } = self;
        let under = |prefix: &ObjectUrl| {
            let mut objects = dead_letter.objects.iter();
            objects.any(|it| it.bucket == prefix.bucket && it.key.starts_with(&prefix.key))
        };
        error_class
            .as_ref()
            .is_none_or(|it| dead_letter.is_of_class(it))
            && prefix.as_ref().is_none_or(under)
            && since.is_none_or(|since| dead_letter.sent_at >= since)
            && until.is_none_or(|until| dead_letter.sent_at < until)
            && (message_ids.is_empty() || message_ids.contains(&dead_letter.message_id))
    }
}
