//! What a failed insert means: one table for every outcome.

use crate::store::StoreError;
use crate::warehouse::WarehouseError;

/// What to do about an insert that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Transient, or nobody knows: kill what may run, then the identical statement again.
    Replay,
    /// ClickHouse has too much to do: as `Replay`, and intake pauses meanwhile.
    Overload,
    /// ClickHouse is away or wrongly set up: pause intake, hold what is held, probe, resume.
    Halt,
    /// An object's own fault: isolate it, load its batch-mates.
    ObjectFault,
    /// S3 refuses: as `Stream` where the worker can read it, as `ObjectFault` where other objects
    /// can be read, else as `Halt`.
    Denied,
    /// ClickHouse cannot read it and never will: the worker does, where it can; else as `Halt`.
    Stream,
    /// An object is not what was announced any more: look at what is there now.
    Changed,
    /// Somebody else has taken the batch over.
    Fenced,
}

impl Verdict {
    /// The value of the `verdict` label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Overload => "overload",
            Self::Halt => "halt",
            Self::ObjectFault => "object_fault",
            Self::Denied => "denied",
            Self::Stream => "stream",
            Self::Changed => "changed",
            Self::Fenced => "fenced",
        }
    }
}

/// The text with which the guard in a statement refuses to start; ClickHouse's own error is 395,
/// `FUNCTION_THROW_IF_VALUE_IS_NON_ZERO`, for both.
pub const FENCED_TEXT: &str = "sluice: this batch is fenced";
pub const CHANGED_TEXT: &str = "sluice: an object changed since it was announced";

/// What begins the reason why an object failed of which too much was rejected.
pub const TOO_MANY_REJECTED_TEXT: &str = "too many lines are rejected";

/// Nothing that a batch could be blamed for: the server, the account or the schema. Names are
/// ClickHouse's own, from `system.errors`.
const HALT: &[u32] = &[
    16,  // NO_SUCH_COLUMN_IN_TABLE
    36,  // BAD_ARGUMENTS
    47,  // UNKNOWN_IDENTIFIER
    53,  // TYPE_MISMATCH
    60,  // UNKNOWN_TABLE
    62,  // SYNTAX_ERROR
    81,  // UNKNOWN_DATABASE
    115, // UNKNOWN_SETTING
    164, // READONLY
    192, // UNKNOWN_USER
    193, // WRONG_PASSWORD
    194, // REQUIRED_PASSWORD
    242, // TABLE_IS_READ_ONLY
    243, // NOT_ENOUGH_SPACE
    252, // TOO_MANY_PARTS
    291, // DATABASE_ACCESS_DENIED
    344, // SUPPORT_IS_DISABLED
    452, // SETTING_CONSTRAINT_VIOLATION
    497, // ACCESS_DENIED
    516, // AUTHENTICATION_FAILED
    669, // NAMED_COLLECTION_DOESNT_EXIST
];

/// The server as a whole is short of something; a batch can also be too much for it.
const OVERLOAD: &[u32] = &[
    202, // TOO_MANY_SIMULTANEOUS_QUERIES
    241, // MEMORY_LIMIT_EXCEEDED
];

/// The content of an object.
const OBJECT_FAULT: &[u32] = &[
    27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
    72,  // CANNOT_PARSE_NUMBER
    117, // INCORRECT_DATA
    354, // ZLIB_INFLATE_FAILED
    448, // BROTLI_READ_FAILED
    554, // LZMA_STREAM_DECODER_FAILED
    561, // ZSTD_DECODER_FAILED
    618, // LZ4_DECODER_FAILED
    638, // SNAPPY_UNCOMPRESS_FAILED
];

/// From this server no way leads to this address.
const NO_WAY: &[u32] = &[
    198, // DNS_ERROR
    491, // UNACCEPTABLE_URL
];

pub fn verdict(error: &WarehouseError) -> Verdict {
    let (code, text) = match error {
        WarehouseError::Server { code, text } => (code, text),
        WarehouseError::Unknown(_) => return Verdict::Replay,
        WarehouseError::Source(error) => return source_verdict(error),
        WarehouseError::Hidden { .. } | WarehouseError::Unfilled { .. } => return Verdict::Halt,
    };
    match *code {
        395 => thrown(text),
        // S3_ERROR: a missing object, a refusal and an S3 that is away look alike but for the text.
        499 => s3_verdict(text),
        // NOT_IMPLEMENTED: what the object's name says of its compression.
        48 if says(text, &["Unsupported compression method"]) => Verdict::ObjectFault,
        code if NO_WAY.contains(&code) => Verdict::Stream,
        // It may not use the server's own rights in S3; else it is the user's right to a table.
        497 if says(
            text,
            &["the server's own credentials", "server_credentials"],
        ) =>
        {
            Verdict::Stream
        }
        code if HALT.contains(&code) => Verdict::Halt,
        code if OVERLOAD.contains(&code) => Verdict::Overload,
        code if OBJECT_FAULT.contains(&code) => Verdict::ObjectFault,
        // What is not known to be somebody's fault is taken for passing: a replay harms nothing,
        // and the attempts are bounded.
        _ => Verdict::Replay,
    }
}

