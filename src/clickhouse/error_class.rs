//! What a failed insert means: one table for every outcome.

use crate::clickhouse::codes::{CONTENT, LIMITS, NO_WAY, OVERLOAD, TOO_LARGE, halt_reason, is_in};
use crate::clickhouse::failing_view::failing_view;
use crate::clickhouse::{SUPPORT_IS_DISABLED, WarehouseError};
use crate::s3::{REFUSALS, StoreError};
use crate::statements::guard::{CHANGED_TEXT, FENCED_TEXT};
use sluice_core::labelled;

labelled! {
    /// What to do about an insert that failed. The labels are values of the `verdict` label in metrics.
    pub enum Verdict {
        /// Transient, or nobody knows: kill what may run, then the identical statement again.
        Replay = "replay",
        /// ClickHouse has too much to do: as `Replay`, and intake pauses meanwhile.
        Overload = "overload",
        /// ClickHouse is away or wrongly set up: pause intake, hold what is held, probe, resume.
        Halt = "halt",
        /// An object's own fault: isolate it, load its batch-mates.
        ObjectFault = "object_fault",
        /// S3 refuses: as `Stream` where the worker can read it, as `ObjectFault` where other objects
        /// can be read, else as `Halt`.
        Denied = "denied",
        /// ClickHouse cannot read it and never will: the worker does, where it can; else as `Halt`.
        Stream = "stream",
        /// The objects need more than one insert may take: they are tried in parts, and one alone in
        /// many blocks.
        TooLarge = "too_large",
        /// A user's view fails over an object: it is set apart, and nothing of it is kept.
        View = "view",
        /// An object is not what was announced any more: look at what is there now.
        Changed = "changed",
        /// Somebody else has taken the batch over.
        Fenced = "fenced",
    }
}

labelled! {
    /// Why intake is paused.
    pub enum PauseReason {
        /// ClickHouse has not been heard of yet.
        Starting = "starting",
        Unreachable = "unreachable",
        /// What is between Sluice and ClickHouse answers in its place.
        Proxy = "proxy",
        Authentication = "authentication",
        Permission = "permission",
        Schema = "schema",
        Settings = "settings",
        Ledger = "ledger",
        View = "view",
        Unproven = "unproven",
        ReadOnly = "read_only",
        TooManyParts = "too_many_parts",
        NoSpace = "no_space",
        Overload = "overload",
        Quota = "quota",
        /// Of the user's profile.
        Limits = "limits",
        /// Replicas, their quorum, or ClickHouse Keeper.
        Replication = "replication",
        S3Access = "s3_access",
        Other = "other",
    }
}

/// What begins the reason why an object failed of which too much was rejected.
pub const TOO_MANY_REJECTED_TEXT: &str = "too many lines are rejected";

