//! Events of S3 as EventBridge delivers them: each with one object, whose key is not encoded.
//!
//! EventBridge delivers S3's own events, and requests that CloudTrail has recorded.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::names::{self, Meaning, OBJECT_CREATED, meaning};
use super::object::{Parts, check, size};
use super::{Announced, time_of};

const CLOUD_TRAIL: &str = "AWS API Call via CloudTrail";

#[derive(Deserialize)]
struct Event<D> {
    region: Option<String>,
    time: Option<String>,
    detail: D,
}

#[derive(Deserialize)]
struct Detail {
    bucket: Bucket,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Object {
    key: String,
    #[serde(default, deserialize_with = "size")]
    size: Option<u64>,
    etag: Option<String>,
    version_id: Option<String>,
    sequencer: Option<String>,
}

/// A request that CloudTrail has recorded.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    request_parameters: RequestParameters,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestParameters {
    bucket_name: String,
    key: String,
}

/// Returns whether EventBridge wrote this body.
pub(super) fn wrote(body: &Value) -> bool {
    body.get("detail-type").or(body.get("detail")).is_some()
}

/// Reads an event; returns `None` for one that is known to write nothing.
pub(super) fn read(event: &Value) -> Result<Option<Announced>, String> {
    // A rule without a source matches every event of the account.
    if event["source"] != "aws.s3" {
        return Err("its source is not `aws.s3`".to_owned());
    }
    let reason = event["detail"]["reason"].as_str();
    let reason = reason.filter(|reason| !reason.is_empty());
    let name = match event.get("detail-type") {
        Some(name) => name.as_str().ok_or("`detail-type` is not a string")?,
        // Security Lake leaves it out, and announces only written objects to its subscribers.
        None => reason.unwrap_or(OBJECT_CREATED),
    };
    if name == CLOUD_TRAIL {
        return read_call(event);
    }
    let Meaning::Written(written) = meaning(name)? else {
        return Ok(None);
    };
    let written = match reason {
        Some(request) if name == OBJECT_CREATED => names::kind(request),
        _ => written,
    };
    let Event {
        region,
        time,
        detail: Detail { bucket, object },
    } = deserialize(event)?;
    let parts = Parts {
        bucket: bucket.name,
        key: object.key,
        etag: object.etag,
        size: object.size,
        version_id: object.version_id,
        sequencer: object.sequencer,
        region,
    };
    announced(written, time, parts)
}

fn read_call(event: &Value) -> Result<Option<Announced>, String> {
    let call = &event["detail"];
    if call["eventSource"] != "s3.amazonaws.com" {
        return Err("its `eventSource` is not `s3.amazonaws.com`".to_owned());
    }
    // A request that failed wrote nothing.
    if call["errorCode"].is_string() {
        return Ok(None);
    }
    let name = call["eventName"].as_str().ok_or("`eventName` is missing")?;
    let Meaning::Written(written) = meaning(name)? else {
        return Ok(None);
    };
    let Event {
        region,
        time,
        detail: Call { request_parameters },
    } = deserialize(event)?;
    let parts = Parts {
        bucket: request_parameters.bucket_name,
        key: request_parameters.key,
        region,
        ..Parts::default()
    };
    announced(written, time, parts)
}

fn deserialize<D: DeserializeOwned>(event: &Value) -> Result<Event<D>, String> {
    Event::deserialize(event).map_err(|error| error.to_string())
}

fn announced(
    event: String,
    time: Option<String>,
    parts: Parts,
) -> Result<Option<Announced>, String> {
    Ok(Some(Announced {
        event,
        at: time_of(time.as_deref()),
        object: check(parts)?,
    }))
}
