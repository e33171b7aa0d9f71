//! Diagnoses a failed statement: what its error means for the batch, for intake and for the
//! operator.
//!
//! [`codes`] has the diagnosis of each error code of ClickHouse. This module looks at
//! the text where the code is ambiguous, and diagnoses the errors that are not ClickHouse's.

use crate::clickhouse::WarehouseError;
use crate::clickhouse::codes::{
    self, CONTENT, REPLICATION, S3_ERROR, SETTINGS, TOO_LARGE, UNREACHABLE_ENDPOINT,
};
use crate::clickhouse::failing_view::failing_view;
use crate::s3::{NO_SUCH_BUCKET, REFUSALS, StoreError};
use crate::statements::guard::{CHANGED_TEXT, FENCED_TEXT};
use sluice_core::labelled;
use sluice_core::outcome::FailureClass;

labelled! {
    /// What to do about an insert that failed. The labels are values of the `verdict` label in
    /// metrics.
    pub enum ErrorClass {
        /// Transient or unknown: kill what may be running, then retry the identical statement.
        Retry = "replay",
        /// Another insert or the replica itself has to catch up first: as `Retry`, but it does not
        /// count as a failure of the statement, and intake continues. One that lasts longer than an
        /// insert may take is handled as `Halt`.
        Wait = "wait",
        /// ClickHouse is overloaded: as `Retry`, and intake pauses in the meantime.
        Overload = "overload",
        /// ClickHouse is unavailable or misconfigured: pause intake, keep the messages in flight,
        /// probe, resume.
        Halt = "halt",
        /// An object is at fault: isolate it, and load the rest of its batch.
        ObjectFault = "object_fault",
        /// S3 denies access: as `Stream` if the worker can read the object, as `ObjectFault` if
        /// other objects can be read, otherwise as `Halt`.
        Denied = "denied",
        /// ClickHouse can never read the object: the worker streams it if it can, otherwise as
        /// `Halt`.
        Stream = "stream",
        /// The objects exceed the limits of one insert: they are loaded in parts, and a single
        /// object in many blocks.
        TooLarge = "too_large",
        /// A user's view fails on an object: the object is isolated, and its rows are rolled back.
        View = "view",
        /// An object has changed since it was announced: refresh it.
        Changed = "changed",
        /// Another worker has taken over the batch.
        Fenced = "fenced",
    }
}

labelled! {
    /// Why intake is paused.
    pub enum PauseReason {
        /// ClickHouse has not responded yet.
        Starting = "starting",
        Unreachable = "unreachable",
        /// A proxy responded instead of ClickHouse.
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
        /// Limits in the user's profile.
        Limits = "limits",
        /// Replicas, their quorum, or ClickHouse Keeper.
        Replication = "replication",
        S3Access = "s3_access",
        Other = "other",
    }
}

/// What an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// What to do about the batch.
    pub error_class: ErrorClass,
    /// Why an object that fails with this error is not loaded.
    pub failure_class: FailureClass,
    /// Why intake is paused, if this error pauses it.
    pub pause: PauseReason,
    /// What the operator can do, if it is known.
    pub advice: Option<&'static str>,
}

impl Diagnosis {
    /// Returns the diagnosis of an error of which only the class is known.
    pub(super) const fn of(error_class: ErrorClass) -> Self {
        Self {
            error_class,
            failure_class: FailureClass::Unloadable,
            pause: PauseReason::Other,
            advice: None,
        }
    }

    pub(super) const fn failure_class(self, failure_class: FailureClass) -> Self {
        Self {
            failure_class,
            ..self
        }
    }

    pub(super) const fn pause(self, pause: PauseReason) -> Self {
        Self { pause, ..self }
    }

    pub(super) const fn advice(self, advice: &'static str) -> Self {
        Self {
            advice: Some(advice),
            ..self
        }
    }
}

