//! Settings of the user's profile. Under any of them, objects that the ledger records as loaded
//! have the same rows as without them. An error is allowed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader, Read};
use std::slice;
use std::time::Duration;

use anyhow::ensure;
use hyper::http::request::Parts;
use sluice_testkit::flat::{self, Form};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{Bundle, Compression, ExpectedRows, Generator, gzip};
use sluice_testkit::{ClickHouse, ClickHouseOptions, Site, Stack, exact, wait_for};
use tempfile::TempDir;

use crate::harness::{BOUND, Sluice, line, loaded_names, wait_until_drained};

/// A user whose profile has these settings.
#[derive(Clone, Debug, Default)]
struct Profile {
    settings: Vec<(String, String)>,
    /// The configuration of the loads under these settings.
    options: Vec<(&'static str, &'static str)>,
    /// Whether the settings are harmless once the pinned settings are sent, so that all objects are
    /// loaded.
    loads: bool,
    /// Whether an object that is read in many blocks is loaded as well.
    many_blocks: bool,
    /// Whether all objects are loaded again with `--force`.
    again: bool,
}

impl Profile {
    fn of(settings: &[(&str, &str)]) -> Self {
        let owned = settings.iter();
        Self {
            settings: owned
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Self::default()
        }
    }

    /// Creates a user with settings under which all objects must be loaded.
    fn harmless(settings: &[(&str, &str)]) -> Self {
        Self {
            loads: true,
            ..Self::of(settings)
        }
    }

    fn xml(&self) -> String {
        let mut xml = String::new();
        for (name, value) in &self.settings {
            write!(xml, "<{name}><![CDATA[{value}]]></{name}>").unwrap();
        }
        xml
    }
}

/// The rows of an object: for each table, their number and the sum of their hashes.
type Rows = BTreeMap<String, (u64, u64)>;

/// The objects of a test.
#[derive(Clone, Copy, PartialEq)]
enum Content {
    /// JSON lines of all kinds.
    Lines,
    /// An object of each other format.
    Formats,
}

/// Objects that each user loads from a prefix of its own.
struct Harness {
    stack: &'static Stack,
    site: Site,
    clickhouse: ClickHouse,
    profiles: Vec<Profile>,
    content: Content,
    /// The declarations of other formats.
    declarations: TempDir,
}

impl Harness {
    /// Starts a server with a user for each profile. The profiles can depend on the name of the
    /// database.
    async fn new(
        name: &str,
        content: Content,
        profiles: impl FnOnce(&Site) -> Vec<Profile>,
    ) -> Self {
        let stack = Stack::shared();
        let site = stack.site(name).await.unwrap();
        let profiles = profiles(&site);
        let (mut users_xml, mut profiles_xml) = (String::new(), String::new());
        for (number, profile) in profiles.iter().enumerate() {
            write!(
                users_xml,
                "<user{number}><password></password><networks><ip>127.0.0.1</ip></networks>\
                 <profile>user{number}</profile><quota>default</quota></user{number}>"
            )
            .unwrap();
            let xml = profile.xml();
            write!(profiles_xml, "<user{number}>{xml}</user{number}>").unwrap();
        }
        let options = ClickHouseOptions {
            users: users_xml,
            profiles: profiles_xml,
            ..ClickHouseOptions::default()
        };
        let harness = Self {
            stack,
            site,
            clickhouse: ClickHouse::start_with(options).unwrap(),
            profiles,
            content,
            declarations: tempfile::tempdir().unwrap(),
        };
        flat::write_declarations(harness.declarations.path()).unwrap();
        harness.sluice(&Profile::default(), "default").migrate();
        exact::keep_duplicates(slice::from_ref(&harness.clickhouse), &harness.site)
            .await
            .unwrap();
        harness
    }

