//! Validation of the objects that records name.

use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::object::{ObjectParts, ObjectRef};

/// The fields of a record, with the key decoded.
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

/// S3's own limit for keys and version ids. Longer ones make statements that ClickHouse refuses.
const MAX_BYTES: usize = 1024;

/// S3's limits. ClickHouse reports a name beyond them as an error of the statement, for which all
/// intake would pause.
const BUCKET_LENGTHS: RangeInclusive<usize> = 3..=63;

/// Checks the fields of a record, and makes an object of them.
///
/// Bucket and region become part of a URL. With characters that S3 does not allow, they could name
/// another place, even another server, to which a signed request would then be sent.
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
        return Err("invalid bucket name".to_owned());
    }
    if object.key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    if !object.region.as_deref().is_none_or(is_region) {
        return Err("invalid region name".to_owned());
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
        return Err(format!("a field exceeds {MAX_BYTES} bytes"));
    }
    Ok(object.into())
}

/// Reads a size, which is only an estimate. Ceph documents it as a text, and an encoder that only
/// has floats writes `20.0`; anything that is not a number of bytes counts as none.
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

/// Returns whether S3 allows this name. Names of old buckets have capitals and underscores.
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