const S3_REFUSES: Diagnosis = Diagnosis::of(ErrorClass::Denied)
    .failure_class(FailureClass::Denied)
    .pause(PauseReason::S3Access)
    .advice("S3 denies ClickHouse access to the bucket: check `s3.clickhouse_access`");
const S3_MISSING: Diagnosis = Diagnosis {
    error_class: ErrorClass::ObjectFault,
    failure_class: FailureClass::Missing,
    ..S3_REFUSES
};
const SOURCE: Diagnosis = Diagnosis::of(ErrorClass::ObjectFault).pause(PauseReason::S3Access);
const UNREACHABLE: Diagnosis = Diagnosis::of(ErrorClass::Retry)
    .pause(PauseReason::Unreachable)
    .advice("check that ClickHouse is running, and check `clickhouse.url`");
const PROXY: Diagnosis = Diagnosis::of(ErrorClass::Retry)
    .pause(PauseReason::Proxy)
    .advice(
        "a proxy responded instead of ClickHouse: check that it forwards requests to ClickHouse, \
         and that its timeout is at least `clickhouse.insert_timeout`",
    );
const HIDDEN: Diagnosis = Diagnosis::of(ErrorClass::Halt)
    .pause(PauseReason::Ledger)
    .advice(
        "without the whole ledger, objects would be loaded twice: drop the row policy that hides \
         its rows from `clickhouse.user`; unless the tables are replicated, point \
         `clickhouse.url` to a single server",
    );
const UNKNOWN_SERVERS: Diagnosis = Diagnosis::of(ErrorClass::Halt)
    .pause(PauseReason::Replication)
    .advice(
        "each server of the cluster must have the tables, and the cluster must list each replica: \
         check `clickhouse.topology` and `system.clusters`",
    );
const BEHIND: Diagnosis = Diagnosis::of(ErrorClass::Halt)
    .pause(PauseReason::Replication)
    .advice(
        "a replica lacks rows that another has: check `system.replication_queue`, and start the \
         replica that has them",
    );
const UNFILLED: Diagnosis = Diagnosis::of(ErrorClass::Halt)
    .pause(PauseReason::Schema)
    .advice(
        "run `sluice migrate`, which creates it; the batch is then rolled back and loaded again",
    );

/// Returns the diagnosis of an error.
pub fn diagnosis(error: &WarehouseError) -> Diagnosis {
    match error {
        WarehouseError::Server { code, text } => {
            let reason = reason_code(*code, text);
            server(reason, text, failing_view(error).is_some())
        }
        WarehouseError::Unknown(text) => UNREACHABLE.advice(unreachable_advice(text)),
        WarehouseError::Password(_) => UNREACHABLE.advice("make the file readable"),
        WarehouseError::Foreign { .. } if is_too_large(error) => PROXY.advice(
            "a proxy between Sluice and ClickHouse limits the size of requests: raise its limit \
             (nginx: `client_max_body_size`)",
        ),
        WarehouseError::Foreign { .. } => PROXY,
        WarehouseError::Source(error) => source(error),
        WarehouseError::Hidden { .. } => HIDDEN,
        WarehouseError::UnknownServers { .. } => UNKNOWN_SERVERS,
        // Other batches can be loaded meanwhile, unless it is the ledger that is not readable.
        WarehouseError::Behind { tables, .. } if tables.starts_with("ledger_") => BEHIND,
        WarehouseError::Behind { .. } => Diagnosis {
            error_class: ErrorClass::Retry,
            ..BEHIND
        },
        WarehouseError::Unfilled { .. } => UNFILLED,
    }
}

/// Returns the class of an error.
pub fn classify(error: &WarehouseError) -> ErrorClass {
    diagnosis(error).error_class
}

/// ClickHouse's error for an object whose structure it cannot determine. It quotes the reason.
const CANNOT_EXTRACT_TABLE_STRUCTURE: u32 = 636;
/// ClickHouse's error for an exception of a library.
const STD_EXCEPTION: u32 = 1001;

