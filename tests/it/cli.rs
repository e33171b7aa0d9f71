//! The command line, as people and orchestrators use it.

use std::process::Output;

use sluice_testkit::Stack;

use crate::harness::{Sluice, sluice};

fn run(arguments: &[&str]) -> Output {
    sluice().args(arguments).output().expect("sluice runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Returns the output of a command that succeeds.
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stderr(&output), "");
    stdout(&output)
}

/// Returns the error of a command that exits with code 2: the command line or the configuration is
/// invalid.
fn usage_error(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(stdout(&output), "");
    stderr(&output)
}

fn assert_contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

#[test]
fn help_lists_every_command() {
    let help = printed(&["--help"]);
    insta::assert_snapshot!("help", help);
    let commands = commands_in(&help);
    assert!(commands.contains(&"run"), "{commands:?}");
    for command in commands {
        let help = printed(&[command, "--help"]);
        for inner in commands_in(&help) {
            let name = format!("help_{command}_{inner}");
            insta::assert_snapshot!(name, printed(&[command, inner, "--help"]));
        }
        insta::assert_snapshot!(format!("help_{command}"), help);
    }
}

fn commands_in(help: &str) -> Vec<&str> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !["", "help"].contains(name))
        .collect()
}

/// Closes the pipe as `sluice … | head` does.
#[test]
fn a_closed_output_does_not_change_the_exit_code() {
    let nowhere = ["--set", "clickhouse.url=http://127.0.0.1:1"];
    let commands = [
        (&["config", "schema"][..], 0),
        (&["types", "list"], 0),
        // It prints its report, and then fails since nothing answers.
        (&["status", "--set", "queue.url=http://127.0.0.1:1/q"], 1),
    ];
    for (command, code) in commands {
        let (reader, output) = std::io::pipe().unwrap();
        drop(reader);
        let mut sluice = sluice();
        sluice.args(nowhere).args(command);
        sluice.envs([
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
        ]);
        sluice.stderr(output.try_clone().unwrap()).stdout(output);
        assert_eq!(sluice.status().unwrap().code(), Some(code), "{command:?}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let output = sluice()
        .args(["config", "schema"])
        .stdout(full.unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_contains(&stderr(&output), &["standard output"]);
}

#[test]
fn the_version_is_printed() {
    let expected = format!("sluice {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(printed(&["--version"]), expected);
}

#[test]
fn config_show_prints_the_effective_values_without_secrets() {
    let output = sluice()
        .args(["--set", "batch.window=7s", "config", "show"])
        .env("SLUICE__CLICKHOUSE__PASSWORD", "correct-horse")
        .output()
        .expect("sluice runs");
    let shown = stdout(&output);
    assert!(!shown.contains("correct-horse"), "{shown}");
    assert_contains(
        &shown,
        &["password:", "window: 7s", "visibility_timeout: 2m"],
    );
}

#[test]
fn variables_and_flags_override_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sluice.yaml");
    let text = "batch:\n  window: 1s\n  max_objects: 1\nload:\n  concurrency: 3\n";
    std::fs::write(&file, text).unwrap();
    let output = sluice()
        .env("SLUICE_CONFIG", &file)
        .env("SLUICE__BATCH__WINDOW", "2s")
        .env("SLUICE__BATCH__MAX_OBJECTS", "2")
        .args(["config", "show", "--set", "batch.window=4s"])
        .output()
        .unwrap();
    let shown = stdout(&output);
    assert_contains(&shown, &["window: 4s", "max_objects: 2", "concurrency: 3"]);
}

#[test]
fn config_schema_is_json_and_needs_no_configuration() {
    let text = printed(&["--config", "/nowhere/at/all.yaml", "config", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let window = &schema["properties"]["batch"]["properties"]["window"];
    assert_eq!(window["default"], "10s");
}

#[test]
fn all_problems_are_reported_at_once_with_advice() {
    let error = usage_error(&[
        "--set",
        "batch.windw=5s",
        "--set",
        "queue.visibility_timeout=3s",
        "config",
        "show",
    ]);
    assert_contains(
        &error,
        &[
            "batch.windw: unknown key",
            "did you mean `batch.window`?",
            "queue.visibility_timeout",
            "set it to a duration from 10s to 12h",
        ],
    );
    assert_contains(
        &usage_error(&["--config", "/nowhere/at/all.yaml", "run"]),
        &["/nowhere/at/all.yaml"],
    );
    assert_contains(&usage_error(&["run"]), &["queue.url"]);
    assert_contains(&usage_error(&["--set", "nonsense", "run"]), &["PATH=VALUE"]);
    assert_contains(&usage_error(&["rnu"]), &["rnu", "Usage: sluice"]);
    assert_contains(&usage_error(&[]), &["Usage: sluice"]);
}

#[test]
fn an_invalid_event_type_is_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("bad.yaml"), "nam: x\n").unwrap();
    let setting = format!("event_types.dir={}", directory.path().display());
    let error = usage_error(&["--set", &setting, "migrate", "--print"]);
    assert_contains(&error, &["bad.yaml"]);
}

#[test]
fn retry_without_a_selection_is_a_usage_error() {
    let error = usage_error(&["retry"]);
    assert_contains(&error, &["name objects", "--error-class", "--all"]);
}

#[test]
fn an_unknown_error_class_is_refused_with_the_known_ones() {
    for (command, also) in [
        (&["status", "--failed"][..], "view"),
        (&["retry"], "unproven"),
        (&["dlq", "list"], "malformed"),
        (&["dlq", "redrive"], "untried"),
        (&["dlq", "purge"], "loaded"),
    ] {
        let error = usage_error(&[command, &["--error-class", "misssing"]].concat());
        assert_contains(&error, &["misssing", "missing, denied", also]);
    }
}

/// The paths of all key columns may be mistyped, and nothing else would report it.
#[test]
fn a_sorting_key_that_identifies_no_row_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let declared = "table: clicks\nrule: {path: [verb], equals: click}\norder_by: [shop, id]\n\
                    columns:\n- {name: shop, type: String, path: [shop]}\n\
                    - {name: id, type: String, path: [idd]}\n";
    std::fs::write(directory.path().join("click.yaml"), declared).unwrap();
    let setting = format!("event_types.dir={}", directory.path().display());
    for command in [&["check"][..], &["migrate", "--print"], &["types", "list"]] {
        let error = usage_error(&[&["--set", &setting], command].concat());
        assert_contains(
            &error,
            &["click.yaml:3:1: order_by: ", "otherwise: line_hash"],
        );
    }
}

#[test]
fn migrate_prints_its_statements_without_connecting() {
    let text = printed(&[
        "--set",
        "clickhouse.url=http://127.0.0.1:1",
        "--set",
        "clickhouse.database=else`where",
        "migrate",
        "--print",
    ]);
    assert_contains(
        &text,
        &[
            "-- table video_events\nCREATE TABLE IF NOT EXISTS ",
            "CREATE MATERIALIZED VIEW IF NOT EXISTS ",
            r"`else\`where`",
        ],
    );
    assert!(text.trim_end().ends_with(';'), "{text}");
}

#[test]
fn migrate_names_the_address_that_does_not_answer() {
    let output = run(&["--set", "clickhouse.url=http://127.0.0.1:1", "migrate"]);
    assert_eq!(output.status.code(), Some(1));
    assert_contains(&stderr(&output), &["http://127.0.0.1:1"]);
}

#[tokio::test]
async fn migrate_is_idempotent_and_can_run_concurrently() {
    let stack = Stack::shared();
    let site = stack.site("migrate").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| sluice.migrate());
        }
    });
    let tables = format!(
        "SELECT name, create_table_query, uuid FROM system.tables WHERE database = '{}' ORDER BY name",
        site.database
    );
    let created = stack.clickhouse.rows(&tables).await.unwrap();
    assert!(created.len() > 15, "{created:?}");
    sluice.migrate();
    assert_eq!(stack.clickhouse.rows(&tables).await.unwrap(), created);
    let again = stdout(&sluice.command(&["migrate"]));
    assert_eq!(again, "everything is as declared\n");

    // The printed statements are those that were run.
    let printed = sluice.command(&["migrate", "--print"]);
    let count = stdout(&printed).matches("\nCREATE ").count();
    // One more statement creates the database.
    assert_eq!(count, created.len() + 1);
}
