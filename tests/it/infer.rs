//! `sluice types infer`, `check` and `schema`: what is printed passes the check, and loads the
//! sample that it was inferred from.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use sluice_testkit::Stack;

use crate::harness::{Sluice, sluice};

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn lines(records: impl IntoIterator<Item = Value>) -> String {
    let lines = records.into_iter().map(|record| record.to_string() + "\n");
    lines.collect()
}

/// Clicks and purchases of a web shop, as JSON lines.
fn clickstream() -> String {
    lines((0..200).map(|number| {
        let mut record = json!({
            "event_id": format!("7d0f3f0e-6a51-4c2f-9a77-{number:012}"),
            "event": if number % 4 == 0 { "purchase" } else { "page_view" },
            "timestamp": format!("2026-{:02}-20T08:00:00.{number:03}Z", number % 9 + 1),
            "received_at": 1_783_958_400_000_usize + number,
            "shop": (["de", "fr", "es"][number % 3]),
            "day": "2026-07-14",
            "user": {"id": number * 7, "tags": ["a", "b"], "plan": Value::Null},
            "odd \"key\": #1": {"x": [1, 2, 3], "y": [{"z": 1}]},
        });
        if number % 4 == 0 {
            record["total"] = json!(12.5);
            record["items"] = json!([{"sku": "A-1", "quantity": 1}]);
        } else {
            record["page"] = json!({"url": format!("/p/{number}\n"), "referrer": ""});
        }
        record
    }))
}

/// One document with the calls in a list, as CloudTrail writes it.
fn cloudtrail() -> String {
    let call = |number: usize| {
        json!({
            "eventVersion": "1.09",
            "eventID": format!("7d0f3f0e-6a51-4c2f-9a77-{number:012}"),
            "eventTime": format!("2026-11-20T08:{:02}:31Z", number % 60),
            "eventName": format!("Call{}", number % 30),
            "awsRegion": (["eu-central-1", "us-east-1"][number % 2]),
            "userIdentity": if number.is_multiple_of(3) {
                json!({"type": "Root", "accountId": "123456789012"})
            } else {
                json!({"type": "AssumedRole", "arn": format!("arn:{number}")})
            },
            "requestParameters": {format!("key{}", number % 30): {"a": number}},
            "responseElements": Value::Null,
            "readOnly": number.is_multiple_of(5),
        })
    };
    json!({"Records": (0..120).map(call).collect::<Vec<_>>()}).to_string()
}

/// An export of a spreadsheet.
fn export() -> String {
    let rows = (0..80).map(|number| {
        let amount = if number % 7 == 0 {
            "N/A".to_owned()
        } else {
            format!("{number}.50")
        };
        format!(
            "T-{number:04},\"Müller, {}\",{amount},{},2026-07-14T08:00:00Z,{number:05}\r\n",
            number % 4,
            number * 3
        )
    });
    format!(
        "Trip ID,Customer,Amount,Distance,Paid at,Zip\r\n{}",
        rows.collect::<String>()
    )
}