    fn sluice(&self, profile: &Profile, user: &str) -> Sluice {
        let sluice = Sluice::new(self.stack, &self.site);
        let sluice = match self.content {
            Content::Lines => sluice.with_all_columns(),
            Content::Formats => sluice.set("event_types.dir", self.declarations.path().display()),
        };
        let sluice = sluice
            .set("clickhouse.url", self.clickhouse.url())
            .set("clickhouse.user", user)
            .set("batch.max_bytes", "1MiB");
        let options = profile.options.iter();
        options.fold(sluice, |sluice, (path, value)| sluice.set(path, value))
    }

    async fn upload(&self, prefix: &str, bundles: &[Bundle]) -> Vec<Bundle> {
        let mut uploaded = bundles.to_vec();
        for bundle in &mut uploaded {
            bundle.key = format!("{prefix}/{}", bundle.key);
            let put = self.site.put(&bundle.key, bundle.bytes.clone());
            put.await.unwrap();
        }
        uploaded
    }

    /// Returns the rows of each object below a prefix that the ledger records as loaded, by the
    /// rest of its key.
    async fn loaded(&self, prefix: &str) -> BTreeMap<String, Rows> {
        let database = &self.site.database;
        let source = format!("{}/{prefix}/", self.site.bucket);
        let keys = self
            .clickhouse
            .query(&format!(
                "SELECT DISTINCT substring(key, {}) FROM {database}.ledger_objects \
                 WHERE startsWith(key, '{prefix}/') AND batch_id IN \
                   (SELECT batch_id FROM {database}.ledger_batches WHERE event = 'loaded')",
                prefix.len() + 2
            ))
            .await
            .unwrap();
        let mut loaded: BTreeMap<String, Rows> = keys
            .lines()
            .map(|key| (key.to_owned(), Rows::new()))
            .collect();
        for table in exact::tables() {
            let sql = format!(
                "SELECT substring(source_path, {}) AS key, count() AS rows, \
                   sum(cityHash64(toString(tuple(* EXCEPT (batch_id, ingested_at, source_path))))) \
                   AS hash \
                 FROM {database}.{table} WHERE startsWith(source_path, '{source}') GROUP BY key",
                source.len() + 1
            );
            for row in self.clickhouse.rows(&sql).await.unwrap() {
                let number = |name: &str| row[name].as_u64().expect("a number");
                let key = row["key"].as_str().expect("a key");
                if let Some(rows) = loaded.get_mut(key) {
                    rows.insert(table.to_owned(), (number("rows"), number("hash")));
                }
            }
        }
        loaded
    }
}

/// Runs a backfill until it exits, or until it logs an error of ClickHouse, which it would retry
/// forever. The error is the reason for the failure.
async fn backfill(sluice: &Sluice, arguments: &[&str]) -> Result<(), String> {
    let mut child = sluice.spawn(&[&["backfill"], arguments].concat());
    let log = child.stderr.take().expect("it is piped");
    let read = tokio::task::spawn_blocking(move || refusal(log));
    let refusal = match tokio::time::timeout(BOUND, read).await {
        Ok(refusal) => refusal.expect("no panic"),
        Err(_) => Some("it does not exit".to_owned()),
    };
    if let Some(refusal) = refusal {
        child.kill().expect("it can be killed");
        child.wait().expect("it exits");
        return Err(refusal);
    }
    let status = child.wait().expect("it exits");
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string())
    }
}

/// Returns the first line of a log that reports an error of ClickHouse, if any.
fn refusal(log: impl Read) -> Option<String> {
    let lines = BufReader::new(log).lines().map_while(Result::ok);
    let errors = ["ClickHouse error ", "no response from ClickHouse"];
    let mut refusals = lines.filter(|line| errors.iter().any(|error| line.contains(error)));
    refusals.next()
}

