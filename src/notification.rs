//! From the body of an SQS message to the objects that it announces.
//!
//! Pure: nothing here knows of queues or of the network.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use crate::object::ObjectRef;

/// What a message announces.
#[derive(Debug, PartialEq, Eq)]
pub enum Notification {
    /// At least one object that was created.
    Objects(Vec<ObjectRef>),
    /// Well understood, and nothing to load: to be acknowledged and counted.
    Ignorable(Ignorable),
}

/// Why a message that was understood asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignorable {
    /// S3 sends one when a notification configuration is saved.
    TestEvent,
    /// Only events other than `ObjectCreated:*`, such as a removal.
    OtherEvents,
}

impl Ignorable {
    /// The value of the `outcome` label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::TestEvent => "test_event",
            Self::OtherEvents => "other_event",
        }
    }
}

/// The body is not a notification that we know. Such a message is never deleted: the redrive
/// policy takes it to the dead-letter queue.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("the body is JSON, but no S3 event: {0}")]
    NotAnEvent(&'static str),
    #[error("record {index} of the event is incomplete: {problem}")]
    Record { index: usize, problem: String },
}

/// Reads the body of an SQS message.
pub fn parse_notification(body: &str) -> Result<Notification, Malformed> {
    let body: serde_json::Value =
        serde_json::from_str(body).map_err(|error| Malformed::NotJson(error.to_string()))?;
    if body.get("Event").and_then(|event| event.as_str()) == Some("s3:TestEvent") {
        return Ok(Notification::Ignorable(Ignorable::TestEvent));
    }
    let Some(records) = body.get("Records").and_then(|records| records.as_array()) else {
        return Err(Malformed::NotAnEvent("there is no list `Records`"));
    };
    if records.is_empty() {
        return Err(Malformed::NotAnEvent("`Records` is empty"));
    }
    let mut objects = Vec::with_capacity(records.len());
    for (index, record) in records.iter().enumerate() {
        if let Some(object) = read_record(record)
            .map_err(|problem| Malformed::Record { index, problem })?
            // One message can announce an object twice; it is one object all the same.
            .filter(|object| !objects.contains(object))
        {
            objects.push(object);
        }
    }
    if objects.is_empty() {
        return Ok(Notification::Ignorable(Ignorable::OtherEvents));
    }
    Ok(Notification::Objects(objects))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    aws_region: Option<String>,
    s3: S3Entity,
}

#[derive(Deserialize)]
struct S3Entity {
    bucket: Bucket,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    key: String,
    size: Option<u64>,
    e_tag: Option<String>,
    version_id: Option<String>,
    sequencer: Option<String>,
}

/// `None` for an event that creates nothing.
fn read_record(record: &serde_json::Value) -> Result<Option<ObjectRef>, String> {
    let event = record
        .get("eventName")
        .and_then(|name| name.as_str())
        .ok_or("no `eventName`")?;
    // The prefix is there in configurations and, with some implementations, in events too.
    if !event
        .strip_prefix("s3:")
        .unwrap_or(event)
        .starts_with("ObjectCreated:")
    {
        return Ok(None);
    }
    let record = Record::deserialize(record).map_err(|error| error.to_string())?;
    let Object {
        key,
        size,
        e_tag,
        version_id,
        sequencer,
    } = record.s3.object;
    let key = decode_key(&key).ok_or("the key is no UTF-8 once decoded")?;
    if key.is_empty() || record.s3.bucket.name.is_empty() {
        return Err("the bucket or the key is empty".into());
    }
    let not_empty = |value: Option<String>| value.filter(|value| !value.is_empty());
    Ok(Some(ObjectRef {
        bucket: record.s3.bucket.name,
        key,
        etag: e_tag.unwrap_or_default().trim_matches('"').to_owned(),
        size,
        version_id: not_empty(version_id),
        sequencer: not_empty(sequencer),
        region: not_empty(record.aws_region),
    }))
}