/// Returns the class of an error of a statement that reads objects of another format than JSON
/// lines. What is wrong with such an object is reported with codes that have other meanings
/// elsewhere.
pub fn classify_content(error: &WarehouseError) -> ErrorClass {
    let WarehouseError::Server { code, text } = error else {
        return classify(error);
    };
    let reason = reason_code(*code, text);
    match reason {
        // Text or an array that cannot be parsed, a column that is missing, an end that comes too
        // early, a position that is outside of the file.
        6 | 8 | 33 | 130 | 361 | CANNOT_EXTRACT_TABLE_STRUCTURE => ErrorClass::ObjectFault,
        STD_EXCEPTION if says(text, LIBRARIES) => ErrorClass::ObjectFault,
        _ => {
            let diagnosis = diagnosis(error);
            // The structure of an object has nothing to do with the tables.
            let is_of_structure = reason != *code && diagnosis.pause == PauseReason::Schema;
            if is_of_structure {
                ErrorClass::ObjectFault
            } else {
                diagnosis.error_class
            }
        }
    }
}

/// What the exceptions of the libraries that read typed files are named after. The name of an object
/// can contain `parquet` alone.
const LIBRARIES: &[&str] = &["avro::", "orc::", "parquet::", "apache::thrift::"];

/// Returns the code of the error that kept ClickHouse from determining a structure; of any other
/// error, its own code.
fn reason_code(code: u32, text: &str) -> u32 {
    match code {
        CANNOT_EXTRACT_TABLE_STRUCTURE => quoted_code(text).unwrap_or(code),
        code => code,
    }
}