impl Harness {
    /// Loads the objects as a user, and returns the differences in the rows of those that are
    /// recorded as loaded.
    async fn try_profile(
        &self,
        number: usize,
        bundles: &[Bundle],
        expected: &BTreeMap<String, Rows>,
    ) -> String {
        let profile = &self.profiles[number];
        let prefix = format!("user{number}");
        let mut bundles = bundles.to_vec();
        bundles.retain(|bundle| profile.many_blocks || bundle.key != LARGE);
        self.upload(&prefix, &bundles).await;
        let sluice = self.sluice(profile, &prefix);
        let source = format!("s3://{}/{prefix}/", self.site.bucket);
        let mut runs = vec![vec![source.as_str()]; 2];
        if profile.again {
            runs.push(vec![&source, "--force"]);
        }
        let mut failure = None;
        for arguments in &runs {
            failure = backfill(&sluice, arguments).await.err();
            if failure.is_some() {
                break;
            }
        }

        // A few settings crash the engine.
        if failure.is_some() && self.clickhouse.query("SELECT 1").await.is_err() {
            self.clickhouse.restart().unwrap();
        }
        let mut problems = String::new();
        let loaded = self.loaded(&prefix).await;
        for (key, rows) in &loaded {
            if expected.get(key) != Some(rows) {
                let expected = expected.get(key);
                writeln!(problems, "{key}: expected {expected:?}, found {rows:?}").unwrap();
            }
        }
        let is_whole = failure.is_none() && loaded.len() == bundles.len();
        if !is_whole && (profile.loads || failure.is_none()) {
            let all = bundles.len();
            let loaded = loaded.len();
            writeln!(problems, "{loaded} of {all} are loaded: {failure:?}").unwrap();
        }
        if problems.is_empty() {
            return problems;
        }
        format!("{:?}:\n{problems}", profile.settings)
    }

    /// Returns the objects whose rows can be counted.
    async fn counted_objects(&self) -> Vec<Bundle> {
        if self.content == Content::Lines {
            return counted_objects();
        }
        let mut bundles = Vec::new();
        let forms = Form::ALL.into_iter().filter(|form| *form != Form::Lines);
        for form in forms {
            let bundle = flat::bundle(&self.clickhouse, form, "some", RECORDS);
            bundles.push(bundle.await.unwrap());
        }
        bundles
    }

    /// Returns the differences under all of the settings.
    async fn try_all(&self) -> String {
        let sluice = self.sluice(&Profile::default(), "default");
        let source = format!("s3://{}/plain/", self.site.bucket);
        let mut bundles = self.counted_objects().await;
        let uploaded = self.upload("plain", &bundles).await;
        backfill(&sluice, &[&source]).await.unwrap();
        let wrong =
            exact::differences(slice::from_ref(&self.clickhouse), &self.site, &uploaded).await;
        assert_eq!(wrong.unwrap(), "");
        if self.content == Content::Lines {
            bundles.push(odd_object());
            self.upload("plain", &[odd_object()]).await;
            backfill(&sluice, &[&source]).await.unwrap();
        }

        let expected = self.loaded("plain").await;
        assert_eq!(expected.len(), bundles.len());
        let mut problems = String::new();
        let all = self.profiles.len();
        for number in 0..all {
            let problem = self.try_profile(number, &bundles, &expected).await;
            report(number + 1, all, &problem);
            problems += &problem;
        }
        problems
    }
}

/// Reports the problems found so far, since a run with a thousand settings takes an hour.
#[expect(clippy::print_stderr, reason = "progress for whoever waits")]
fn report(done: usize, all: usize, problem: &str) {
    if !problem.is_empty() || done.is_multiple_of(50) {
        eprintln!("{done} of {all}: {problem}");
    }
}

const LARGE: &str = "large.jsonl.gz";

/// Returns a small object, a compressed one, and one that is read in many blocks.
fn counted_objects() -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Generator::new(61).sizes(300..=300).take(1).collect();
    bundles.extend(
        Generator::new(62)
            .compressed(1.0, Compression::Gzip)
            .take(1),
    );
    bundles[0].key = "small.jsonl".to_owned();
    bundles[1].key = "zipped.jsonl.gz".to_owned();
    let lines: String = (0..LINES)
        .map(|number| format!("{{\"n\":{number}}}\n"))
        .collect();
    let mut expected_rows = ExpectedRows::default();
    (expected_rows.objects, expected_rows.unmatched) = (1, LINES);
    bundles.push(Bundle {
        key: LARGE.to_owned(),
        bytes: gzip(lines.as_bytes()),
        expected_rows,
    });
    bundles
}