pub fn verdict(error: &WarehouseError) -> Verdict {
    let (code, text) = match error {
        WarehouseError::Server { code, text } => (code, text),
        WarehouseError::Unknown(_) | WarehouseError::Foreign { .. } => return Verdict::Replay,
        WarehouseError::Source(error) => return source_verdict(error),
        WarehouseError::Hidden { .. } | WarehouseError::Unfilled { .. } => return Verdict::Halt,
    };
    match *code {
        395 => thrown(text),
        // S3_ERROR: a missing object, a refusal and an S3 that is away look alike but for the text.
        499 => s3_verdict(text),
        // NOT_IMPLEMENTED: what the object's name says of its compression.
        48 if says(text, &["Unsupported compression method"]) => Verdict::ObjectFault,
        code if is_in(NO_WAY, code) => Verdict::Stream,
        // It may not use the server's own rights in S3; else it is the user's right to a table.
        497 if says(
            text,
            &["the server's own credentials", "server_credentials"],
        ) =>
        {
            Verdict::Stream
        }
        // Of one statement, not of the server.
        241 if says(text, &["(for query)", "Query memory limit exceeded"]) => Verdict::TooLarge,
        // Of one block, not of the table.
        252 if says(text, &["Too many partitions for single INSERT block"]) => Verdict::TooLarge,
        code if is_in(TOO_LARGE, code) => Verdict::TooLarge,
        code if halt_reason(code).is_some() => Verdict::Halt,
        code if is_in(OVERLOAD, code) => Verdict::Overload,
        code if is_in(CONTENT, code) => Verdict::ObjectFault,
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
        StoreError::Refused { status: 412, .. } => Verdict::Changed,
        _ if error.is_transient() => Verdict::Replay,
        _ if error.is_denied() => Verdict::Denied,
        // It is missing, or not what its name says.
        _ => Verdict::ObjectFault,
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

/// Why intake is paused.
pub fn pause_reason(error: &WarehouseError) -> PauseReason {
    match error {
        WarehouseError::Unknown(_) => PauseReason::Unreachable,
        WarehouseError::Foreign { .. } => PauseReason::Proxy,
        WarehouseError::Source(_) => PauseReason::S3Access,
        WarehouseError::Hidden { .. } => PauseReason::Ledger,
        WarehouseError::Unfilled { .. } => PauseReason::Schema,
        _ if failing_view(error).is_some() => PauseReason::View,
        _ if verdict(error) == Verdict::Stream => PauseReason::S3Access,
        WarehouseError::Server { code, text } => match *code {
            499 => PauseReason::S3Access,
            // The user may not set what a statement sets. ClickHouse names the setting.
            164 if text.contains("setting in readonly mode") => PauseReason::Settings,
            code if is_in(LIMITS, code) || is_in(TOO_LARGE, code) => PauseReason::Limits,
            code if is_in(OVERLOAD, code) => PauseReason::Overload,
            code => halt_reason(code).unwrap_or(PauseReason::Other),
        },
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
        WarehouseError::Source(_) => match verdict(error) {
            Verdict::Denied => "the worker may not read the bucket: grant its role `s3:GetObject`",
            Verdict::Replay => {
                "if it lasts, check the worker's way to S3 (network, `AWS_ENDPOINT_URL`)"
            }
            _ => return None,
        },
        WarehouseError::Hidden { .. } => {
            "without the whole ledger, objects would be loaded twice: drop the row policy that hides \
             rows of it from `clickhouse.user`, and let `clickhouse.url` lead to one server"
        }
        WarehouseError::Unfilled { .. } => {
            "run `sluice migrate`, which creates it; the batch is then rolled back and loaded again"
        }
        WarehouseError::Foreign { .. } if is_too_large(error) => {
            "something between Sluice and ClickHouse limits the size of requests: raise its limit \
             (nginx: `client_max_body_size`)"
        }
        WarehouseError::Foreign { .. } => {
            "something between Sluice and ClickHouse answers in its place: check that it leads to \
             ClickHouse, and that it waits for as long as `clickhouse.insert_timeout`"
        }
        WarehouseError::Server { code, .. } => {
            return server_advice(*code, verdict(error), pause_reason(error));
        }
    })
}

fn server_advice(code: u32, verdict: Verdict, reason: PauseReason) -> Option<&'static str> {
    Some(match (reason, verdict) {
        (PauseReason::View, _) => {
            "the insert fails in a view that is not Sluice's: mend or drop it"
        }
        (_, Verdict::Stream) => {
            "ClickHouse cannot get at S3: check `s3.clickhouse_endpoint` and \
             `s3.clickhouse_access`, or let the worker read the objects (`load.fallback`)"
        }
        (_, Verdict::TooLarge) => {
            "`load.max_memory`, or a limit of the user's profile, is lower than what this needs: \
             raise it, or make smaller batches (`batch.max_bytes`)"
        }
        (PauseReason::Authentication, _) => "check `clickhouse.user` and `clickhouse.password`",
        (PauseReason::Quota, _) => {
            "intake goes on when the quota's interval ends: raise the quota of `clickhouse.user`, or \
             make longer batches (`batch.window`), which need fewer statements"
        }
        (PauseReason::Replication, _) => {
            "the table's replicas or ClickHouse Keeper do not keep up: check `system.replicas`, and \
             `insert_quorum` in the profile of `clickhouse.user`"
        }
        (PauseReason::Limits, _) => {
            "a limit of the user's profile is lower than what Sluice's statements need: raise what \
             the error names in the profile of `clickhouse.user`"
        }
        (PauseReason::Schema, _) => {
            "the tables are not as the event types declare them: run `sluice migrate`"
        }
        (PauseReason::Permission, _) => "grant the user what the error names",
        (PauseReason::Settings, _) => {
            "every statement of Sluice sets this, so that the user's profile changes no results: \
             lift the constraint, or `readonly`, in the profile of `clickhouse.user`"
        }
        (PauseReason::ReadOnly, _) => "make the server or table writable",
        (PauseReason::Overload, _) => {
            "ClickHouse is short of memory or slots: Sluice slows down; smaller `batch.max_bytes` \
             or `load.concurrency` ask less of it"
        }
        (PauseReason::TooManyParts, _) => {
            "merges lag behind: Sluice slows down; a longer `batch.window` makes fewer parts"
        }
        (PauseReason::S3Access, Verdict::Replay) => {
            "if it lasts, check ClickHouse's way to S3 (network, `s3.clickhouse_endpoint`)"
        }
        (PauseReason::S3Access, _) => {
            "ClickHouse may not read the bucket: check `s3.clickhouse_access`"
        }
        _ if code == SUPPORT_IS_DISABLED => {
            "the engine, a projection or a setting of the table does not allow this statement: \
             lift what the error names"
        }
        _ => return None,
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

/// Returns whether something on the way to ClickHouse has refused a request for its size.
pub fn is_too_large(error: &WarehouseError) -> bool {
    let WarehouseError::Foreign { text } = error else {
        return false;
    };
    let text = text.to_ascii_lowercase();
    ["413", "too large", "too big"]
        .iter()
        .any(|words| text.contains(words))
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
