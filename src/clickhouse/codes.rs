//! The error codes of ClickHouse that show what is at fault, with their diagnoses, in one table.
//! The names are ClickHouse's own: a test compares them with `errorCodeToName`.

use super::error_class::{Diagnosis, ErrorClass, PauseReason};

/// An error that is not in the table is treated as transient: a retry is harmless, and the number
/// of attempts is bounded.
pub(super) const UNKNOWN: Diagnosis = Diagnosis::of(ErrorClass::Retry);

/// Returns the diagnosis of an error of the server, the account or the schema, for which no object
/// is at fault.
const fn halt(pause: PauseReason) -> Diagnosis {
    Diagnosis::of(ErrorClass::Halt).pause(pause)
}

const SERVER: Diagnosis = halt(PauseReason::Other);
const NO_SPACE: Diagnosis = halt(PauseReason::NoSpace);
const UNSUPPORTED: Diagnosis = SERVER.advice(
    "the engine, a projection or a setting of the table does not allow this statement: resolve the \
     conflict that the error names",
);
const AUTHENTICATION: Diagnosis =
    halt(PauseReason::Authentication).advice("check `clickhouse.user` and `clickhouse.password`");
const PERMISSION: Diagnosis =
    halt(PauseReason::Permission).advice("grant the user the privilege that the error names");
const SCHEMA: Diagnosis = halt(PauseReason::Schema)
    .advice("the tables do not match the declared event types: run `sluice migrate`");
const READ_ONLY: Diagnosis =
    halt(PauseReason::ReadOnly).advice("make the server or table writable");
/// Outage: a replicated table is read-only while its session with ClickHouse Keeper is lost.
const TABLE_READ_ONLY: Diagnosis = halt(PauseReason::ReadOnly).advice(
    "make the table writable; a replicated table becomes writable by itself once its session with \
     ClickHouse Keeper is back: check ClickHouse Keeper and `system.replicas`",
);
const QUOTA: Diagnosis = halt(PauseReason::Quota).advice(
    "intake resumes when the quota's interval ends: raise the quota of `clickhouse.user`, or raise \
     `batch.window`, since longer windows need fewer statements",
);
/// Outage: replicas or ClickHouse Keeper are unavailable.
pub(super) const REPLICATION: Diagnosis = halt(PauseReason::Replication).advice(
    "the table's replicas or ClickHouse Keeper are unavailable or lagging: check \
     `system.replicas`, and `insert_quorum` in the profile of `clickhouse.user`",
);
/// Waiting: the quorum of another insert is pending, or this replica does not have yet what others
/// have written with a quorum. Nothing is unavailable, and the statement succeeds a little later.
const CATCHING_UP: Diagnosis = Diagnosis {
    error_class: ErrorClass::Wait,
    ..REPLICATION
};
/// Unknown: the insert may be committed, or become so, or be lost. As in an outage, it is killed
/// and repeated under its token, and the tables are then compared with the counts.
const UNCONFIRMED: Diagnosis = halt(PauseReason::Replication).advice(
    "replicas or ClickHouse Keeper did not confirm an insert in time: check `system.replicas`, and \
     `insert_quorum_timeout` in the profile of `clickhouse.user`",
);
/// Unknown: the statement was ended by its time limit, and may have written something. Objects can
/// be too large for the limit, or the server too slow.
const TIME_LIMIT: Diagnosis = UNKNOWN.advice(
    "the statement exceeds its time limit: raise `clickhouse.insert_timeout`, or \
     `max_execution_time` in the profile of `clickhouse.user`",
);
/// Unknown: a connection of the server broke, to S3 as well as to another server.
const NETWORK: Diagnosis = UNKNOWN.advice(
    "a connection of ClickHouse to S3, to another server or to ClickHouse Keeper failed: check \
     its network",
);
/// Unknown: a mutation continues, has failed or was killed.
const MUTATION: Diagnosis = UNKNOWN.advice(
    "a mutation has not finished: `system.mutations` shows why; KILL MUTATION ends one that can \
     never finish",
);
const TOO_MANY_PARTS: Diagnosis = halt(PauseReason::TooManyParts).advice(
    "merges are lagging behind: Sluice slows down; a longer `batch.window` creates fewer parts",
);
const NAMED_COLLECTION: Diagnosis = halt(PauseReason::S3Access)
    .advice("ClickHouse has no access to the bucket: check `s3.clickhouse_access`");