/// More lines than a block has.
const LINES: u64 = 100_000;

/// The records of an object of another format.
const RECORDS: u64 = 2_000;

/// Returns an object with lines that parsers interpret differently.
fn odd_object() -> Bundle {
    let lines = [
        r#"{"a":"\ud800"}"#,
        r#"{"a":1,"a":2}"#,
        r#"{"n":1e999}"#,
        r#"{"n":123456789012345678901234567890}"#,
        r#"{"a":1,}"#,
        r#"{"a":tru}"#,
        "{\"a\":\"\u{1}\"}",
        "[1]",
        "",
    ];
    Bundle {
        key: "odd.jsonl".to_owned(),
        bytes: lines.join("\n").into_bytes(),
        expected_rows: ExpectedRows::default(),
    }
}

/// Returns the settings that are known to change rows, each with what triggers it.
fn known(site: &Site) -> Vec<Profile> {
    let hidden = ["ledger_objects", "ledger_batches", "object_rows"];
    let hidden = hidden.map(|table| format!("'{}.{table}': '0'", site.database));
    let hidden = format!("{{{}}}", hidden.join(", "));
    let harmless = [
        ("limit", "100"),
        ("offset", "1"),
        ("additional_result_filter", "0"),
        ("additional_table_filters", &hidden),
        ("final", "1"),
        ("empty_result_for_aggregation_by_empty_set", "1"),
        (
            "empty_result_for_aggregation_by_constant_keys_on_empty_set",
            "0",
        ),
        ("allow_simdjson", "0"),
    ];
    let mut profiles: Vec<Profile> = harmless.map(|setting| Profile::harmless(&[setting])).into();
    // None of these is known to change rows by itself.
    profiles.push(Profile::harmless(&[
        ("join_use_nulls", "1"),
        ("aggregate_functions_null_for_empty", "1"),
        ("use_query_cache", "1"),
        ("partial_result_on_first_cancel", "1"),
        ("enable_parallel_replicas", "1"),
        ("parallel_distributed_insert_select", "0"),
    ]));
    profiles.push(Profile {
        again: true,
        ..Profile::harmless(&[("apply_deleted_mask", "0")])
    });
    for (mode, limit) in [
        ("read_overflow_mode", ("max_rows_to_read", "100")),
        ("read_overflow_mode_leaf", ("max_rows_to_read_leaf", "100")),
        ("result_overflow_mode", ("max_result_rows", "1")),
        ("sort_overflow_mode", ("max_rows_to_sort", "1")),
        ("distinct_overflow_mode", ("max_rows_in_distinct", "1")),
        ("set_overflow_mode", ("max_rows_in_set", "1")),
        ("join_overflow_mode", ("max_rows_in_join", "1")),
        ("transfer_overflow_mode", ("max_rows_to_transfer", "1")),
    ] {
        profiles.push(Profile::of(&[(mode, "break"), limit]));
    }
    profiles.push(Profile::of(&[
        ("group_by_overflow_mode", "any"),
        ("max_rows_to_group_by", "1"),
    ]));
    // Sluice's own `max_execution_time` triggers these.
    for mode in ["timeout_overflow_mode", "timeout_overflow_mode_leaf"] {
        profiles.push(Profile {
            options: vec![("clickhouse.insert_timeout", "1s")],
            many_blocks: true,
            ..Profile::of(&[
                (mode, "break"),
                ("max_execution_speed", "10000"),
                ("timeout_before_checking_execution_speed", "0"),
            ])
        });
    }
    profiles
}

#[tokio::test]
async fn settings_of_a_profile_that_could_change_rows_do_not() {
    let harness = Harness::new("profiles", Content::Lines, known).await;
    assert_eq!(harness.try_all().await, "");
}