/// Which guard has thrown. The error begins with its text, and then quotes the condition, hence the
/// texts of both.
fn thrown(text: &str) -> Verdict {
    let guards = [
        (FENCED_TEXT, Verdict::Fenced),
        (CHANGED_TEXT, Verdict::Changed),
    ];
    guards
        .into_iter()
        .filter_map(|(words, verdict)| Some((text.find(words)?, verdict)))
        .min_by_key(|(position, _)| *position)
        .map_or(Verdict::Replay, |(_, verdict)| verdict)
}

/// S3's part of an error. Behind it stands the object's name, which can be anything, S3's words
/// included.
fn before_the_name(text: &str) -> &str {
    text.split_once("hile reading ")
        .map_or(text, |(words, _)| words)
}

/// Whether S3 says that an object does not exist.
pub fn is_missing(text: &str) -> bool {
    says(
        text,
        &[
            "HTTP response code: 404",
            "NoSuchKey",
            "The specified key does not exist",
        ],
    )
}

/// Whether S3 refuses to show an object.
pub fn is_refusal(text: &str) -> bool {
    says(text, REFUSALS)
}

fn says(text: &str, words: &[&str]) -> bool {
    let text = before_the_name(text);
    words.iter().any(|word| text.contains(word))
}

/// What kept the worker from an object.
fn source_verdict(error: &StoreError) -> Verdict {
    match error {
        _ if error.is_missing() => Verdict::ObjectFault,
        StoreError::Refused { status: 412, .. } => Verdict::Changed,
        StoreError::Refused { status, code, .. }
            if matches!(status, 403 | 404) || is_refusal(code) =>
        {
            Verdict::Denied
        }
        StoreError::Refused { .. } => Verdict::Replay,
        StoreError::Content { .. } => Verdict::ObjectFault,
        StoreError::Unavailable { .. } => Verdict::Replay,
    }
}

fn s3_verdict(text: &str) -> Verdict {
    if says(text, &["DNS_ERROR", "Not found address of host"]) {
        return Verdict::Stream;
    }
    // A bucket that is gone answers 404 too.
    if says(text, &["NoSuchBucket"]) {
        Verdict::Denied
    } else if is_missing(text) {
        Verdict::ObjectFault
    } else if is_refusal(text) {
        Verdict::Denied
    } else {
        Verdict::Replay
    }
}

/// S3's words for: you may not.
const REFUSALS: &[&str] = &[
    "HTTP response code: 403",
    "AccessDenied",
    "Access Denied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
];

/// One word for why intake is paused, for a metric's label.
pub fn halt_class(error: &WarehouseError) -> &'static str {
    match error {
        WarehouseError::Unknown(_) => "unreachable",
        WarehouseError::Source(_) => "s3_access",
        WarehouseError::Hidden { .. } => "ledger",
        WarehouseError::Unfilled { .. } => "schema",
        WarehouseError::Server { code, .. } => match code {
            192..=194 | 516 => "authentication",
            _ if verdict(error) == Verdict::Stream => "s3_access",
            291 | 497 => "permission",
            _ if forbids_setting(error) => "settings",
            164 | 242 => "read_only",
            252 => "too_many_parts",
            202 | 241 => "overload",
            243 => "no_space",
            499 | 669 => "s3_access",
            16 | 36 | 47 | 53 | 60 | 81 => "schema",
            _ => "other",
        },
    }
}

/// Returns whether the user may not set what a statement sets: a constraint of its profile forbids
/// that, or `readonly`. ClickHouse names the setting.
fn forbids_setting(error: &WarehouseError) -> bool {
    match error {
        WarehouseError::Server { code: 452, .. } => true,
        WarehouseError::Server { code: 164, text } => text.contains("setting in readonly mode"),
        _ => false,
    }
}