/// Returns the code of the error that another error quotes as its reason.
fn quoted_code(text: &str) -> Option<u32> {
    let (_, reason) = text.split_once("Error:")?;
    let (_, code) = reason.split_once("Code: ")?;
    let digits = code.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Returns the text of an error, with advice if there is any.
pub fn with_advice(error: &WarehouseError) -> String {
    match diagnosis(error).advice {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

fn server(code: u32, text: &str, is_of_view: bool) -> Diagnosis {
    let of_code = codes::diagnosis(code);
    let diagnosis = match code {
        395 => Diagnosis {
            error_class: thrown(text),
            ..of_code
        },
        // Only the text distinguishes a missing object, a refusal and an unavailable S3.
        S3_ERROR => of_s3(text).unwrap_or(of_code),
        // The object's name has the extension of a compression that ClickHouse does not support.
        48 if says(text, &["Unsupported compression method"]) => CONTENT,
        // The statement waited for other servers: ON CLUSTER, or SYSTEM SYNC REPLICA. Otherwise,
        // it was ended by its time limit.
        159 if says(
            text,
            &[
                "Distributed DDL task",
                "distributed_ddl_task_timeout",
                "SYNC REPLICA",
            ],
        ) =>
        {
            REPLICATION
        }
        // An insert with a quorum was sent to a replica that has just lost ClickHouse Keeper.
        164 if says(text, &["Replica is not active"]) => REPLICATION,
        // The mutation continues once the other replicas are back.
        341 if says(text, &["replicas are inactive"]) => REPLICATION,
        // The user is not allowed to change a setting of the statement, which the error names.
        164 if text.contains("setting in readonly mode") => SETTINGS,
        // The user is not allowed to use the server's own S3 credentials. Otherwise, a grant on a
        // table is missing.
        497 if says(
            text,
            &["the server's own credentials", "server_credentials"],
        ) =>
        {
            UNREACHABLE_ENDPOINT
        }
        // The limit is that of one statement, not of the server.
        241 if says(text, &["(for query)", "Query memory limit exceeded"]) => {
            TOO_LARGE.pause(of_code.pause)
        }
        // The limit is that of one block, not of the table.
        252 if says(text, &["Too many partitions for single INSERT block"]) => {
            TOO_LARGE.pause(of_code.pause)
        }
        _ => of_code,
    };
    if is_of_view {
        let advice = "the insert fails in a materialized view that does not belong to Sluice: fix \
                      or drop the view";
        return diagnosis.pause(PauseReason::View).advice(advice);
    }
    diagnosis
}

/// Returns the class of the guard that has thrown. The error begins with its text, and then quotes
/// the condition, which contains the texts of both.
fn thrown(text: &str) -> ErrorClass {
    let guards = [
        (FENCED_TEXT, ErrorClass::Fenced),
        (CHANGED_TEXT, ErrorClass::Changed),
    ];
    guards
        .into_iter()
        .filter_map(|(words, class)| Some((text.find(words)?, class)))
        .min_by_key(|(position, _)| *position)
        .map_or(ErrorClass::Retry, |(_, class)| class)
}

/// Returns the diagnosis of a response of S3 that ClickHouse quotes, or `None` if S3 did not
/// respond.
fn of_s3(text: &str) -> Option<Diagnosis> {
    let is_missing = says(
        text,
        &[
            "HTTP response code: 404",
            "NoSuchKey",
            "The specified key does not exist",
        ],
    );
    if says(text, &["DNS_ERROR", "Not found address of host"]) {
        Some(UNREACHABLE_ENDPOINT)
    } else if says(text, &[NO_SUCH_BUCKET]) {
        // S3 also returns 404 in this case.
        let class = if is_missing {
            FailureClass::Missing
        } else {
            FailureClass::Unloadable
        };
        Some(S3_REFUSES.failure_class(class))
    } else if is_missing {
        Some(S3_MISSING)
    } else {
        says(text, REFUSALS).then_some(S3_REFUSES)
    }
}

/// Returns the diagnosis of an error that kept the worker from reading an object.
fn source(error: &StoreError) -> Diagnosis {
    let class = match error {
        StoreError::Refused { status: 404, .. } => FailureClass::Missing,
        _ if error.is_denied() => FailureClass::Denied,
        _ => FailureClass::Unloadable,
    };
    let diagnosis = SOURCE.failure_class(class);
    let as_class = |error_class| Diagnosis {
        error_class,
        ..diagnosis
    };
    if error.is_changed() {
        as_class(ErrorClass::Changed)
    } else if error.is_transient() {
        as_class(ErrorClass::Retry).advice(
            "if this persists, check the worker's connection to S3 (network, `AWS_ENDPOINT_URL`)",
        )
    } else if error.is_denied() {
        as_class(ErrorClass::Denied)
            .advice("S3 denies the worker access to the bucket: grant its role `s3:GetObject`")
    } else {
        // The object is missing, or its content does not match its name.
        diagnosis
    }
}

/// Returns the part of ClickHouse's error that precedes the object's name. The name can contain any
/// text, including S3's error codes.
fn before_the_name(text: &str) -> &str {
    text.split_once("hile reading ")
        .map_or(text, |(words, _)| words)
}

fn says(text: &str, words: &[&str]) -> bool {
    let text = before_the_name(text);
    words.iter().any(|word| text.contains(word))
}

/// Returns whether the error means that an object does not exist.
pub fn is_missing(error: &WarehouseError) -> bool {
    diagnosis(error).failure_class == FailureClass::Missing
}

/// Returns whether the error means that a bucket does not exist.
pub fn is_bucket_missing(error: &WarehouseError) -> bool {
    match error {
        WarehouseError::Server { text, .. } => says(text, &[NO_SUCH_BUCKET]),
        WarehouseError::Source(StoreError::Refused { code, .. }) => code == NO_SUCH_BUCKET,
        _ => false,
    }
}

/// Returns whether S3 is unavailable, given an error that is neither a refusal nor a missing
/// object.
pub fn is_s3_away(error: &WarehouseError) -> bool {
    match error {
        WarehouseError::Server { code, text } => reason_code(*code, text) == S3_ERROR,
        WarehouseError::Source(_) => true,
        _ => false,
    }
}

fn unreachable_advice(text: &str) -> &'static str {
    if text.contains("certificate") {
        "the server's certificate is not trusted: set `clickhouse.ca_file` to a file with its \
         certificate authority"
    } else if text.contains("InvalidContentType") {
        "the port does not use TLS: use http:// in `clickhouse.url`, or use another port"
    } else if text.contains("invalid HTTP version parsed") {
        "the port does not use plain HTTP: if it is a TLS port, use https:// in `clickhouse.url`"
    } else {
        "check that ClickHouse is running, and check `clickhouse.url`"
    }
}

/// Returns whether a proxy on the way to ClickHouse has rejected a request because of its size.
pub fn is_too_large(error: &WarehouseError) -> bool {
    let WarehouseError::Foreign { text } = error else {
        return false;
    };
    let text = text.to_ascii_lowercase();
    ["413", "too large", "too big"]
        .iter()
        .any(|words| text.contains(words))
}

/// Returns which object of the batch an error names: the one whose path the text contains, and the
/// longest path if one is the beginning of another.
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
    fn an_object_of_another_format_is_at_fault_for_more_errors() {
        let structure = "The table structure cannot be extracted from a Parquet format file. \
                         Error:\nCode: ";
        for (code, text, expected) in [
            (117, "Not a Parquet file", ErrorClass::ObjectFault),
            (33, "Cannot read all data", ErrorClass::ObjectFault),
            (1001, "type: avro::Exception", ErrorClass::ObjectFault),
            (1001, "type: std::exception", ErrorClass::Retry),
            (
                1001,
                "type: std::filesystem_error, in file/uri b/a.parquet",
                ErrorClass::Retry,
            ),
            (636, "the file is empty", ErrorClass::ObjectFault),
            (
                636,
                &format!("{structure}117. DB::Exception"),
                ErrorClass::ObjectFault,
            ),
            (
                636,
                &format!("{structure}210. DB::NetException"),
                ErrorClass::Retry,
            ),
            (
                636,
                &format!("{structure}499. DB::Exception: HTTP response code: 403"),
                ErrorClass::Denied,
            ),
            (
                636,
                &format!("{structure}36. DB::Exception: Unsupported type"),
                ErrorClass::ObjectFault,
            ),
            (36, "Unsupported type", ErrorClass::Halt),
            (241, "Memory limit (total) exceeded", ErrorClass::Overload),
        ] {
            assert_eq!(
                classify_content(&server(code, text)),
                expected,
                "{code} {text}"
            );
        }
        // An outage of S3 is not hidden by the error that quotes it.
        let quoting = |code: u32| server(636, &format!("{structure}{code}. DB::Exception"));
        assert!(is_s3_away(&quoting(499)) && is_s3_away(&server(499, "timeout")));
        assert!(!is_s3_away(&quoting(117)));
        let missing = format!("{structure}499. DB::Exception: HTTP response code: 404");
        assert!(is_missing(&server(636, &missing)));
        // The classes of JSON lines are as they were.
        for code in [6, 8, 33, 130, 361, 636, 1001] {
            assert_eq!(
                classify(&server(code, "avro::")),
                ErrorClass::Retry,
                "{code}"
            );
        }
    }

    #[test]
    fn every_error_has_its_class() {
        let refused = |status, code: &str| StoreError::Refused {
            status,
            code: code.into(),
            path: "b/k".into(),
        };
        for (error, expected) in [
            (
                WarehouseError::Unknown("connection reset".into()),
                ErrorClass::Retry,
            ),
            (server(395, FENCED_TEXT), ErrorClass::Fenced),
            (server(395, CHANGED_TEXT), ErrorClass::Changed),
            (
                server(
                    395,
                    &format!("{CHANGED_TEXT}: while executing and(throwIf('{FENCED_TEXT}'"),
                ),
                ErrorClass::Changed,
            ),
            (
                server(
                    395,
                    &format!("{FENCED_TEXT}: while executing and(throwIf('{CHANGED_TEXT}'"),
                ),
                ErrorClass::Fenced,
            ),
            (server(395, "somebody's own throwIf"), ErrorClass::Retry),
            (
                server(499, "HTTP response code: 404: while reading a.jsonl"),
                ErrorClass::ObjectFault,
            ),
            (server(499, "NoSuchKey"), ErrorClass::ObjectFault),
            (server(499, "HTTP response code: 403"), ErrorClass::Denied),
            (server(499, "AccessDenied"), ErrorClass::Denied),
            (
                server(499, "HTTP response code: 404, NoSuchBucket"),
                ErrorClass::Denied,
            ),
            (
                server(499, "Code: 198. Not found address of host: s3. (DNS_ERROR)"),
                ErrorClass::Stream,
            ),
            (
                server(198, "Not found address of host: s3"),
                ErrorClass::Stream,
            ),
            (server(491, "URL is not allowed"), ErrorClass::Stream),
            (
                server(
                    497,
                    "S3 access from user queries is not allowed to use the server's own credentials",
                ),
                ErrorClass::Stream,
            ),
            (
                server(497, "it is necessary to have the grant"),
                ErrorClass::Halt,
            ),
            (server(499, "Connection refused"), ErrorClass::Retry),
            (
                server(
                    499,
                    "Connection refused: while reading 'NoSuchKey AccessDenied.gz' in bucket 'b'",
                ),
                ErrorClass::Retry,
            ),
            (
                server(499, "HTTP response code: 503, SlowDown"),
                ErrorClass::Retry,
            ),
            (refused(404, "NoSuchKey").into(), ErrorClass::ObjectFault),
            (refused(403, "AccessDenied").into(), ErrorClass::Denied),
            (refused(404, "NoSuchBucket").into(), ErrorClass::Denied),
            (refused(400, "ExpiredToken").into(), ErrorClass::Denied),
            (
                refused(412, "PreconditionFailed").into(),
                ErrorClass::Changed,
            ),
            (refused(503, "SlowDown").into(), ErrorClass::Retry),
            (
                StoreError::Content {
                    text: "unexpected end of file".into(),
                    path: "b/k".into(),
                }
                .into(),
                ErrorClass::ObjectFault,
            ),
            (
                StoreError::Unavailable {
                    text: "connection reset".into(),
                    path: "b/k".into(),
                }
                .into(),
                ErrorClass::Retry,
            ),
            (server(516, "Authentication failed"), ErrorClass::Halt),
            (
                server(194, "Authentication failed: password is incorrect"),
                ErrorClass::Halt,
            ),
            (server(60, "Unknown table"), ErrorClass::Halt),
            (server(252, "Too many parts"), ErrorClass::Halt),
            (server(241, "Memory limit exceeded"), ErrorClass::Overload),
            (
                server(159, "Timeout exceeded: elapsed 600.1 seconds, maximum: 600"),
                ErrorClass::Retry,
            ),
            (server(354, "inflate failed"), ErrorClass::ObjectFault),
            (server(117, "Incorrect data"), ErrorClass::ObjectFault),
            (server(1009, "object changed while read"), ErrorClass::Retry),
            (server(424242, "something new"), ErrorClass::Retry),
        ] {
            assert_eq!(classify(&error), expected, "{error}");
        }
    }

    /// The texts are those of ClickHouse 26.7.
    #[test]
    fn errors_of_replicas_are_waiting_or_an_outage_and_blame_no_object() {
        use PauseReason::{ReadOnly, Replication};
        let waiting = |code, text| (server(code, text), ErrorClass::Wait, Replication);
        let outage = |code, text| (server(code, text), ErrorClass::Halt, Replication);
        let read_only = "Table is in readonly mode (replica path: /clickhouse/tables/t/replicas/a)";
        for (error, class, pause) in [
            waiting(
                286,
                "Quorum for previous write has not been satisfied yet. Status: version: 1",
            ),
            waiting(286, "Another quorum insert has been already started"),
            waiting(
                289,
                "Replica doesn't have part all_0_0_0 which was successfully written to quorum of \
                 other replicas",
            ),
            outage(
                285,
                "Number of alive replicas (1) is less than requested quorum (2/2).",
            ),
            outage(
                319,
                "Unknown status of part all_0_0_0 (Reason: Session expired). Data was written \
                 locally but we don't know the status in keeper.",
            ),
            outage(
                159,
                "Distributed DDL task /clickhouse/task_queue/ddl/query-0000000001 is not finished \
                 on 1 of 2 hosts (0 of them are currently executing the task, 1 are inactive).",
            ),
            outage(
                159,
                "Watching task /clickhouse/task_queue/ddl/query-0000000001 is executing longer \
                 than distributed_ddl_task_timeout (=180) seconds.",
            ),
            outage(
                159,
                "SYNC REPLICA d.t: command timed out. See the 'receive_timeout' setting",
            ),
            outage(164, "Replica is not active right now"),
            outage(225, "Can't get ZooKeeper session"),
            outage(
                244,
                "Insert failed due to zookeeper error. Please retry. Reason: Connection loss",
            ),
            outage(254, "No active replica has part all_0_0_0"),
            outage(279, "All connection tries failed."),
            outage(
                341,
                "Mutation is not finished because some replicas are inactive right now: b. \
                 Mutation will be done asynchronously",
            ),
            outage(415, "All replicas are lost"),
            outage(999, "Session expired"),
            (server(242, read_only), ErrorClass::Halt, ReadOnly),
        ] {
            let found = diagnosis(&error);
            assert_eq!((found.error_class, found.pause), (class, pause), "{error}");
            let advice = found.advice.unwrap_or_default();
            assert!(advice.contains("`system.replicas`"), "{error}: {advice}");
        }
    }

    /// They say nothing about replicas, since one server alone also returns them.
    #[test]
    fn limits_of_time_broken_connections_and_mutations_are_retried_with_advice() {
        for (error, expected) in [
            (
                server(159, "Timeout exceeded: elapsed 600.1 seconds, maximum: 600"),
                "`clickhouse.insert_timeout`",
            ),
            (
                server(209, "Timeout exceeded while reading from socket"),
                "network",
            ),
            (server(210, "Connection refused"), "network"),
            (
                server(
                    341,
                    "Exception happened during execution of mutation 'mutation_2.txt' with part \
                     'all_1_1_0' reason: 'Memory limit exceeded'.",
                ),
                "`system.mutations`",
            ),
        ] {
            let found = diagnosis(&error);
            assert_eq!(found.error_class, ErrorClass::Retry, "{error}");
            let advice = found.advice.unwrap_or_default();
            assert!(advice.contains(expected), "{error}: {advice}");
        }
    }

    #[test]
    fn an_outage_of_s3_is_not_mistaken_for_a_refusal() {
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
            (away.into(), "the worker's connection to S3"),
            (refused.into(), "grant its role"),
            (server(499, gone), "ClickHouse's connection to S3"),
            (server(499, denied), "S3 denies ClickHouse access"),
        ] {
            let said = diagnosis(&error).advice.unwrap();
            assert!(said.contains(expected), "{error}: {said}");
        }
    }

    #[test]
    fn an_error_code_within_a_key_is_not_mistaken_for_one_of_s3() {
        let text = "ClickHouse error 354: Code: 354. DB::Exception: inflate failed: buffer error: \
                    While reading from: b/NoSuchKey AccessDenied HTTP response code: 404.gz: (in \
                    file/uri b/NoSuchKey AccessDenied HTTP response code: 404.gz)";
        assert_eq!(of_s3(text), None);
    }

    #[test]
    fn the_longest_key_in_the_text_is_at_fault() {
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
