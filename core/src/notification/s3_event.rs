//! Records of S3's own events.

use serde::Deserialize;
use serde_json::Value;

use super::names::{self, Meaning, meaning};
use super::object::{Parts, check, size};
use super::{Announced, time_of};
use crate::object::decode_key;

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
    #[serde(default, deserialize_with = "size")]
    size: Option<u64>,
    e_tag: Option<String>,
    version_id: Option<String>,
    sequencer: Option<String>,
}

/// Reads a record; returns `None` for an event that is known to write nothing.
pub(super) fn read(record: &Value) -> Result<Option<Announced>, String> {
    let name = record["eventName"]
        .as_str()
        .ok_or("`eventName` is missing")?;
    let Meaning::Written(event) = meaning(name)? else {
        return Ok(None);
    };
    let is_raw = has_raw_key(record, name);
    let record = Record::deserialize(record).map_err(|error| error.to_string())?;
    let object = record.s3.object;
    let object = check(Parts {
        bucket: record.s3.bucket.name,
        key: if is_raw {
            object.key
        } else {
            decode_key(&object.key).ok_or("the decoded key is not UTF-8")?
        },
        etag: object.e_tag,
        size: object.size,
        version_id: object.version_id,
        sequencer: object.sequencer,
        region: record.aws_region,
    })?;
    Ok(Some(Announced {
        event,
        at: time_of(record.event_time.as_deref()),
        object,
    }))
}

/// Returns whether the key is not encoded, unlike S3's. Ceph encodes no keys, and an event of
/// EventBridge that an input transformer has rewritten has EventBridge's name and key.
fn has_raw_key(record: &Value, name: &str) -> bool {
    record["eventSource"] == "ceph:s3" || names::is_of_event_bridge(name)
}
