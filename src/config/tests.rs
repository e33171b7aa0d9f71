//! The configuration as a whole: layers, problems, secrets, what is shown.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

const NO_ENV: [(&str, &str); 0] = [];

/// A configuration file of its own for each test.
struct TestFile {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn file(yaml: &str) -> TestFile {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sluice.yaml");
    fs::write(&path, yaml).unwrap();
    TestFile { path, _dir: dir }
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs.map(|(a, b)| (a.to_string(), b.to_string())).collect()
}

fn load_all(yaml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, Problems> {
    let file = file(yaml);
    Config::load(Sources {
        file: Some(file.path.clone()),
        env: owned(env),
        flags: owned(flags),
    })
}

fn load(yaml: &str) -> Result<Config, Problems> {
    load_all(yaml, &NO_ENV, &[])
}

fn load_env(env: &[(&str, &str)]) -> Result<Config, Problems> {
    load_all("", env, &[])
}

/// Each problem as `path: message (advice)`.
fn lines(problems: &Problems) -> Vec<String> {
    let line = |it: &Problem| {
        let advice = it.advice.as_deref().unwrap_or("-");
        format!("{}: {} ({advice})", it.path, it.message)
    };
    problems.iter().map(line).collect()
}

/// Each expected problem is a part of the line of the problem in its place.
#[track_caller]
fn check(yaml: &str, expected: &[&str]) {
    check_lines(load(yaml), expected, yaml);
}

#[track_caller]
fn check_env(env: &[(&str, &str)], expected: &[&str]) {
    check_lines(load_env(env), expected, &format!("{env:?}"));
}

#[track_caller]
fn check_lines(result: Result<Config, Problems>, expected: &[&str], input: &str) {
    let found = result.err().as_ref().map(lines).unwrap_or_default();
    let matches = found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(line, part)| line.contains(part));
    assert!(
        matches,
        "{input}\nfound: {found:#?}\nexpected: {expected:#?}"
    );
}

#[test]
fn the_defaults_alone_are_valid() {
    let config = Config::load(Sources::default()).unwrap();
    assert_eq!(config.batch.max_bytes.bytes(), 128 << 20);
    assert_eq!(config.queue.heartbeat(), std::time::Duration::from_secs(40));
    assert_eq!(config.s3.clickhouse_access, ClickHouseAccess::Server);
    let missing = config.queue.require_url().unwrap_err().to_string();
    assert!(missing.contains("SLUICE__QUEUE__URL"), "{missing}");
}

#[test]
fn the_defaults_name_every_field_that_is_not_optional() {
    let config = Config::load(Sources::default()).unwrap();
    let values = serde_json::to_value(&config).unwrap();
    let fields = fields::Fields::new();
    assert!(fields.fields.len() > 35, "{}", fields.fields.len());
    for field in fields.fields.iter().filter(|it| it.kinds.is_empty()) {
        let pointer = format!("/{}", field.path.replace('.', "/"));
        let set = !values.pointer(&pointer).unwrap().is_null();
        assert_eq!(set, field.default.is_some(), "{}", field.path);
        assert!(!field.description.is_empty(), "{}", field.path);
    }
}

#[test]
fn later_layers_win_field_by_field() {
    let yaml = "batch: {window: 1s, max_objects: 7, max_bytes: 1MiB}\nload: {concurrency: 3}";
    let env = [
        ("SLUICE__BATCH__WINDOW", "2s"),
        ("sluice__batch__max_objects", "8"),
    ];
    let flags = [("batch.window", "3s"), ("batch.window", "4s")];
    let config = load_all(yaml, &env, &flags).unwrap();
    assert_eq!(config.batch.window.to_string(), "4s");
    assert_eq!(config.batch.max_objects, 8);
    assert_eq!(config.batch.max_bytes.to_string(), "1MiB");
    assert_eq!(config.load.concurrency, 3);
    assert_eq!(config.load.strategy, LoadStrategy::SinglePass);
}

#[test]
fn environment_strings_become_typed_values() {
    let config = load_env(&[
        ("SLUICE__QUEUE__URL", "http://localhost:4566/000000000000/q"),
        ("SLUICE__QUEUE__MAX_HELD", "2000"),
        ("SLUICE__QUEUE__ALLOW_MISSING_DLQ", "true"),
        ("SLUICE__CLICKHOUSE__PASSWORD", "12345"),
        ("SLUICE__CLICKHOUSE__ENGINE", "replicated"),
        ("SLUICE__ADMIN__LISTEN", "[::]:0"),
        ("SLUICE__EVENT_TYPES__DIR", "/etc/sluice/types"),
        ("Sluice__S3__ClickHouse_Access__Kind", "named_collection"),
        ("SLUICE__S3__CLICKHOUSE_ACCESS__NAME", "uploads"),
        // Not ours.
        ("SLUICE_TEST_CLICKHOUSE", "x"),
        ("SLUICE_LOG", "x"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert!(config.queue.require_url().unwrap().ends_with("/q"));
    assert_eq!(config.queue.max_held, 2000);
    assert!(config.queue.allow_missing_dlq);
    assert_eq!(config.clickhouse.password.expose(), "12345");
    assert_eq!(config.clickhouse.engine, TableEngine::Replicated);
    assert_eq!(config.admin.listen.port(), 0);
    assert_eq!(
        config.event_types.dir.as_deref(),
        Some(Path::new("/etc/sluice/types"))
    );
    let name = "uploads".to_owned();
    assert_eq!(
        config.s3.clickhouse_access,
        ClickHouseAccess::NamedCollection { name }
    );
}

#[test]
fn empty_files_and_sections_change_nothing() {
    let defaults = Config::load(Sources::default()).unwrap();
    for yaml in [
        "",
        "# nothing\n\n",
        "---\n",
        "batch:\nlog: {}\n",
        "queue:\n  url:\n",
    ] {
        assert_eq!(load(yaml).unwrap(), defaults, "{yaml}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_a_problem_among_others() {
    let problems = Config::load(Sources {
        file: Some("/nowhere/sluice.yaml".into()),
        env: owned(&[("SLUICE__BATCH__WINDOW", "5")]),
        flags: Vec::new(),
    });
    check_lines(
        problems,
        &[
            "/nowhere/sluice.yaml: cannot read",
            "batch.window: `5` has no unit",
        ],
        "",
    );
    check(
        "- a\n- b\n",
        &["not a YAML mapping: the file must hold keys and values"],
    );
    check("hunter2", &["the file must hold keys and values"]);
    check("batch: {window: 1s", &["not a YAML mapping: "]);
    check(
        "log: {level: info}\nlog: {level: info}",
        &["duplicated key"],
    );
}

#[test]
fn unknown_keys_are_found_with_what_was_meant() {
    check(
        "batch: {windw: 5s}",
        &["batch.windw: unknown key (did you mean `batch.window`?)"],
    );
    check("batch: {Window: 5s}", &["did you mean `batch.window`?"]);
    check("window: 5s", &["did you mean `batch.window`?"]);
    check(
        "batching: {window: 5s}",
        &["batching: unknown key (did you mean `batch`?)"],
    );
    check(
        "load: {max-bytes: 1MiB}",
        &["did you mean `batch.max_bytes`?"],
    );
    check(
        "log: {colour: true}",
        &["the keys of log are format, level"],
    );
    check(
        "metrics: {port: 1}",
        &["the sections are queue, clickhouse, s3, batch"],
    );
    check(
        "batch: {window: {max: 5s}}",
        &["batch.window: takes one value"],
    );
    check("batch.window: 5s", &["batch.window: has a dot in its key"]);
    check(
        "batch: 5s",
        &["batch: is a section, not a field (set its fields: window,"],
    );
    check("batch: {window: }", &["batch.window: has no value"]);
    check_env(
        &[("SLUICE__BATCH__WINDWO", "5s")],
        &["did you mean `batch.window`?"],
    );
    check_env(&[("SLUICE__BATCH", "5s")], &["batch: is a section"]);
    check_env(
        &[("SLUICE__BATCH__WINDOW__MAX", "5s")],
        &["batch.window is a field and has no keys"],
    );
    check_env(&[("SLUICE__", "5s")], &["unknown key"]);
    check_env(
        &[
            ("SLUICE__LOG__LEVEL", "info"),
            ("sluice__log__level", "warn"),
        ],
        &["log.level: is also given by SLUICE__LOG__LEVEL"],
    );
}

#[test]
fn values_of_the_wrong_type_say_what_the_field_takes() {
    check(
        "batch: {window: 10}",
        &["batch.window: `10` has no unit, write `10s`"],
    );
    check(
        "batch: {max_bytes: 5}",
        &["batch.max_bytes: `5` has no unit, write `5MiB`"],
    );
    check("batch: {window: soon}", &["`soon` is not a duration"]);
    check(
        "queue: {receivers: 2.5}",
        &["whole number (give a whole number, 1 to 16; the default is `2`)"],
    );
    check(
        "queue: {receivers: -1}",
        &["queue.receivers: invalid value"],
    );
    check(
        "queue: {receivers: many}",
        &["queue.receivers: invalid value"],
    );
    check(
        "queue: {allow_missing_dlq: maybe}",
        &["give `true` or `false`"],
    );
    check("queue: {url: 12}", &["queue.url: invalid type"]);
    check(
        "load: {strategy: fast}",
        &["give one of `single_pass`, `per_type`"],
    );
    check("admin: {listen: 9464}", &["admin.listen: "]);
    check(
        "admin: {listen: localhost}",
        &["admin.listen: invalid socket address"],
    );
    check_env(
        &[("SLUICE__LOG__FORMAT", "xml")],
        &["log.format: unknown variant `xml`"],
    );
}

#[test]
fn values_out_of_range_are_refused() {
    check(
        "queue: {receivers: 17}",
        &["queue.receivers: `17` is out of range (give a whole number, 1 to 16"],
    );
    check("queue: {receivers: 0}", &["queue.receivers"]);
    check("queue: {max_held: 100001}", &["queue.max_held"]);
    check(
        "queue: {wait_time: 21s}",
        &["queue.wait_time: `21s` is out of range (give a duration from 0s to 20s"],
    );
    check(
        "queue: {wait_time: 1500ms}",
        &["`1s500ms` is not a whole number of seconds"],
    );
    check(
        "queue: {visibility_timeout: 9s}",
        &["give a duration from 10s to 12h"],
    );
    check(
        "queue: {visibility_timeout: 13h}",
        &["queue.visibility_timeout"],
    );
    check(
        "queue: {retry_backoff_max: 13h}",
        &["queue.retry_backoff_max"],
    );
    check(
        "clickhouse: {connect_timeout: 0s}",
        &["must be more than 0s"],
    );
    check(
        "clickhouse: {dedup_window: 1}",
        &["clickhouse.dedup_window"],
    );
    check("clickhouse: {reject_ttl: 1h}", &["clickhouse.reject_ttl"]);
    check(
        "clickhouse: {database: ''}",
        &["clickhouse.database: is empty"],
    );
    check(
        "clickhouse: {cluster: \"a\\0b\"}",
        &["clickhouse.cluster: has a control character"],
    );
    check("batch: {window: 0s}", &["batch.window"]);
    check("batch: {max_objects: 5001}", &["batch.max_objects"]);
    check(
        "batch: {max_bytes: 1023KiB}",
        &["batch.max_bytes: `1023KiB` is too small (give 1MiB or more)"],
    );
    check("load: {concurrency: 65}", &["load.concurrency"]);
    check("shutdown: {grace_period: 0s}", &["shutdown.grace_period"]);
    check("log: {level: inof}", &["`inof` is not a level"]);
    check(
        "log: {level: 'sluice=loud'}",
        &["log.level: is not a log filter"],
    );
    check("log: {level: ''}", &["log.level: is empty"]);
    assert!(load("log: {level: 'sluice=debug,hyper::client=off,WARN'}").is_ok());
}

#[test]
fn urls_are_checked() {
    check("queue: {url: uploads}", &["queue.url: is not a URL"]);
    check(
        "queue: {url: 'arn:aws:sqs:eu-central-1:1:q'}",
        &["queue.url: is an ARN, not a URL"],
    );
    check(
        "queue: {url: 'https://sqs.eu-central-1.amazonaws.com'}",
        &["names no queue"],
    );
    check(
        "queue: {url: 'sqs://host/1/q'}",
        &["is not an http or https URL"],
    );
    check(
        "clickhouse: {url: 'tcp://h:9000'}",
        &["clickhouse.url: is not an http or https URL"],
    );
    check(
        "clickhouse: {url: 'http://sluice@h:8123'}",
        &["has a user or password in it (set clickhouse.user and clickhouse.password instead)"],
    );
    check(
        "clickhouse: {url: 'http://h:8123/?user=a'}",
        &["has a query or fragment"],
    );
    check(
        "s3: {clickhouse_endpoint: 'http://h/?x=1'}",
        &["s3.clickhouse_endpoint: has a query"],
    );
}

#[test]
fn related_fields_are_checked_together() {
    check(
        "queue: {retry_backoff_max: 5s}",
        &[
            "queue.retry_backoff_max: queue.retry_backoff_min (10s) is more than queue.retry_backoff_max (5s)",
        ],
    );
    check(
        "load: {retry_backoff_min: 2m}",
        &["load.retry_backoff_min: load.retry_backoff_min (2m)"],
    );
    check(
        "queue: {max_held: 10}",
        &["10 is less than batch.max_objects (1000)"],
    );
    check(
        "clickhouse: {ca_file: /ca.pem}",
        &["clickhouse.ca_file: has no effect"],
    );
    // A value that is wrong by itself is not compared as well.
    check(
        "load: {retry_backoff_min: 2, retry_backoff_max: 500ms}",
        &["`2` has no unit"],
    );
    check(
        "queue: {max_held: 0}",
        &["queue.max_held: `0` is out of range"],
    );
}

#[test]
fn each_kind_of_access_has_its_fields() {
    let access = |fields: &str| format!("s3: {{clickhouse_access: {{{fields}}}}}");
    let good = [
        "kind: server",
        "kind: anonymous",
        "kind: named_collection, name: uploads",
        "kind: role, role_arn: 'arn:aws:iam::1:role/r'",
        "kind: keys, access_key_id: AKIA, secret_access_key: s3cr3t",
    ];
    for fields in good {
        assert!(load(&access(fields)).is_ok(), "{fields}");
    }
    check(
        &access("kind: named_collection"),
        &["name: kind `named_collection` needs it"],
    );
    check(
        &access("kind: keys"),
        &[
            "access_key_id: kind `keys` needs it",
            "SLUICE__S3__CLICKHOUSE_ACCESS__SECRET_ACCESS_KEY",
        ],
    );
    check(
        &access("kind: server, name: uploads"),
        &[
            "name: does not fit kind `server` (remove it, or set s3.clickhouse_access.kind to `named_collection`",
        ],
    );
    check(
        &access("kind: role, access_key_id: AKIA, secret_access_key: x"),
        &[
            "access_key_id: does not fit",
            "secret_access_key: does not fit",
            "role_arn: kind `role` needs it",
        ],
    );
    check(&access("name: uploads"), &["does not fit kind `server`"]);
    check(
        &access("kind: role, role_arn: reader"),
        &["role_arn: is not an ARN"],
    );
    check(
        &access("kind: keys, access_key_id: '', secret_access_key: ''"),
        &["is empty", "is empty"],
    );
    check(
        &access("kind: key, name: x"),
        &["s3.clickhouse_access.kind: unknown variant `key`"],
    );
    check(
        &access("kind: keys, access_key_id: 1, secret_access_key: x"),
        &["access_key_id: invalid type"],
    );
    check(
        &access("kind: keys, key: 1"),
        &["key: unknown key", "needs it", "needs it"],
    );
}

#[test]
fn every_problem_is_told_at_once_with_its_origin() {
    let yaml = "batch: {windw: 5s, max_objects: 0}\nlog: {format: xml}";
    let env = [("SLUICE__QUEUE__RECEIVERS", "many")];
    let flags = [("load.concurrency", "1000"), ("admin.listn", "x")];
    let file = file(yaml);
    let problems = Config::load(Sources {
        file: Some(file.path.clone()),
        env: owned(&env),
        flags: owned(&flags),
    })
    .unwrap_err();
    let shown = problems.to_string();
    let shown = shown.replace(&file.path.display().to_string(), "sluice.yaml");
    insta::assert_snapshot!(shown, @"");
}