/// Keys arrive form-urlencoded: `+` is a space, and a real plus is `%2B`. Which other bytes are
/// escaped differs between implementations, and decoding takes all of it.
fn decode_key(encoded: &str) -> Option<String> {
    let spaced: Cow<'_, str> = if encoded.contains('+') {
        encoded.replace('+', " ").into()
    } else {
        encoded.into()
    };
    percent_decode_str(&spaced)
        .decode_utf8()
        .ok()
        .map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(event: &str, key: &str) -> serde_json::Value {
        json!({
            "eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "eu-west-1",
            "eventTime": "2026-07-14T12:00:00.000Z", "eventName": event,
            "s3": {
                "s3SchemaVersion": "1.0",
                "bucket": {"name": "events", "arn": "arn:aws:s3:::events"},
                "object": {"key": key, "size": 1024, "eTag": "d41d8cd9", "sequencer": "0055AED6DCD90281E5"},
            },
        })
    }

    fn parse(records: &[serde_json::Value]) -> Result<Notification, Malformed> {
        parse_notification(&json!({ "Records": records }).to_string())
    }

    fn keys(records: &[serde_json::Value]) -> Vec<String> {
        match parse(records) {
            Ok(Notification::Objects(objects)) => objects.into_iter().map(|o| o.key).collect(),
            other => panic!("expected objects, got {other:?}"),
        }
    }

    #[test]
    fn reads_every_field_of_a_record() {
        let Ok(Notification::Objects(objects)) = parse(&[record("ObjectCreated:Put", "a/b.jsonl")])
        else {
            panic!("expected objects");
        };
        assert_eq!(
            objects,
            [ObjectRef {
                bucket: "events".into(),
                key: "a/b.jsonl".into(),
                etag: "d41d8cd9".into(),
                size: Some(1024),
                version_id: None,
                sequencer: Some("0055AED6DCD90281E5".into()),
                region: Some("eu-west-1".into()),
            }]
        );
    }

    #[test]
    fn reads_all_records_of_a_message() {
        let created = |key| record("ObjectCreated:CompleteMultipartUpload", key);
        let removed = record("ObjectRemoved:Delete", "c");
        assert_eq!(
            keys(&[created("a"), removed, created("b"), created("a")]),
            ["a", "b"]
        );
    }

    #[test]
    fn decodes_keys_as_form_urlencoded() {
        for (encoded, decoded) in [
            ("plain/key.jsonl", "plain/key.jsonl"),
            ("a+b", "a b"),
            ("a%20b", "a b"),
            ("a%2Bb", "a+b"),
            ("dir%2Ffile", "dir/file"),
            ("%25%41", "%A"),
            ("caf%C3%A9", "café"),
            ("%F0%9F%98%80", "😀"),
            ("100%", "100%"),
        ] {
            assert_eq!(
                keys(&[record("ObjectCreated:Put", encoded)]),
                [decoded],
                "{encoded}"
            );
        }
    }

    #[test]
    fn acknowledges_what_asks_for_nothing() {
        let test_event = json!({
            "Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2026-07-14T12:00:00.000Z",
            "Bucket": "events", "RequestId": "5582815E1AEA5ADF", "HostId": "8cLeGAmw098X5cv4",
        });
        assert_eq!(
            parse_notification(&test_event.to_string()),
            Ok(Notification::Ignorable(Ignorable::TestEvent))
        );
        assert_eq!(
            parse(&[record("ObjectRemoved:DeleteMarkerCreated", "a")]),
            Ok(Notification::Ignorable(Ignorable::OtherEvents))
        );
    }

    #[test]
    fn never_calls_garbage_an_object() {
        for body in [
            "",
            "hello",
            "{\"Records\":[",
            "[]",
            "{}",
            "{\"Records\":[]}",
            "{\"Records\":{}}",
            "null",
            "7",
        ] {
            assert!(parse_notification(body).is_err(), "{body}");
        }
        for (spoil, value) in [
            ("/s3/object/key", json!(7)),
            ("/s3/object/key", json!("")),
            ("/s3/object/key", json!("%FF")),
            ("/s3/object/size", json!(-1)),
            ("/s3/bucket/name", json!("")),
            ("/s3/bucket", json!(null)),
            ("/eventName", json!(null)),
        ] {
            let mut spoilt = record("ObjectCreated:Put", "a");
            *spoilt.pointer_mut(spoil).unwrap() = value;
            // A good record beside it changes nothing: the message is kept whole.
            let outcome = parse(&[record("ObjectCreated:Put", "good"), spoilt]);
            assert!(
                matches!(outcome, Err(Malformed::Record { index: 1, .. })),
                "{spoil}: {outcome:?}"
            );
        }
    }
}
