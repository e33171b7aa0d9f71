//! A record of S3's own events.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;

use super::object::{Parts, check};
use super::{Announced, time_of};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    aws_region: Option<String>,
    event_time: Option<String>,
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
pub(super) fn read(record: &Value) -> Result<Option<Announced>, String> {
    let event = record["eventName"].as_str().ok_or("no `eventName`")?;
    // The prefix is there in configurations and, with some implementations, in events too.
    let event = event.strip_prefix("s3:").unwrap_or(event);
    let Some(event) = event.strip_prefix("ObjectCreated:") else {
        return Ok(None);
    };
    let record = Record::deserialize(record).map_err(|error| error.to_string())?;
    let object = record.s3.object;
    let object = check(Parts {
        bucket: record.s3.bucket.name,
        key: decode_key(&object.key).ok_or("the key is no UTF-8 once decoded")?,
        etag: object.e_tag,
        size: object.size,
        version_id: object.version_id,
        sequencer: object.sequencer,
        region: record.aws_region,
    })?;
    Ok(Some(Announced {
        event: event.to_owned(),
        at: time_of(record.event_time.as_deref()),
        object,
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
