//! Maps the name of an event to its meaning: whether an object was written.
//!
//! Nothing is guessed: an event whose name is in none of these tables may have written an object,
//! so its message is not deleted.

/// Stands for the part after `ObjectCreated:` if an event does not say how its object was written.
pub(super) const ANY: &str = "*";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An object was written; holds what follows `ObjectCreated:` in S3's name for that, such as
    /// `Put`, or [`ANY`].
    Written(String),
    /// Nothing was written.
    Harmless,
}

/// Events that write nothing. `*` stands for any ending, and S3's own names may begin with `s3:`.
/// (`Replication:*` would match too much: Ceph's `Replication:Create` announces a written object.)
const HARMLESS: &[&str] = &[
    // S3
    "IntelligentTiering",
    "LifecycleExpiration:*",
    "LifecycleTransition",
    "ObjectAcl:Put",
    "ObjectAnnotation:*",
    "ObjectRemoved:*",
    "ObjectRestore:*",
    "ObjectTagging:*",
    "ReducedRedundancyLostObject",
    "Replication:Operation*",
    "TestEvent",
    // EventBridge
    "Object ACL Updated",
    "Object Access Tier Changed",
    "Object Annotation Created",
    "Object Annotation Removed",
    "Object Deleted",
    "Object Restore Completed",
    "Object Restore Expired",
    "Object Restore Initiated",
    "Object Storage Class Changed",
    "Object Tags Added",
    "Object Tags Deleted",
    // Ceph
    "ObjectLifecycle:*",
    "ObjectSynced:Delete",
    "ObjectSynced:DeletionMarkerCreated",
    "Replication:Delete",
    "Replication:DeletionMarkerCreated",
    // MinIO
    "ObjectAccessed:*",
];

/// Requests that write an object, as EventBridge, CloudTrail and OSS name them, and S3's word for
/// each.
const REQUESTS: &[(&str, &str)] = &[
    ("PutObject", "Put"),
    ("PostObject", "Post"),
    ("POST Object", "Post"),
    ("CopyObject", "Copy"),
    ("CompleteMultipartUpload", "CompleteMultipartUpload"),
];

/// EventBridge's name for any of these requests.
pub(super) const OBJECT_CREATED: &str = "Object Created";

/// Other events that write an object: Ceph's, for an object that it has copied from another zone.
const COPIED_BY_CEPH: &[&str] = &["ObjectSynced:Create", "Replication:Create"];

/// Returns what an event of this name did.
///
/// # Errors
///
/// Says what to do about a name that is not known.
pub(super) fn meaning(name: &str) -> Result<Meaning, String> {
    let bare = name.strip_prefix("s3:").unwrap_or(name);
    if let Some(request) = created(name) {
        Ok(Meaning::Written(kind(request)))
    } else if REQUESTS.iter().any(|(request, _)| *request == bare) {
        Ok(Meaning::Written(kind(bare)))
    } else if bare == OBJECT_CREATED || COPIED_BY_CEPH.contains(&bare) {
        Ok(Meaning::Written(ANY.to_owned()))
    } else if HARMLESS.iter().any(|pattern| matches(pattern, bare)) {
        Ok(Meaning::Harmless)
    } else {
        Err(unknown(name))
    }
}

/// Returns S3's word for a request; the request itself, if S3 has none.
pub(super) fn kind(request: &str) -> String {
    let known = REQUESTS.iter().find(|(name, _)| *name == request);
    match known {
        Some((_, kind)) => (*kind).to_owned(),
        None if request.is_empty() => ANY.to_owned(),
        None => request.to_owned(),
    }
}

/// Returns whether EventBridge uses this name, and S3 does not.
pub(super) fn is_of_event_bridge(name: &str) -> bool {
    name == OBJECT_CREATED || REQUESTS.iter().any(|(request, _)| *request == name)
}

/// Returns what follows `ObjectCreated:`, whichever service's prefix precedes it (`s3:`, `cos:`).
fn created(name: &str) -> Option<&str> {
    let (prefix, rest) = name.split_once("ObjectCreated")?;
    if !prefix.is_empty() && !prefix.ends_with(':') {
        return None;
    }
    if rest.is_empty() {
        return Some(rest);
    }
    rest.strip_prefix(':')
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

/// Returns the error for an unknown name. Anyone who may send to the queue can write any name, so a
/// long one is cut.
fn unknown(name: &str) -> String {
    const SHOWN: usize = 100;
    let shown: String = name.chars().take(SHOWN).collect();
    format!(
        "unknown event {shown:?}, which may have written an object; load that object with \
         `sluice backfill`, and configure the source to send only ObjectCreated events"
    )
}