pub(super) const SETTINGS: Diagnosis = halt(PauseReason::Settings).advice(
    "the user's profile blocks a setting that every Sluice statement requires: remove the \
     constraint, or `readonly`, in the profile of `clickhouse.user`",
);
/// The server as a whole lacks a resource, or the batch is too large for it.
const OVERLOAD: Diagnosis = Diagnosis::of(ErrorClass::Overload)
    .pause(PauseReason::Overload)
    .advice(
        "ClickHouse is short of memory or slots: Sluice slows down; a smaller `batch.max_bytes` or \
         `load.concurrency` reduces the load",
    );
/// One statement exceeds Sluice's own limits or those of the user's profile. A smaller batch may
/// pass.
pub(super) const TOO_LARGE: Diagnosis = Diagnosis::of(ErrorClass::TooLarge)
    .pause(PauseReason::Limits)
    .advice(
        "`load.max_memory`, or a limit in the user's profile, is too low for this statement: raise \
         it, or lower `batch.max_bytes`",
    );
/// The user's profile does not allow such a statement. A part of the batch may pass, or nothing.
const LIMITS: Diagnosis = UNKNOWN.pause(PauseReason::Limits).advice(
    "a limit in the user's profile is too low for Sluice's statements: raise the limit that the \
     error names, in the profile of `clickhouse.user`",
);
/// The server cannot reach S3's address.
pub(super) const UNREACHABLE_ENDPOINT: Diagnosis = Diagnosis::of(ErrorClass::Stream)
    .pause(PauseReason::S3Access)
    .advice(
        "ClickHouse cannot reach S3: check `s3.clickhouse_endpoint` and `s3.clickhouse_access`, or \
         let the worker read the objects (`load.fallback`)",
    );
/// S3 does not respond to ClickHouse, unless the text shows another problem.
const S3_AWAY: Diagnosis = UNKNOWN.pause(PauseReason::S3Access).advice(
    "if this persists, check ClickHouse's connection to S3 (network, `s3.clickhouse_endpoint`)",
);
/// The content of an object is at fault.
pub const CONTENT: Diagnosis = Diagnosis::of(ErrorClass::ObjectFault);

pub(super) const S3_ERROR: u32 = 499;