/// The error, and what to do about it where that can be said.
pub fn with_advice(error: &WarehouseError) -> String {
    match advice(error) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

/// What to do about an error, where that can be said.
pub fn advice(error: &WarehouseError) -> Option<&'static str> {
    Some(match error {
        WarehouseError::Unknown(text) => unreachable_advice(text),
        WarehouseError::Source(_) => {
            return match verdict(error) {
                Verdict::Denied => {
                    Some("the worker may not read the bucket: grant its role `s3:GetObject`")
                }
                Verdict::Replay => {
                    Some("if it lasts, check the worker's way to S3 (network, `AWS_ENDPOINT_URL`)")
                }
                _ => None,
            };
        }
        WarehouseError::Hidden { .. } => {
            "without the whole ledger, objects would be loaded twice: drop the row policy that hides \
             rows of it from `clickhouse.user`, and let `clickhouse.url` lead to one server"
        }
        WarehouseError::Unfilled { .. } => {
            "run `sluice migrate`, which creates it; the batch is then rolled back and loaded again"
        }
        _ if verdict(error) == Verdict::Stream => {
            "ClickHouse cannot get at S3: check `s3.clickhouse_endpoint` and \
             `s3.clickhouse_access`, or let the worker read the objects (`load.fallback`)"
        }
        WarehouseError::Server {
            code: 192..=194 | 516,
            ..
        } => "check `clickhouse.user` and `clickhouse.password`",
        WarehouseError::Server {
            code: 16 | 36 | 47 | 53 | 60 | 81,
            ..
        } => "the tables are not as the event types declare them: run `sluice migrate`",
        WarehouseError::Server {
            code: 291 | 497, ..
        } => "grant the user what the error names",
        _ if forbids_setting(error) => {
            "every statement of Sluice sets this, so that the user's profile changes no results: \
             lift the constraint, or `readonly`, in the profile of `clickhouse.user`"
        }
        WarehouseError::Server {
            code: 164 | 242, ..
        } => "make the server or table writable",
        WarehouseError::Server {
            code: 202 | 241, ..
        } => {
            "ClickHouse is short of memory or slots: Sluice slows down; smaller `batch.max_bytes` \
             or `load.concurrency` ask less of it"
        }
        WarehouseError::Server { code: 252, .. } => {
            "merges lag behind: Sluice slows down; a longer `batch.window` makes fewer parts"
        }
        WarehouseError::Server { code: 344, .. } => {
            "the engine, a projection or a setting of the table does not allow this statement: \
             lift what the error names"
        }
        WarehouseError::Server { code: 499, .. } if verdict(error) == Verdict::Replay => {
            "if it lasts, check ClickHouse's way to S3 (network, `s3.clickhouse_endpoint`)"
        }
        WarehouseError::Server {
            code: 499 | 669, ..
        } => "ClickHouse may not read the bucket: check `s3.clickhouse_access`",
        WarehouseError::Server { .. } => return None,
    })
}

fn unreachable_advice(text: &str) -> &'static str {
    if says(text, &["password_file"]) {
        "make the file readable"
    } else if says(text, &["certificate"]) {
        "the server's certificate is not trusted: name its authority in `clickhouse.ca_file`"
    } else if says(text, &["InvalidContentType"]) {
        "the port does not speak TLS: make `clickhouse.url` begin with http://, or name another port"
    } else if says(text, &["invalid HTTP version parsed"]) {
        "the port does not speak HTTP: if it is one for TLS, make `clickhouse.url` begin with \
         https://"
    } else {
        "check that ClickHouse runs, and `clickhouse.url`"
    }
}

