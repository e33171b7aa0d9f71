//! Finds out whether ClickHouse detects that a compressed stream is cut short.
//!
//! ClickHouse ends some of them without an error (26.7: zstd and lz4), and loads an object of which
//! a part is missing as if it were whole. The server itself is tested: the body of a request passes
//! through the same decoders as an object does.

use super::answers::Answers;
use crate::clickhouse::error_class::{ErrorClass, classify};
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::object::Compression;

/// How a server handles a stream that is cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// The server fails.
    Noticed,
    /// The server accepts the part as the whole, or it is not known whether it does.
    Silent,
    /// The server does not read this compression.
    Unreadable,
}

/// The number of tries without a response, while the server responds to a ping.
const MAX_TRIES: usize = 3;
const SYNTAX_ERROR: u32 = 62;

/// How the server handles such a stream, for each compression that was tested.
#[derive(Debug, Default)]
pub struct Truncations(Answers<Compression, Truncation>);

impl Truncations {
    /// Returns the cached result, unless it has expired.
    pub fn known(&self, compression: Compression) -> Option<Truncation> {
        self.0.known(&compression)
    }

    /// Tests how the server handles such a stream.
    ///
    /// # Errors
    ///
    /// Fails if the server does not respond, or cannot run any statement at present.
    pub async fn ask(
        &self,
        compression: Compression,
        warehouse: &Warehouse,
    ) -> Result<Truncation, WarehouseError> {
        let truncation = truncation(compression, warehouse).await?;
        self.0.learn(compression, truncation);
        Ok(truncation)
    }
}

async fn truncation(
    compression: Compression,
    warehouse: &Warehouse,
) -> Result<Truncation, WarehouseError> {
    let Some(Sample { encoding, stream }) = sample(compression) else {
        return Ok(Truncation::Noticed);
    };
    match accepts(warehouse, encoding, stream).await? {
        Accepted::Yes => {}
        Accepted::No => return Ok(Truncation::Unreadable),
        Accepted::Unanswered => return Ok(Truncation::Silent),
    }
    // Cut in the middle, and with only the last byte missing.
    for end in [stream.len() / 2, stream.len() - 1] {
        if accepts(warehouse, encoding, &stream[..end]).await? != Accepted::No {
            return Ok(Truncation::Silent);
        }
    }
    Ok(Truncation::Noticed)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepted {
    Yes,
    No,
    /// The server responds, but not to this request: something in between blocks or changes it.
    Unanswered,
}

async fn accepts(
    warehouse: &Warehouse,
    encoding: &'static str,
    stream: &'static [u8],
) -> Result<Accepted, WarehouseError> {
    for _ in 0..MAX_TRIES {
        match warehouse.run_encoded(NOTHING, encoding, stream).await {
            Ok(()) => return Ok(Accepted::Yes),
            Err(error @ WarehouseError::Server { .. }) => {
                return match classify(&error) {
                    // The body was not decompressed.
                    _ if error.code() == Some(SYNTAX_ERROR) => Ok(Accepted::Unanswered),
                    ErrorClass::Halt | ErrorClass::Wait | ErrorClass::Overload => Err(error),
                    _ => Ok(Accepted::No),
                };
            }
            Err(_) => warehouse.ping().await?,
        }
    }
    Ok(Accepted::Unanswered)
}

/// The statement before the sample. The sample adds white space, of which any part may be missing.
/// Nothing is read or written, and no grant is required.
const NOTHING: &str = "SELECT 1 FORMAT Null";

struct Sample {
    /// The name of the compression in `Content-Encoding`.
    encoding: &'static str,
    /// 48 characters of white space, compressed.
    stream: &'static [u8],
}

fn sample(compression: Compression) -> Option<Sample> {
    Some(match compression {
        Compression::None => return None,
        Compression::Gzip => Sample {
            encoding: "gzip",
            stream: b"\
        \x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xe2\x52\xe0\x52\x50\x00\x63\x05\x2e\x04\
        \x0b\xc6\x45\x92\x03\x03\x05\x05\x00\x00\x00\x00\xff\xff\x03\x00\xd1\xe9\xe9\xf7\
        \x30\x00\x00\x00",
        },
        Compression::Zstd => Sample {
            encoding: "zstd",
            stream: b"\
        \x28\xb5\x2f\xfd\x04\x58\xdc\x00\x00\x70\x0a\x20\x0a\x20\x20\x20\x0a\x0a\x0a\x0a\
        \x0a\x0a\x20\x20\x04\x00\x3f\x0d\xc8\x24\xa0\x65\xf1\xad\xd3\x02\x01\x00\x00\xa5\
        \x9e\xb5\x1a",
        },
        Compression::Lz4 => Sample {
            encoding: "lz4",
            stream: b"\
        \x04\x22\x4d\x18\x40\x50\x77\x1b\x00\x00\x00\x51\x0a\x20\x0a\x20\x20\x04\x00\x26\
        \x20\x0a\x0a\x00\x04\x0f\x00\x07\x1c\x00\x70\x0a\x0a\x0a\x0a\x0a\x20\x20\x00\x00\
        \x00\x00",
        },
        Compression::Brotli => Sample {
            encoding: "br",
            stream: b"\
        \x1f\x2f\x00\x00\xa4\x14\x40\xc0\x21\x87\x70\x10\xfc\xd6\x3c\xa4\x00\xeb\x41\x81\
        \x2a\xe8\xcb\xb0\xdf\x74",
        },
        Compression::Bzip2 => Sample {
            encoding: "bz2",
            stream: b"\
        \x42\x5a\x68\x39\x31\x41\x59\x26\x53\x59\xa7\x07\xf9\xa6\x00\x00\x05\xd0\x00\x48\
        \x10\x40\x00\x20\x00\x30\xcd\x34\x11\x35\x1c\x1c\x13\x58\xda\xc0\x59\x7a\x97\x2f\
        \x8b\xb9\x22\x9c\x28\x48\x53\x83\xfc\xd3\x00",
        },
        Compression::Xz => Sample {
            encoding: "xz",
            stream: b"\
        \xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x01\x04\x00\x21\x01\x16\x00\
        \x0d\x86\x35\x1f\xe0\x00\x2f\x00\x13\x5d\x00\x05\x08\xe3\x0e\xbb\xf4\x9b\x44\xf7\
        \xb6\x73\x9f\xaa\xcf\xab\xaf\x36\xb6\x00\x00\x00\x67\xa0\x76\x03\x5c\x12\xc9\xde\
        \x00\x01\x2f\x30\xea\xbd\x43\x14\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a",
        },
        Compression::Snappy => Sample {
            encoding: "snappy",
            stream: b"\
        \xff\x06\x00\x00\x73\x4e\x61\x50\x70\x59\x00\x29\x00\x00\x4f\x14\xd2\x8a\x30\x10\
        \x0a\x20\x0a\x20\x20\x05\x04\x04\x20\x0a\x19\x0a\x00\x20\x01\x14\x00\x0a\x09\x18\
        \x34\x0a\x20\x20\x20\x20\x0a\x0a\x0a\x0a\x0a\x0a\x0a\x20\x20",
        },
        Compression::Deflate => Sample {
            encoding: "deflate",
            stream: b"\
        \x78\x9c\xe2\x52\xe0\x52\x50\x00\x63\x05\x2e\x04\x0b\xc6\x45\x92\x03\x03\x05\x05\
        \x00\x00\x00\x00\xff\xff\x03\x00\x72\x1a\x04\x75",
        },
    })
}
