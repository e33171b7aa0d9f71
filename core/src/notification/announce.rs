//! Announcements of objects for the queue, in the format of S3's events.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::object::ObjectRef;

/// The characters that are encoded: all but those that S3 does not encode in the keys of its
/// notifications. Spaces become `%20`, which every reader of form-encoded keys also accepts.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'*')
    .remove(b'/');

/// What follows `ObjectCreated:` in these announcements. No filter of events excludes it.
pub const EVENT: &str = "Sluice";

/// Returns the body of a message that announces this object.
pub fn announcement(object: &ObjectRef) -> String {
    let mut s3_object = json!({
        "key": utf8_percent_encode(&object.key, ENCODED).to_string(),
        "eTag": object.etag,
    });
    let optional = [
        ("size", object.size.map(Into::into)),
        ("versionId", object.version_id.clone().map(Into::into)),
        ("sequencer", object.sequencer.clone().map(Into::into)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            s3_object[name] = value;
        }
    }
    let mut record = json!({
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": format!("ObjectCreated:{EVENT}"),
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": { "name": object.bucket },
            "object": s3_object,
        },
    });
    if let Some(region) = &object.region {
        record["awsRegion"] = region.as_str().into();
    }
    json!({ "Records": [record] }).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::object;
    use crate::notification::{Notification, parse_notification};
    use crate::object::ObjectParts;

    proptest! {
        #[test]
        fn an_announcement_is_read_as_the_announced_object(
            key in "\\PC{1,40}|[ +%{}*?\\n/\\\\\"']{1,20}",
            size in proptest::option::of(0u64..1 << 50),
            version in proptest::option::of("[a-z0-9]{1,12}"),
            region in proptest::option::of("[a-z]{2}-[a-z]{4}-[1-9]"),
        ) {
            let announced = ObjectRef::from(ObjectParts {
                size,
                version_id: version,
                sequencer: Some("0055".to_owned()),
                region,
                ..object("bucket", &key, "9a0364b9e99bb480dd25e1f0284c8555").into_parts()
            });
            let body = announcement(&announced);
            let Ok(Notification::Objects(parsed)) = parse_notification(&body) else {
                panic!("not read: {body}");
            };
            let parsed: Vec<_> = parsed.into_iter().map(|it| (it.event, it.object)).collect();
            prop_assert_eq!(parsed, [(EVENT.to_owned(), announced)]);
        }
    }
}
