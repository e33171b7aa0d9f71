//! Pointers to bodies that are in S3, as the SQS extended client writes them.

use serde::Deserialize;
use serde_json::Value;

use super::object::{Parts, check};
use crate::object::ObjectRef;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pointer {
    s3_bucket_name: String,
    s3_key: String,
}

/// Returns the object that holds the body of this message, if it is a pointer to one:
/// `["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": …, "s3Key": …}]`.
pub fn payload_pointer(body: &str) -> Option<ObjectRef> {
    if !body.trim_start().starts_with('[') {
        return None;
    }
    let body: Value = serde_json::from_str(body).ok()?;
    if !is_pointer(&body) {
        return None;
    }
    let pointer = Pointer::deserialize(&body[1]).ok()?;
    let parts = Parts {
        bucket: pointer.s3_bucket_name,
        key: pointer.s3_key,
        ..Parts::default()
    };
    check(parts).ok()
}

pub(super) fn is_pointer(body: &Value) -> bool {
    // The Java class that marks a pointer, and the one used before version 2.
    let classes = [
        "software.amazon.payloadoffloading.PayloadS3Pointer",
        "com.amazon.sqs.javamessaging.MessageS3Pointer",
    ];
    body[0]
        .as_str()
        .is_some_and(|class| classes.contains(&class))
}
