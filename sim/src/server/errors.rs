//! The errors of the server, as ClickHouse words them.

use std::fmt::Display;
use std::time::Duration;

use sluice::clickhouse::WarehouseError;
use sluice::clickhouse::codes::CODES;
use sluice::object::{Compression, ObjectRef};
use sluice::statements::ddl::LANDING_PREFIX;
use sluice::statements::guard::{CHANGED_TEXT, FENCED_TEXT};

use crate::s3::ReadError;

const SYNTAX_ERROR: u32 = 62;
const TIMEOUT_EXCEEDED: u32 = 159;
const TABLE_DOES_NOT_EXIST: u32 = 60;
const ALL_CONNECTION_TRIES_FAILED: u32 = 279;
const QUERY_WAS_CANCELLED: u32 = 394;
const THROWN: u32 = 395;
const S3_ERROR: u32 = 499;

fn server(code: u32, words: impl Display) -> WarehouseError {
    let known = CODES.iter().find(|(known, ..)| *known == code);
    let name = match known {
        Some((_, name, _)) => *name,
        None if code == QUERY_WAS_CANCELLED => "QUERY_WAS_CANCELLED",
        None => "UNKNOWN_EXCEPTION",
    };
    let text = format!("Code: {code}. DB::Exception: {words}. ({name}) (version 26.7.2.1)");
    WarehouseError::Server { code, text }
}

/// Returns the error of a request whose answer did not come.
pub(super) fn no_answer() -> WarehouseError {
    WarehouseError::Unknown("connection reset by peer".to_owned())
}

pub(super) fn refused_connection() -> WarehouseError {
    WarehouseError::Unknown("tcp connect error: Connection refused".to_owned())
}

/// Returns the error of a request whose server crashed.
pub(super) fn closed() -> WarehouseError {
    WarehouseError::Unknown("connection closed before message completed".to_owned())
}

pub(super) fn no_response_within(timeout: Duration) -> WarehouseError {
    WarehouseError::Unknown(format!("no response within {} s", timeout.as_secs()))
}

pub(super) fn syntax() -> WarehouseError {
    server(SYNTAX_ERROR, "Syntax error: failed at position 1")
}

pub(super) fn unknown_table(table: &str) -> WarehouseError {
    server(TABLE_DOES_NOT_EXIST, format_args!("Unknown table {table}"))
}

/// Returns the error with which a server refuses or fails a statement for this code.
pub(super) fn of_code(code: u32) -> WarehouseError {
    let words = match code {
        159 => "Timeout exceeded: elapsed 600.1 seconds, maximum: 600",
        201 => "Quota for user `sluice` for 3600s has been exceeded: queries = 1001/1000",
        202 => "Too many simultaneous queries. Maximum: 100",
        210 => "Connection refused",
        225 => "Can't get ZooKeeper session",
        241 => "Memory limit (total) exceeded: would use 10.01 GiB, maximum: 10.00 GiB",
        242 => "Table is in readonly mode (replica path: /clickhouse/tables/t/replicas/a)",
        243 => "Cannot reserve 1.00 MiB, not enough space",
        252 => {
            "Too many parts (3000 with average size of 1.00 MiB). Merges are processing \
             significantly slower than inserts"
        }
        286 => "Quorum for previous write has not been satisfied yet",
        319 => "Unknown status of part (Reason: Session expired)",
        396 => "Limit for rows or bytes to read exceeded, max rows: 2.00 million",
        516 => "sluice: Authentication failed: password is incorrect",
        999 => "Session expired",
        _ => "simulated",
    };
    server(code, words)
}

/// Returns the error of a statement of all servers while one of them is down.
pub(super) fn unreachable_replica() -> WarehouseError {
    server(ALL_CONNECTION_TRIES_FAILED, "All connection tries failed")
}

pub(super) fn killed() -> WarehouseError {
    server(QUERY_WAS_CANCELLED, "Query was cancelled")
}

/// Returns the error of a statement that has exceeded its time limit.
pub(super) fn too_slow(limit: Duration) -> WarehouseError {
    let seconds = limit.as_secs();
    let words = format!("Timeout exceeded: elapsed {seconds}.1 seconds, maximum: {seconds}");
    server(TIMEOUT_EXCEEDED, words)
}

/// Returns the error of the guard.
pub(super) fn fenced() -> WarehouseError {
    server(
        THROWN,
        format_args!(
            "{FENCED_TEXT}: while executing 'FUNCTION throwIf(__scalar, '{FENCED_TEXT}')'"
        ),
    )
}

/// Returns the error of an insert in a user's view on this table. `landing` is whether the insert
/// is into the landing table.
pub(super) fn of_view(table: &str, landing: bool) -> WarehouseError {
    let own = match landing {
        true => format!(": while pushing to view db.{LANDING_PREFIX}sim_to_{table}"),
        false => String::new(),
    };
    let words = format!(
        "seven: while executing 'FUNCTION throwIf(equals(x, 7) :: 1)': while pushing to view \
         d.user_view{own}"
    );
    server(THROWN, words)
}

/// Returns the error of a read of an object.
pub(super) fn of_read(error: ReadError, object: &ObjectRef) -> WarehouseError {
    let path = object.path();
    let of_s3 = |words: &str| server(S3_ERROR, format_args!("{words}: while reading {path}"));
    match error {
        ReadError::Changed => {
            let guards = format!("'{FENCED_TEXT}', '{CHANGED_TEXT}'");
            let words = format!("{CHANGED_TEXT}: while executing 'FUNCTION and({guards})'");
            server(THROWN, words)
        }
        ReadError::Missing => {
            of_s3("The specified key does not exist. HTTP response code: 404, NoSuchKey")
        }
        ReadError::Denied => of_s3("Access Denied. HTTP response code: 403, AccessDenied"),
        ReadError::Unavailable => of_s3("HTTP response code: 503, SlowDown"),
    }
}

/// Returns the error with which the server's decoder notices that an object is cut short, or `None`
/// if it does not notice: a plain object has no end, and ClickHouse (26.7) accepts a part of a zstd
/// or lz4 stream.
pub(super) fn of_cut(object: &ObjectRef) -> Option<WarehouseError> {
    let (code, problem) = cut(Compression::of(&object.key))?;
    let path = object.path();
    let words = format!("{problem}: While reading from: {path}: (in file/uri {path})");
    Some(server(code, words))
}

/// Returns whether the server notices that a stream of this compression is cut short.
pub(super) fn notices_cut(compression: Compression) -> bool {
    compression == Compression::None || cut(compression).is_some()
}

fn cut(compression: Compression) -> Option<(u32, &'static str)> {
    match compression {
        Compression::None | Compression::Zstd | Compression::Lz4 => None,
        Compression::Gzip | Compression::Deflate => Some((354, "inflate failed: buffer error")),
        Compression::Brotli => Some((448, "brotli decode error")),
        Compression::Bzip2 => Some((594, "bzip2 decoder failed: unexpected end of file")),
        Compression::Xz => Some((554, "lzma decoder finished unexpectedly")),
        Compression::Snappy => Some((638, "snappy uncompress failed")),
    }
}
