//! An event of S3 as EventBridge delivers it: one object each, and its key as it is.

use serde::Deserialize;
use serde_json::Value;

use super::object::{Parts, check};
use super::{Announced, time_of};

#[derive(Deserialize)]
struct Event {
    region: Option<String>,
    time: Option<String>,
    detail: Detail,
}

#[derive(Deserialize)]
struct Detail {
    bucket: Bucket,
    object: Object,
    /// The request that created the object.
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Object {
    key: String,
    size: Option<u64>,
    etag: Option<String>,
    version_id: Option<String>,
    sequencer: Option<String>,
}

/// `None` for an event that creates nothing.
pub(super) fn read(event: &Value) -> Result<Option<Announced>, String> {
    // A rule without a source sends everything of the account.
    if event["source"] != "aws.s3" {
        return Err("its source is not `aws.s3`".to_owned());
    }
    if event["detail-type"] != "Object Created" {
        return Ok(None);
    }
    let event = Event::deserialize(event).map_err(|error| error.to_string())?;
    let object = event.detail.object;
    let object = check(Parts {
        bucket: event.detail.bucket.name,
        key: object.key,
        etag: object.etag,
        size: object.size,
        version_id: object.version_id,
        sequencer: object.sequencer,
        region: event.region,
    })?;
    Ok(Some(Announced {
        event: event_name(event.detail.reason.unwrap_or_default()),
        at: time_of(event.time.as_deref()),
        object,
    }))
}

/// S3's own name for what the request did.
fn event_name(reason: String) -> String {
    match reason.as_str() {
        "PutObject" => "Put".to_owned(),
        "POST Object" => "Post".to_owned(),
        "CopyObject" => "Copy".to_owned(),
        _ => reason,
    }
}