/// Settings that decide how ClickHouse reads other formats, all of them at once.
const OF_FORMATS: [(&str, &str); 24] = [
    ("input_format_allow_errors_num", "100"),
    ("input_format_allow_errors_ratio", "1"),
    ("input_format_null_as_default", "0"),
    ("input_format_skip_unknown_fields", "0"),
    ("input_format_defaults_for_omitted_fields", "0"),
    ("input_format_json_read_objects_as_strings", "0"),
    ("input_format_json_named_tuples_as_objects", "0"),
    ("input_format_json_max_depth", "2"),
    ("format_csv_delimiter", ";"),
    ("format_csv_null_representation", "NULL"),
    ("format_csv_allow_single_quotes", "1"),
    ("input_format_csv_skip_first_lines", "3"),
    ("input_format_csv_detect_header", "1"),
    ("input_format_csv_empty_as_default", "0"),
    ("input_format_csv_use_default_on_bad_values", "1"),
    ("input_format_csv_allow_variable_number_of_columns", "0"),
    ("input_format_parquet_max_block_size", "100"),
    ("input_format_parquet_preserve_order", "0"),
    ("input_format_orc_row_batch_size", "100"),
    ("input_format_avro_null_as_default", "1"),
    ("output_format_json_quote_64bit_integers", "1"),
    ("output_format_json_escape_forward_slashes", "1"),
    ("date_time_output_format", "unix_timestamp"),
    ("schema_inference_mode", "union"),
];

#[tokio::test]
async fn settings_of_a_profile_that_could_change_how_formats_are_read_do_not() {
    let profiles = |_: &Site| vec![Profile::harmless(&OF_FORMATS)];
    let harness = Harness::new("profiles-formats", Content::Formats, profiles).await;
    assert_eq!(harness.try_all().await, "");
}

#[tokio::test]
async fn a_profile_that_forbids_required_settings_pauses_intake_and_fails_the_check() {
    let stack = Stack::shared();
    let site = stack.site("forbidden").await.unwrap();
    Sluice::new(stack, &site).migrate();
    for (user, named) in [("limited", "limit"), ("viewer", "setting in readonly mode")] {
        let mut sluice = Sluice::new(stack, &site).set("clickhouse.user", user);
        sluice.start();
        let why = sluice.wait_until_not_ready(named).await;
        assert!(why.contains("in the profile of `clickhouse.user`"), "{why}");
        wait_for("the metric", BOUND, async || {
            let (_, metrics) = sluice.get("/metrics").await?;
            let paused = metrics.contains("sluice_breaker_open{reason=\"settings\"} 1");
            ensure!(paused, "{metrics}");
            Ok(Some(()))
        })
        .await;
        assert_eq!(sluice.stop().await.code(), Some(0));

        let output = sluice.command(&["check"]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{stdout}");
        assert!(stdout.contains(named), "{stdout}");
    }
}

/// A worker can outlive an upgrade or a downgrade of the server. What it has read of the server's
/// settings can then be wrong.
#[tokio::test]
async fn the_settings_are_read_again_once_a_server_turns_out_to_lack_one() {
    let stack = Stack::shared();
    let site = stack.site("lacks-setting").await.unwrap();
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("clickhouse.url", proxy.url());
    Sluice::new(stack, &site).migrate();
    let unknown = "Code: 115. DB::Exception: Setting limit is neither a builtin setting nor started \
                   with the prefix 'custom_' registered for user-defined settings. (UNKNOWN_SETTING)";
    let reads_settings = |sql: &[u8]| {
        let question = b"FROM system.settings WHERE name IN ('limit'";
        sql.windows(question.len()).any(|part| part == question)
    };
    let sends_pinned_settings = |parts: &Parts| {
        parts
            .uri
            .query()
            .is_some_and(|it| it.contains("allow_simdjson="))
    };
    // At first the server has none of the settings.
    proxy.inject(Fault::Error(unknown), 1, move |parts, sql| {
        sends_pinned_settings(parts) && reads_settings(sql)
    });
    sluice.start();
    sluice.wait_until_ready().await;
    assert_eq!(proxy.hits(), 1);
    // Then a load reaches a server that lacks one. The statement is retried, and the load
    // continues.
    let loads = |sql: &[u8]| sql.starts_with(b"INSERT INTO");
    proxy.inject(Fault::Error(unknown), 1, move |_, sql| loads(sql));
    proxy.inject(Fault::Delay(Duration::ZERO), usize::MAX, move |_, sql| {
        reads_settings(sql)
    });
    site.put("a.jsonl", line("a")).await.unwrap();
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, ["a"]);
    assert_eq!(proxy.hits_by_fault()["failed with an error"], 2);
    assert!(
        proxy.hits_by_fault()["delayed"] >= 1,
        "{:?}",
        proxy.hits_by_fault()
    );
}

