//! From what a record says to an object that may be looked for.

use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::object::{ObjectParts, ObjectRef};

/// What a record says, the key decoded.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) etag: Option<String>,
    pub(super) size: Option<u64>,
    pub(super) version_id: Option<String>,
    pub(super) sequencer: Option<String>,
    pub(super) region: Option<String>,
}

/// S3's own limit for keys and version ids. What is longer makes statements that ClickHouse
/// refuses.
const MAX_BYTES: usize = 1024;

/// S3's limits. ClickHouse takes a name beyond them for a mistake in the statement, over which all
/// intake would pause.
const BUCKET_LENGTHS: RangeInclusive<usize> = 3..=63;

/// Bucket and region become part of a URL. With other characters than S3 allows, they could name
/// another place: another server, even, which would then be sent a signed request.
pub(super) fn check(parts: Parts) -> Result<ObjectRef, String> {
    let not_empty = |value: Option<String>| value.filter(|value| !value.is_empty());
    let object = ObjectParts {
        bucket: parts.bucket,
        key: parts.key,
        etag: parts.etag.unwrap_or_default().trim_matches('"').to_owned(),
        size: parts.size,
        version_id: not_empty(parts.version_id),
        sequencer: not_empty(parts.sequencer),
        region: not_empty(parts.region),
    };
    if !is_bucket(&object.bucket) {
        return Err("the bucket's name is none that S3 allows".to_owned());
    }
    if object.key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    if !object.region.as_deref().is_none_or(is_region) {
        return Err("the region's name is none that AWS has".to_owned());
    }
    let texts = [
        Some(&object.key),
        Some(&object.etag),
        object.version_id.as_ref(),
        object.sequencer.as_ref(),
    ];
    if texts
        .into_iter()
        .flatten()
        .any(|text| text.len() > MAX_BYTES)
    {
        return Err(format!("a name in it is longer than {MAX_BYTES} bytes"));
    }
    Ok(object.into())
}

/// Reads a size, which is only an estimate. The documentation of Ceph has it as a text, and an encoder
/// that has floats only writes `20.0`; whatever is no number of bytes counts as none.
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Value::deserialize(deserializer).map(|value| size_of(&value))
}

pub(super) fn size_of(value: &Value) -> Option<u64> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.strip_suffix(".0").unwrap_or(&text).parse().ok()
}

/// Capitals and underscores are in the names of old buckets.
fn is_bucket(name: &str) -> bool {
    BUCKET_LENGTHS.contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

fn is_region(name: &str) -> bool {
    name.len() <= 64
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}
