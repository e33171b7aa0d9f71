//! Parses the objects that the body of an SQS message announces.
//!
//! Pure: nothing here depends on queues or on the network. Anyone who may send to the queue can
//! write any body, so every value that goes from here into a statement or a URL is checked in
//! `object`.

pub mod announce;
mod envelope;
mod event_bridge;
pub mod filter;
mod names;
mod object;
mod payload;
mod s3_event;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use serde_json::Value;

pub use self::envelope::Envelopes;
pub use self::payload::payload_pointer;
use crate::labelled;
use crate::object::ObjectRef;

/// What a message announces.
#[derive(Debug, PartialEq, Eq)]
pub enum Notification {
    /// At least one object that was created.
    Objects(Vec<Announced>),
    /// Nothing to load: the message is acknowledged and counted.
    Ignorable(Ignorable),
}

/// An object and the event that announced it.
#[derive(Debug, PartialEq, Eq)]
pub struct Announced {
    /// What follows `ObjectCreated:` in S3's name of the event, such as `Put`; `*` if it does not
    /// say how the object was created.
    pub event: String,
    /// When it happened, if the event says so in a known format.
    pub at: Option<SystemTime>,
    pub object: ObjectRef,
}

labelled! {
    /// How a body is written. The labels are values of the `form` label in metrics.
    pub enum EnvelopeKind {
        /// As S3 writes it.
        S3 = "s3",
        /// The same in the envelope of SNS.
        Sns = "sns",
        EventBridge = "event_bridge",
        EventBridgeSns = "event_bridge_sns",
        /// In a declared envelope.
        Declared = "declared",
        /// The body is not an event of S3, or is written in none of these ways.
        Unknown = "unknown",
    }
}

labelled! {
    /// Why a message that was understood announces nothing to load. The labels are values of the
    /// `outcome` label in metrics.
    pub enum Ignorable {
        /// S3 sends one when a notification configuration is saved.
        TestEvent = "test_event",
        /// Only events that are known to write nothing, such as a removal.
        OtherEvents = "other_event",
        /// Only objects that the configured filter leaves out.
        Filtered = "filtered",
    }
}

/// Why a body is not a notification that Sluice understands. Such a message is never deleted: the
/// redrive policy moves it to the dead-letter queue.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("the body is JSON, but not an S3 event: {0}")]
    NotAnEvent(&'static str),
    #[error("record {index} of the event is malformed: {problem}")]
    Record { index: usize, problem: String },
}

/// Reads the body of an SQS message: an event of S3, as S3 or EventBridge writes it, by itself or
/// in the envelope of SNS.
///
/// # Errors
///
/// Says why any other body is malformed.
pub fn parse_notification(body: &str) -> Result<Notification, Malformed> {
    parse_with_envelope_kind(body, &Envelopes::default()).1
}

/// Reads a body as [`parse_notification`] does, or in a declared envelope. Also returns how the
/// body is written.
pub fn parse_with_envelope_kind(
    body: &str,
    envelopes: &Envelopes,
) -> (EnvelopeKind, Result<Notification, Malformed>) {
    let (event, in_sns) = match without_envelope(body) {
        Ok(opened) => opened,
        Err(malformed) => return (EnvelopeKind::Unknown, Err(malformed)),
    };
    let read = read_event(&event);
    if let Err(Malformed::NotAnEvent(_)) = read
        && let Some(read) = envelopes.read(&event)
    {
        return (EnvelopeKind::Declared, read);
    }
    let form = match (&read, event_bridge::wrote(&event), in_sns) {
        (Err(Malformed::NotAnEvent(_)), ..) => EnvelopeKind::Unknown,
        (_, false, false) => EnvelopeKind::S3,
        (_, false, true) => EnvelopeKind::Sns,
        (_, true, false) => EnvelopeKind::EventBridge,
        (_, true, true) => EnvelopeKind::EventBridgeSns,
    };
    (form, read)
}

/// Returns the event, and whether SNS delivered it in its envelope.
fn without_envelope(body: &str) -> Result<(Value, bool), Malformed> {
    let body = read_json(body)?;
    Ok(match message_of_sns(&body)? {
        Some(message) => (read_json(message)?, true),
        None => (body, false),
    })
}

/// Reads the time of an event; `None` if it has another format, since only statistics depend on it.
/// RFC 3339 permits `T` and `Z` in lower case, which the parser does not.
fn time_of(text: Option<&str>) -> Option<SystemTime> {
    humantime::parse_rfc3339(&text?.to_ascii_uppercase()).ok()
}

fn read_json(text: &str) -> Result<Value, Malformed> {
    serde_json::from_str(text).map_err(|error| Malformed::NotJson(error.to_string()))
}

/// Returns the message in an envelope of SNS. With raw delivery there is no envelope.
fn message_of_sns(body: &Value) -> Result<Option<&str>, Malformed> {
    if body.get("TopicArn").is_none() {
        return Ok(None);
    }
    // SNS also sends confirmations of subscriptions, which a person must handle.
    if body["Type"] != "Notification" {
        return Err(Malformed::NotAnEvent("an SNS message of another type"));
    }
    let message = body["Message"].as_str();
    let message = message.ok_or(Malformed::NotAnEvent("an SNS message without `Message`"))?;
    Ok(Some(message))
}

fn read_event(event: &Value) -> Result<Notification, Malformed> {
    if let Some(records) = event.get("Records") {
        let Some(records) = records.as_array().filter(|records| !records.is_empty()) else {
            return Err(Malformed::NotAnEvent(
                "`Records` is not a list, or is empty",
            ));
        };
        read_records(records, s3_event::read)
    } else if event_bridge::wrote(event) {
        read_records(std::slice::from_ref(event), event_bridge::read)
    } else if event["Event"] == "s3:TestEvent" {
        Ok(Notification::Ignorable(Ignorable::TestEvent))
    } else if payload::is_pointer(event) {
        Err(Malformed::NotAnEvent(
            "the body is a pointer to an S3 object, which could not be read",
        ))
    } else {
        Err(Malformed::NotAnEvent(
            "it has no `Records`, `detail-type` or `detail`",
        ))
    }
}

/// Reads all records or none: if one is malformed, so is the whole message.
fn read_records(
    records: &[Value],
    read: impl Fn(&Value) -> Result<Option<Announced>, String>,
) -> Result<Notification, Malformed> {
    let mut announced = Vec::with_capacity(records.len());
    for (index, record) in records.iter().enumerate() {
        announced.extend(read(record).map_err(|problem| Malformed::Record { index, problem })?);
    }
    Ok(if announced.is_empty() {
        Notification::Ignorable(Ignorable::OtherEvents)
    } else {
        Notification::Objects(announced)
    })
}
