//! Estimates of the uncompressed size of objects.

use crate::object::{Compression, ObjectRef};

/// How much larger a compressed object is assumed to be uncompressed: event JSON compresses to
/// about a tenth. A batch must not take more of the server's memory than expected.
pub const ASSUMED_COMPRESSION_RATIO: u64 = 10;
/// The size assumed of an object that was announced without one, in bytes.
pub const ASSUMED_BYTES: u64 = 64 * 1024;

/// Returns the estimated uncompressed size of an object in bytes, on the high side.
///
/// Statements depend on it, and the ledger records an unknown size as 0: both must yield the same
/// estimate, or a recovery would send a different statement under the same token.
pub fn estimated_bytes(object: &ObjectRef) -> u64 {
    let stored = object.size.filter(|size| *size > 0);
    let stored = stored.unwrap_or(ASSUMED_BYTES);
    match Compression::of(&object.key) {
        Compression::None => stored,
        _ => stored.saturating_mul(ASSUMED_COMPRESSION_RATIO),
    }
}

/// Returns the mean estimated size of these objects in bytes, 0 if there are none.
pub fn mean_bytes<'a>(objects: impl IntoIterator<Item = &'a ObjectRef>) -> u64 {
    let (mut count, mut bytes) = (0, 0_u64);
    for object in objects {
        count += 1;
        bytes = bytes.saturating_add(estimated_bytes(object));
    }
    bytes.checked_div(count).unwrap_or_default()
}