/// The object that an error names, out of those of the batch: the one whose path stands in the
/// text, and the longest where one path is the beginning of another.
pub fn named_object<'a>(
    text: &str,
    paths: impl Iterator<Item = (usize, &'a str)>,
) -> Option<usize> {
    paths
        .filter(|(_, key)| !key.is_empty() && text.contains(key))
        .max_by_key(|(_, key)| key.len())
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: u32, text: &str) -> WarehouseError {
        WarehouseError::Server {
            code,
            text: text.into(),
        }
    }

    #[test]
    fn every_outcome_has_its_verdict() {
        let refused = |status, code: &str| StoreError::Refused {
            status,
            code: code.into(),
            path: "b/k".into(),
        };
        for (error, expected) in [
            (
                WarehouseError::Unknown("connection reset".into()),
                Verdict::Replay,
            ),
            (server(395, FENCED_TEXT), Verdict::Fenced),
            (server(395, CHANGED_TEXT), Verdict::Changed),
            (
                server(
                    395,
                    &format!("{CHANGED_TEXT}: while executing and(throwIf('{FENCED_TEXT}'"),
                ),
                Verdict::Changed,
            ),
            (
                server(
                    395,
                    &format!("{FENCED_TEXT}: while executing and(throwIf('{CHANGED_TEXT}'"),
                ),
                Verdict::Fenced,
            ),
            (server(395, "somebody's own throwIf"), Verdict::Replay),
            (
                server(499, "HTTP response code: 404: while reading a.jsonl"),
                Verdict::ObjectFault,
            ),
            (server(499, "NoSuchKey"), Verdict::ObjectFault),
            (server(499, "HTTP response code: 403"), Verdict::Denied),
            (server(499, "AccessDenied"), Verdict::Denied),
            (
                server(499, "HTTP response code: 404, NoSuchBucket"),
                Verdict::Denied,
            ),
            (
                server(499, "Code: 198. Not found address of host: s3. (DNS_ERROR)"),
                Verdict::Stream,
            ),
            (
                server(198, "Not found address of host: s3"),
                Verdict::Stream,
            ),
            (server(491, "URL is not allowed"), Verdict::Stream),
            (
                server(
                    497,
                    "S3 access from user queries is not allowed to use the server's own credentials",
                ),
                Verdict::Stream,
            ),
            (
                server(497, "it is necessary to have the grant"),
                Verdict::Halt,
            ),
            (server(499, "Connection refused"), Verdict::Replay),
            (
                server(
                    499,
                    "Connection refused: while reading 'NoSuchKey AccessDenied.gz' in bucket 'b'",
                ),
                Verdict::Replay,
            ),
            (
                server(499, "HTTP response code: 503, SlowDown"),
                Verdict::Replay,
            ),
            (refused(404, "NoSuchKey").into(), Verdict::ObjectFault),
            (refused(403, "AccessDenied").into(), Verdict::Denied),
            (refused(404, "NoSuchBucket").into(), Verdict::Denied),
            (refused(400, "ExpiredToken").into(), Verdict::Denied),
            (refused(412, "PreconditionFailed").into(), Verdict::Changed),
            (refused(503, "SlowDown").into(), Verdict::Replay),
            (
                StoreError::Content {
                    text: "unexpected end of file".into(),
                    path: "b/k".into(),
                }
                .into(),
                Verdict::ObjectFault,
            ),
            (
                StoreError::Unavailable {
                    text: "connection reset".into(),
                    path: "b/k".into(),
                }
                .into(),
                Verdict::Replay,
            ),
            (server(516, "Authentication failed"), Verdict::Halt),
            (
                server(194, "Authentication failed: password is incorrect"),
                Verdict::Halt,
            ),
            (server(60, "Unknown table"), Verdict::Halt),
            (server(252, "Too many parts"), Verdict::Halt),
            (server(241, "Memory limit exceeded"), Verdict::Overload),
            (server(159, "Timeout exceeded"), Verdict::Replay),
            (server(354, "inflate failed"), Verdict::ObjectFault),
            (server(117, "Incorrect data"), Verdict::ObjectFault),
            (server(1009, "object changed while read"), Verdict::Replay),
            (server(424242, "something new"), Verdict::Replay),
        ] {
            assert_eq!(verdict(&error), expected, "{error}");
        }
    }

    #[test]
    fn an_s3_that_is_away_is_not_taken_for_one_that_refuses() {
        let away = StoreError::Unavailable {
            text: "connection closed".into(),
            path: "b/k".into(),
        };
        let refused = StoreError::Refused {
            status: 403,
            code: "AccessDenied".into(),
            path: "b/k".into(),
        };
        let gone = "Connection refused: while reading b/k";
        let denied = "AccessDenied. HTTP response code: 403: while reading b/k";
        for (error, expected) in [
            (away.into(), "the worker's way to S3"),
            (refused.into(), "grant its role"),
            (server(499, gone), "ClickHouse's way to S3"),
            (server(499, denied), "ClickHouse may not read the bucket"),
        ] {
            let said = advice(&error).unwrap();
            assert!(said.contains(expected), "{error}: {said}");
        }
    }

    #[test]
    fn a_key_does_not_speak_for_s3() {
        let text = "ClickHouse error 354: Code: 354. DB::Exception: inflate failed: buffer error: \
                    While reading from: b/NoSuchKey AccessDenied HTTP response code: 404.gz: (in \
                    file/uri b/NoSuchKey AccessDenied HTTP response code: 404.gz)";
        assert!(!is_missing(text) && !is_refusal(text));
    }

    #[test]
    fn the_longest_name_in_the_text_is_the_culprit() {
        let keys = ["a/b", "a/b.gz", "c"];
        let named = |text| named_object(text, keys.iter().copied().enumerate());
        assert_eq!(
            named("inflate failed: while reading bucket/a/b.gz"),
            Some(1)
        );
        assert_eq!(
            named("inflate failed: while reading bucket/a/b: x"),
            Some(0)
        );
        assert_eq!(named("something else"), None);
    }
}