fn files_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[tokio::test]
async fn inferred_declarations_load_their_own_sample() {
    let stack = Stack::shared();
    let site = stack.site("infer").await.unwrap();
    site.stop_notifications().await.unwrap();
    for (name, file, content, rows, expected) in [
        (
            "clicks",
            "part-1.jsonl",
            clickstream(),
            200,
            vec!["page_view.yaml", "purchase.yaml"],
        ),
        (
            "trail",
            "part-1.json",
            cloudtrail(),
            120,
            vec!["formats.yaml", "trail.yaml"],
        ),
        (
            "exports",
            "part-1.csv",
            export(),
            80,
            vec!["exports.yaml", "formats.yaml"],
        ),
    ] {
        site.put(&format!("{name}/{file}"), content.clone())
            .await
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let types = directory.path().join("types");
        let local = directory.path().join(file);
        std::fs::write(&local, &content).unwrap();
        let database = format!("{}_{name}", site.database);
        let sluice = Sluice::new(stack, &site)
            .set("clickhouse.database", &database)
            .set("event_types.dir", types.display());

        let shown = types.display().to_string();
        let prefix = format!("s3://{}/{name}/", site.bucket);
        let arguments = ["types", "infer", &prefix, "--output-dir", &shown];
        text(&sluice.command(&arguments));
        assert_eq!(files_in(&types), expected, "{name}");
        assert!(
            !sluice.command(&arguments).status.success(),
            "it overwrites files"
        );
        text(&sluice.command(&["types", "check", &shown]));

        // The same from a file, on standard output.
        let printed = text(&sluice.command(&[
            "types",
            "infer",
            &local.display().to_string(),
            "--name",
            name,
        ]));
        for file in &expected {
            assert!(
                printed.contains(&format!("# {file}\n")),
                "{name}: {printed}"
            );
        }

        sluice.migrate();
        let loaded = text(&sluice.command(&["backfill", &prefix, "--output", "json"]));
        let sql = format!(
            "SELECT kind, sum(rows) AS rows FROM {database}.object_rows GROUP BY kind ORDER BY kind"
        );
        let kinds: Vec<Value> = stack.clickhouse.rows(&sql).await.unwrap();
        let total: u64 = kinds.iter().filter_map(|kind| kind["rows"].as_u64()).sum();
        let is_event = |kind: &Value| {
            let file = format!("{}.yaml", kind["kind"].as_str().unwrap());
            expected.contains(&file.as_str())
        };
        assert!(kinds.iter().all(is_event), "{name}: {kinds:?} {loaded}");
        assert_eq!(total, rows, "{name}: {kinds:?}");
        // No value of a column that is declared as present was refused.
        let source = format!("{prefix}{file}");
        let preview = text(&sluice.command(&[
            "types", "preview", &source, "--lines", "1000", "--output", "json",
        ]));
        let preview: Value = serde_json::from_str(&preview).unwrap();
        for values in preview["column_values"].as_object().unwrap().values() {
            for values in values.as_array().unwrap() {
                let is_placeholder = values["example"] == "";
                assert!(values["invalid"] == 0 || is_placeholder, "{name}: {values}");
            }
        }
        stack
            .clickhouse
            .execute(&format!("DROP DATABASE {database} SYNC"))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_preview_tells_missing_defaulted_and_invalid_values_apart() {
    let stack = Stack::shared();
    let site = stack.site("gaps").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let declaration = "table: clicks
rule: {path: [verb], present: true}
order_by: [id]
columns:
- {name: id, type: String, path: [id], otherwise: line_hash}
- {name: n, type: Int32, path: [n]}
- {name: at, type: \"Nullable(DateTime64(3, 'UTC'))\", path: [at]}
- {name: twice, type: Int64, path: [n], expression: 'toInt64OrNull({value}) * 2'}
- {name: full, type: String, path: [verb]}
";
    let formats = "formats:\n- {name: csv, keys: ['**/*.csv'], csv: {}}\n\
                   - {name: log, keys: ['**/*.log'], regex: {pattern: \
                   '^(?P<verb>\\S+) n=(?P<n>\\S*) at=(?P<at>\\S*)'}}\n";
    std::fs::write(directory.path().join("click.yaml"), declaration).unwrap();
    std::fs::write(directory.path().join("formats.yaml"), formats).unwrap();
    let types = directory.path().display().to_string();
    let arguments = |key: &str, output: &str| {
        let arguments = ["types", "preview", "-", "--key", key, "--output", output];
        arguments.map(str::to_owned)
    };
    let configured = Sluice::new(stack, &site).set("event_types.dir", &types);
    for (key, input) in [
        (
            "a.jsonl",
            "{\"verb\":\"a\",\"n\":\"x\"}\n{\"verb\":\"a\",\"n\":7,\"at\":\"now\"}\n\
             {\"verb\":\"a\",\"n\":null}\n",
        ),
        ("a/a.csv", "verb,n,at\na,x,\na,7,now\na,,\na,1,2,3\n"),
        ("a/a.log", "a n=x at=\na n=7 at=now\na n= at=\nno match\n"),
    ] {
        let previewed = |output: &str| {
            let arguments = arguments(key, output);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            text(&configured.command_with_input(&arguments, input.as_bytes()))
        };
        let json: Value = serde_json::from_str(&previewed("json")).unwrap();
        assert_eq!(
            json["column_values"]["click"],
            json!([
                {"column": "id", "missing": 0, "defaulted": 3, "invalid": 0},
                {"column": "n", "missing": 0, "defaulted": 1, "invalid": 1, "example": "x"},
                {"column": "at", "missing": 2, "defaulted": 0, "invalid": 1, "example": "now"},
                {"column": "twice", "missing": 0, "defaulted": 1, "invalid": 1, "example": "x"},
            ]),
            "{key}: {json:#}"
        );
        let shown = previewed("text");
        assert!(shown.contains("defaulted"), "{shown}");
    }
    let large = format!("{{\"verb\":\"a\",\"id\":\"{}\"}}\n", "x".repeat(3 << 20));
    for output in ["json", "text"] {
        let arguments = arguments("a.jsonl", output);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let shown = text(&configured.command_with_input(&arguments, large.as_bytes()));
        assert!(shown.len() < 10_000, "{output}: {} bytes", shown.len());
    }
}

#[test]
fn a_check_reports_all_problems_with_their_lines() {
    let directory = tempfile::tempdir().unwrap();
    let broken = "tabel: a\nrule: {path: [v], equals: a}\ncolumns:\n  - {name: id, tpye: String}\n";
    let wrong = "table: b\nrule: {path: [v], equals: b}\norder_by: [id]\ncolumns:\n  - name: id\n    \
                 type: Strng\n    path: [id]\n    required: true\n";
    std::fs::write(directory.path().join("a.yaml"), broken).unwrap();
    std::fs::write(directory.path().join("b.yaml"), wrong).unwrap();
    let shown = directory.path().display().to_string();
    let check = |arguments: &[&str]| {
        let output = sluice()
            .args(["types", "check", &shown])
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        output
    };
    let error = String::from_utf8(check(&[]).stderr).unwrap();
    for place in [
        "a.yaml:1:1: tabel: ",
        "a.yaml:4:5: columns[0]: has no `type`",
        "a.yaml:4:16: ",
        "b.yaml:6:5: columns[0].type: ",
    ] {
        assert!(error.contains(place), "{place}: {error}");
    }
    let json: Value = serde_json::from_slice(&check(&["--output", "json"]).stdout).unwrap();
    let problems = json["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 4, "{json:#}");
    assert_eq!(problems[3]["file"], "b.yaml");
    assert_eq!(
        (&problems[3]["line"], &problems[3]["column"]),
        (&json!(6), &json!(5))
    );

    for (arguments, key) in [(&[][..], "columns"), (&["--formats"], "formats")] {
        let output = sluice()
            .args(["types", "schema"])
            .args(arguments)
            .output()
            .unwrap();
        let schema: Value = serde_json::from_str(&text(&output)).unwrap();
        assert!(
            schema["properties"][key]["description"].is_string(),
            "{schema:#}"
        );
    }
}

impl Sluice {
    /// Runs a subcommand with this standard input.
    fn command_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.prepare();
        child.args(arguments).stdin(Stdio::piped());
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("sluice starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(input).expect("sluice reads it");
        drop(stdin);
        child.wait_with_output().expect("sluice exits")
    }
}