/// Each code with ClickHouse's name for it and its diagnosis.
pub const CODES: &[(u32, &str, Diagnosis)] = &[
    (16, "NO_SUCH_COLUMN_IN_TABLE", SCHEMA),
    (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED", CONTENT),
    (36, "BAD_ARGUMENTS", SCHEMA),
    (47, "UNKNOWN_IDENTIFIER", SCHEMA),
    (48, "NOT_IMPLEMENTED", UNKNOWN),
    (53, "TYPE_MISMATCH", SCHEMA),
    (60, "UNKNOWN_TABLE", SCHEMA),
    (62, "SYNTAX_ERROR", SERVER),
    (72, "CANNOT_PARSE_NUMBER", CONTENT),
    (81, "UNKNOWN_DATABASE", SCHEMA),
    (115, "UNKNOWN_SETTING", SERVER),
    (117, "INCORRECT_DATA", CONTENT),
    (158, "TOO_MANY_ROWS", TOO_LARGE),
    (159, "TIMEOUT_EXCEEDED", TIME_LIMIT),
    (160, "TOO_SLOW", LIMITS),
    (161, "TOO_MANY_COLUMNS", LIMITS),
    (162, "TOO_DEEP_SUBQUERIES", LIMITS),
    (164, "READONLY", READ_ONLY),
    (173, "CANNOT_ALLOCATE_MEMORY", OVERLOAD),
    (191, "SET_SIZE_LIMIT_EXCEEDED", LIMITS),
    (192, "UNKNOWN_USER", AUTHENTICATION),
    (193, "WRONG_PASSWORD", AUTHENTICATION),
    (194, "REQUIRED_PASSWORD", AUTHENTICATION),
    (195, "IP_ADDRESS_NOT_ALLOWED", AUTHENTICATION),
    (198, "DNS_ERROR", UNREACHABLE_ENDPOINT),
    (201, "QUOTA_EXCEEDED", QUOTA),
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES", OVERLOAD),
    (203, "NO_FREE_CONNECTION", OVERLOAD),
    (209, "SOCKET_TIMEOUT", NETWORK),
    (210, "NETWORK_ERROR", NETWORK),
    (218, "TABLE_IS_DROPPED", SCHEMA),
    (225, "NO_ZOOKEEPER", REPLICATION),
    (241, "MEMORY_LIMIT_EXCEEDED", OVERLOAD),
    (242, "TABLE_IS_READ_ONLY", TABLE_READ_ONLY),
    (243, "NOT_ENOUGH_SPACE", NO_SPACE),
    (244, "UNEXPECTED_ZOOKEEPER_ERROR", REPLICATION),
    (252, "TOO_MANY_PARTS", TOO_MANY_PARTS),
    (254, "NO_ACTIVE_REPLICAS", REPLICATION),
    (279, "ALL_CONNECTION_TRIES_FAILED", REPLICATION),
    (285, "TOO_FEW_LIVE_REPLICAS", REPLICATION),
    (286, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", CATCHING_UP),
    (289, "REPLICA_IS_NOT_IN_QUORUM", CATCHING_UP),
    (291, "DATABASE_ACCESS_DENIED", PERMISSION),
    (307, "TOO_MANY_BYTES", TOO_LARGE),
    (319, "UNKNOWN_STATUS_OF_INSERT", UNCONFIRMED),
    (341, "UNFINISHED", MUTATION),
    (344, "SUPPORT_IS_DISABLED", UNSUPPORTED),
    (354, "ZLIB_INFLATE_FAILED", CONTENT),
    (364, "RECEIVED_ERROR_TOO_MANY_REQUESTS", OVERLOAD),
    (395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", UNKNOWN),
    (396, "TOO_MANY_ROWS_OR_BYTES", TOO_LARGE),
    (415, "ALL_REPLICAS_LOST", REPLICATION),
    (439, "CANNOT_SCHEDULE_TASK", OVERLOAD),
    (448, "BROTLI_READ_FAILED", CONTENT),
    (452, "SETTING_CONSTRAINT_VIOLATION", SETTINGS),
    (472, "READONLY_SETTING", SETTINGS),
    (491, "UNACCEPTABLE_URL", UNREACHABLE_ENDPOINT),
    (497, "ACCESS_DENIED", PERMISSION),
    (S3_ERROR, "S3_ERROR", S3_AWAY),
    (516, "AUTHENTICATION_FAILED", AUTHENTICATION),
    (554, "LZMA_STREAM_DECODER_FAILED", CONTENT),
    (561, "ZSTD_DECODER_FAILED", CONTENT),
    (594, "BZIP2_STREAM_DECODER_FAILED", CONTENT),
    (618, "LZ4_DECODER_FAILED", CONTENT),
    (638, "SNAPPY_UNCOMPRESS_FAILED", CONTENT),
    (669, "NAMED_COLLECTION_DOESNT_EXIST", NAMED_COLLECTION),
    (700, "USER_SESSION_LIMIT_EXCEEDED", OVERLOAD),
    (720, "USER_EXPIRED", AUTHENTICATION),
    (745, "SERVER_OVERLOADED", OVERLOAD),
    (749, "TCP_CONNECTION_LIMIT_REACHED", OVERLOAD),
    (762, "HTTP_CONNECTION_LIMIT_REACHED", OVERLOAD),
    (774, "TABLE_IS_PERMANENTLY_READ_ONLY", READ_ONLY),
    (776, "RESOURCE_LIMIT_EXCEEDED", OVERLOAD),
    (777, "MEMORY_RESERVATION_KILLED", OVERLOAD),
    (778, "MEMORY_RESERVATION_FAILED", OVERLOAD),
    (999, "KEEPER_EXCEPTION", REPLICATION),
];

/// Returns the diagnosis of an error by its code alone.
pub(super) fn diagnosis(code: u32) -> Diagnosis {
    let known = CODES.iter().find(|(known, ..)| *known == code);
    known.map_or(UNKNOWN, |(_, _, diagnosis)| *diagnosis)
}
