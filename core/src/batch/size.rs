//! How large objects are once they are uncompressed, estimated.

use crate::object::{Compression, ObjectRef};

/// JSON of events compresses to a tenth or so: a batch must not surprise the server's memory.
pub const ASSUMED_COMPRESSION_RATIO: u64 = 10;
/// What an object without an announced size is taken for.
pub const ASSUMED_BYTES: u64 = 64 * 1024;

/// Returns the bytes that an object will be once uncompressed, estimated upwards.
///
/// Statements depend on it, and the ledger records an unknown size as 0: both must come to the same,
/// or a recovery would make another statement under the same token.
pub fn estimated_bytes(object: &ObjectRef) -> u64 {
    let stored = object.size.filter(|size| *size > 0);
    let stored = stored.unwrap_or(ASSUMED_BYTES);
    match Compression::of(&object.key) {
        Compression::None => stored,
        _ => stored.saturating_mul(ASSUMED_COMPRESSION_RATIO),
    }
}

/// How many bytes an object of these has on average.
pub fn mean_bytes<'a>(objects: impl IntoIterator<Item = &'a ObjectRef>) -> u64 {
    let (mut count, mut bytes) = (0, 0_u64);
    for object in objects {
        count += 1;
        bytes = bytes.saturating_add(estimated_bytes(object));
    }
    bytes.checked_div(count).unwrap_or_default()
}
