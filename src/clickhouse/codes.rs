//! Errors of ClickHouse that say who is at fault, by code. Names are ClickHouse's own: a test
//! compares them with `errorCodeToName`.

use super::error_class::PauseReason;

/// Nothing that an object could be blamed for: the server, the account or the schema.
pub const HALT: &[(u32, &str, PauseReason)] = &[
    (16, "NO_SUCH_COLUMN_IN_TABLE", PauseReason::Schema),
    (36, "BAD_ARGUMENTS", PauseReason::Schema),
    (47, "UNKNOWN_IDENTIFIER", PauseReason::Schema),
    (53, "TYPE_MISMATCH", PauseReason::Schema),
    (60, "UNKNOWN_TABLE", PauseReason::Schema),
    (62, "SYNTAX_ERROR", PauseReason::Other),
    (81, "UNKNOWN_DATABASE", PauseReason::Schema),
    (115, "UNKNOWN_SETTING", PauseReason::Other),
    (164, "READONLY", PauseReason::ReadOnly),
    (192, "UNKNOWN_USER", PauseReason::Authentication),
    (193, "WRONG_PASSWORD", PauseReason::Authentication),
    (194, "REQUIRED_PASSWORD", PauseReason::Authentication),
    (195, "IP_ADDRESS_NOT_ALLOWED", PauseReason::Authentication),
    (201, "QUOTA_EXCEEDED", PauseReason::Quota),
    (218, "TABLE_IS_DROPPED", PauseReason::Schema),
    (225, "NO_ZOOKEEPER", PauseReason::Replication),
    (242, "TABLE_IS_READ_ONLY", PauseReason::ReadOnly),
    (243, "NOT_ENOUGH_SPACE", PauseReason::NoSpace),
    (252, "TOO_MANY_PARTS", PauseReason::TooManyParts),
    (254, "NO_ACTIVE_REPLICAS", PauseReason::Replication),
    (285, "TOO_FEW_LIVE_REPLICAS", PauseReason::Replication),
    (
        286,
        "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
        PauseReason::Replication,
    ),
    (289, "REPLICA_IS_NOT_IN_QUORUM", PauseReason::Replication),
    (291, "DATABASE_ACCESS_DENIED", PauseReason::Permission),
    (319, "UNKNOWN_STATUS_OF_INSERT", PauseReason::Replication),
    (344, "SUPPORT_IS_DISABLED", PauseReason::Other),
    (415, "ALL_REPLICAS_LOST", PauseReason::Replication),
    (452, "SETTING_CONSTRAINT_VIOLATION", PauseReason::Settings),
    (472, "READONLY_SETTING", PauseReason::Settings),
    (497, "ACCESS_DENIED", PauseReason::Permission),
    (516, "AUTHENTICATION_FAILED", PauseReason::Authentication),
    (669, "NAMED_COLLECTION_DOESNT_EXIST", PauseReason::S3Access),
    (720, "USER_EXPIRED", PauseReason::Authentication),
    (774, "TABLE_IS_PERMANENTLY_READ_ONLY", PauseReason::ReadOnly),
    (999, "KEEPER_EXCEPTION", PauseReason::Replication),
];

/// The server as a whole is short of something; a batch can also be too much for it.
pub const OVERLOAD: &[(u32, &str)] = &[
    (173, "CANNOT_ALLOCATE_MEMORY"),
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES"),
    (203, "NO_FREE_CONNECTION"),
    (241, "MEMORY_LIMIT_EXCEEDED"),
    (364, "RECEIVED_ERROR_TOO_MANY_REQUESTS"),
    (439, "CANNOT_SCHEDULE_TASK"),
    (700, "USER_SESSION_LIMIT_EXCEEDED"),
    (745, "SERVER_OVERLOADED"),
    (749, "TCP_CONNECTION_LIMIT_REACHED"),
    (762, "HTTP_CONNECTION_LIMIT_REACHED"),
    (776, "RESOURCE_LIMIT_EXCEEDED"),
    (777, "MEMORY_RESERVATION_KILLED"),
    (778, "MEMORY_RESERVATION_FAILED"),
];

/// One statement takes more than it may, by Sluice's own limits or those of the user's profile: less
/// at a time may pass.
pub const TOO_LARGE: &[(u32, &str)] = &[
    (158, "TOO_MANY_ROWS"),
    (307, "TOO_MANY_BYTES"),
    (396, "TOO_MANY_ROWS_OR_BYTES"),
];

/// The user's profile does not allow such a statement: a part of the batch may pass, or nothing at
/// all.
pub const LIMITS: &[(u32, &str)] = &[
    (160, "TOO_SLOW"),
    (161, "TOO_MANY_COLUMNS"),
    (162, "TOO_DEEP_SUBQUERIES"),
    (191, "SET_SIZE_LIMIT_EXCEEDED"),
];

/// The content of an object.
pub const CONTENT: &[(u32, &str)] = &[
    (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED"),
    (72, "CANNOT_PARSE_NUMBER"),
    (117, "INCORRECT_DATA"),
    (354, "ZLIB_INFLATE_FAILED"),
    (448, "BROTLI_READ_FAILED"),
    (554, "LZMA_STREAM_DECODER_FAILED"),
    (561, "ZSTD_DECODER_FAILED"),
    (594, "BZIP2_STREAM_DECODER_FAILED"),
    (618, "LZ4_DECODER_FAILED"),
    (638, "SNAPPY_UNCOMPRESS_FAILED"),
];

/// From this server no way leads to this address.
pub const NO_WAY: &[(u32, &str)] = &[(198, "DNS_ERROR"), (491, "UNACCEPTABLE_URL")];

/// Codes whose meaning is in their text.
pub const BY_TEXT: &[(u32, &str)] = &[
    (48, "NOT_IMPLEMENTED"),
    (395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
    (499, "S3_ERROR"),
];

pub(super) fn is_in(codes: &[(u32, &str)], code: u32) -> bool {
    codes.iter().any(|(known, _)| *known == code)
}

/// Returns the reason for which such an error pauses intake.
pub(super) fn halt_reason(code: u32) -> Option<PauseReason> {
    let known = HALT.iter().find(|(known, ..)| *known == code);
    known.map(|(_, _, reason)| *reason)
}
