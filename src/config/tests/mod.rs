//! Tests of the configuration as a whole: here of the layers.

mod refused;
mod shown;

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::formats::OnAllRejected;
use crate::statements::insert::Strategy;

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

/// Checks that each expected text is a part of the problem in its place.
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
    assert_eq!(config.s3.clickhouse_access, S3AccessConfig::Server);
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
fn what_happens_to_objects_of_rejects_alone_depends_on_their_format_if_it_is_unset() {
    let of = |yaml: &str| load(yaml).unwrap().load.on_all_rejected;
    assert_eq!(of("load: {concurrency: 2}"), None);
    assert_eq!(
        of("load: {on_all_rejected: keep}"),
        Some(OnAllRejected::Keep)
    );
    assert_eq!(
        of("load: {on_all_rejected: fail}"),
        Some(OnAllRejected::Fail)
    );
    check("load: {on_all_rejected: drop}", &["load.on_all_rejected: "]);
    let fields = fields::Fields::new();
    let field = fields.field("load.on_all_rejected").unwrap();
    assert_eq!(field.takes, "one of `keep`, `fail`");
    assert!(field.optional);
}

#[test]
fn only_plain_http_to_another_machine_is_in_clear() {
    for (url, in_clear) in [
        ("http://clickhouse:8123", true),
        ("http://10.0.0.7:8123", true),
        ("https://clickhouse:8443", false),
        ("http://localhost:8123", false),
        ("http://127.0.0.1:8123", false),
        ("http://[::1]:8123", false),
    ] {
        let yaml = format!("clickhouse: {{url: '{url}'}}");
        let config = load(&yaml).unwrap();
        assert_eq!(config.clickhouse.is_in_clear(), in_clear, "{url}");
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
    assert_eq!(config.load.strategy, Strategy::SinglePass);
}

#[test]
fn environment_strings_become_typed_values() {
    let config = load_env(&[
        ("SLUICE__QUEUE__URL", "http://localhost:4566/000000000000/q"),
        ("SLUICE__QUEUE__MAX_HELD", "2000"),
        ("SLUICE__QUEUE__ALLOW_MISSING_DLQ", "true"),
        ("SLUICE__LOAD__MAX_REJECTED_RATIO", "0.25"),
        ("SLUICE__CLICKHOUSE__PASSWORD", "12345"),
        ("SLUICE__CLICKHOUSE__ENGINE", "replicated"),
        ("SLUICE__ADMIN__LISTEN", "[::]:0"),
        ("SLUICE__EVENT_TYPES__DIR", "/etc/sluice/types"),
        ("Sluice__S3__ClickHouse_Access__Kind", "named_collection"),
        ("SLUICE__S3__CLICKHOUSE_ACCESS__NAME", "uploads"),
        // Not Sluice's.
        ("SLUICE_TEST_CLICKHOUSE", "x"),
        ("SLUICE_LOG", "x"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert!(config.queue.require_url().unwrap().ends_with("/q"));
    assert_eq!(config.queue.max_held, 2000);
    assert!(config.queue.allow_missing_dlq);
    assert_eq!(config.load.max_rejected_ratio.get(), 0.25);
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
        S3AccessConfig::NamedCollection { name }
    );
}

#[test]
fn lists_come_from_every_layer_and_later_ones_replace_earlier_ones() {
    let yaml = "notifications: {include: [a, 'b,c'], exclude: x, events: ['ObjectCreated:Put']}";
    let filter = load(yaml).unwrap().notifications;
    assert_eq!(filter.include, ["a", "b,c"]);
    assert_eq!(filter.exclude, ["x"]);
    assert_eq!(filter.events, ["ObjectCreated:Put"]);

    let env = [("SLUICE__NOTIFICATIONS__INCLUDE", r#"["{d,e}/*.jsonl"]"#)];
    let flags = [("notifications.exclude", "")];
    let filter = load_all(yaml, &env, &flags).unwrap().notifications;
    assert_eq!(filter.include, ["{d,e}/*.jsonl"]);
    assert_eq!(filter.exclude, Vec::<String>::new());
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