/// Values of the setting `compatibility`, each of which changes many settings at once.
const VERSIONS: [&str; 9] = [
    "20.3", "21.3", "21.8", "22.8", "23.8", "24.8", "25.3", "25.8", "26.3",
];

/// Returns another value for a setting, if its type implies one.
fn other_value(name: &str, kind: &str, value: &str) -> Option<&'static str> {
    Some(match kind {
        "Bool" | "BoolAuto" if matches!(value, "1" | "true") => "0",
        "Bool" | "BoolAuto" => "1",
        "OverflowMode" => "break",
        "OverflowModeGroupBy" => "any",
        // These get 1 whatever their type and value.
        _ if matches!(name, "readonly" | "limit" | "offset") => "1",
        "NonZeroUInt64" if value == "1" => "2",
        "UInt64" | "Int64" | "Int32" | "UInt64Auto" | "NonZeroUInt64" | "MaxThreads" => {
            if value == "1" { "0" } else { "1" }
        }
        "Float" | "Double" | "FloatAuto" => {
            if value == "1" {
                "0.5"
            } else {
                "1"
            }
        }
        "Seconds" | "Milliseconds" => "1",
        _ => return None,
    })
}

/// Returns a user for every setting of the server that can be changed, and for every version.
async fn every_profile(clickhouse: &ClickHouse) -> Vec<Profile> {
    let sql = "SELECT name, type, value FROM system.settings \
               WHERE NOT is_obsolete AND alias_for = '' ORDER BY name";
    let mut profiles = Vec::new();
    for row in clickhouse.rows(sql).await.unwrap() {
        let text = |field: &str| row[field].as_str().unwrap_or_default();
        let (name, kind, value) = (text("name"), text("type"), text("value"));
        let Some(value) = other_value(name, kind, value) else {
            continue;
        };
        // A server does not start with an invalid profile.
        let select = format!("SELECT 1 SETTINGS {name} = '{value}'");
        if clickhouse.query(&select).await.is_ok() {
            profiles.push(Profile::of(&[(name, value)]));
        }
    }
    profiles.extend(VERSIONS.map(|version| Profile::of(&[("compatibility", version)])));
    for profile in &mut profiles {
        profile.many_blocks = true;
        // Under some settings each line becomes a block, so the time is limited.
        profile.options = vec![("clickhouse.insert_timeout", "20s")];
    }
    profiles
}

#[tokio::test]
#[ignore = "it loads under each of some 1,400 settings, which takes most of an hour"]
async fn no_setting_of_a_profile_changes_rows() {
    let profiles = every_profile(&Stack::shared().clickhouse).await;
    assert!(profiles.len() > 1000, "{}", profiles.len());
    let harness = Harness::new("all-profiles", Content::Lines, |_| profiles).await;
    assert_eq!(harness.try_all().await, "");
}

#[tokio::test]
#[ignore = "it loads under each of some 1,400 settings, which takes an hour"]
async fn no_setting_of_a_profile_changes_how_formats_are_read() {
    let profiles = every_profile(&Stack::shared().clickhouse).await;
    let harness = Harness::new("all-profiles-formats", Content::Formats, |_| profiles).await;
    assert_eq!(harness.try_all().await, "");
}
