//! `sluice rejects` lists, shows and replays lines that did not become rows.

use std::path::Path;

use serde_json::{Value, json};
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, wait_until_drained};

fn output(sluice: &Sluice, arguments: &[&str]) -> String {
    let output = sluice.command(&[&["rejects"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn parsed(sluice: &Sluice, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    serde_json::from_str(&output(sluice, &arguments)).unwrap()
}

/// Creates a site and a worker that has loaded these objects and stopped.
async fn with_objects(
    name: &str,
    objects: &[(&str, &[u8])],
    configure: impl FnOnce(Sluice) -> Sluice,
) -> (&'static Stack, Site, Sluice) {
    let stack = Stack::shared();
    let site = stack.site(name).await.unwrap();
    let mut sluice = configure(Sluice::new(stack, &site));
    sluice.migrate();
    for (key, content) in objects {
        site.put(key, *content).await.unwrap();
    }
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    (stack, site, sluice)
}

#[tokio::test]
async fn rejects_are_listed_by_reason_and_by_object() {
    const VIEWED: &[u8] = br#"{"verb":{"id":"http://id.tincanapi.com/verb/viewed"},
        "object":{"definition":{"type":"http://oli.cmu.edu/extensions/types/page"}},
        "timestamp":"soon"}"#;
    let viewed = VIEWED.iter().filter(|byte| !byte.is_ascii_whitespace());
    let others = b"{\"note\":1}\nno JSON\n\xff\x1b[2J\n\n[1]\n".iter();
    let lines: Vec<u8> = others.chain(viewed).copied().collect();
    let objects: [(&str, &[u8]); 2] = [
        ("a/1.jsonl", &lines),
        ("b/2.jsonl", b"no JSON either\n{\"note\":2}\n"),
    ];
    let (_, site, sluice) = with_objects("rejects", &objects, |it| it).await;
    let list = |arguments: &[&str]| {
        let text = parsed(&sluice, arguments).to_string();
        let groups: Vec<Value> = serde_json::from_str(&text.replace(&site.bucket, "B")).unwrap();
        let brief = groups.iter().map(|group| {
            assert!(group["first_kept_at"].as_str() <= group["last_kept_at"].as_str());
            let fields = ["object", "kind", "reason", "lines", "objects"].map(|key| &group[key]);
            json!(fields).to_string()
        });
        brief.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!("rejects_list", list(&["list"]));
    insta::assert_snapshot!("rejects_list_by_object", list(&["list", "--by", "object"]));
    let both = r#"[null,"rejected","not JSON",2,2]"#;
    let under = format!("s3://{}/b", site.bucket);
    for (arguments, expected) in [
        (["--reason", "json"], both),
        (
            ["--prefix", &under],
            "[null,\"rejected\",\"not JSON\",1,1]\n[null,\"unmatched\",\"no event type\",1,1]",
        ),
        (
            ["--kind", "unmatched"],
            r#"[null,"unmatched","no event type",2,2]"#,
        ),
        (["--since", "0s"], ""),
        (["--limit", "1"], both),
    ] {
        assert_eq!(
            list(&[&["list"][..], &arguments].concat()),
            expected,
            "{arguments:?}"
        );
    }
    assert!(output(&sluice, &["list"]).contains("not an object"));
    assert!(output(&sluice, &["list", "--reason", "nothing"]).starts_with("no matching rejects"));

    let url = format!("s3://{}/a/1.jsonl", site.bucket);
    let shown = output(&sluice, &["show", &url]).replace(&site.bucket, "B");
    insta::assert_snapshot!("rejects_show", shown);
    let mut whole = parsed(&sluice, &["show", &url]);
    whole["object"] = "U".into();
    for line in whole["lines"].as_array_mut().unwrap() {
        assert!(line["kept_at"].as_str() > Some("2020"));
        line["kept_at"] = "T".into();
        line["etag"] = "E".into();
    }
    insta::assert_snapshot!(
        "rejects_show_json",
        serde_json::to_string_pretty(&whole).unwrap()
    );
    assert!(output(&sluice, &["show", "s3://elsewhere/x"]).starts_with("no rejects"));
}

/// The initial event types.
const INITIAL: &[(&str, &str)] = &[(
    "click.yaml",
    "table: clicks
rule: {path: [verb], equals: click}
order_by: [id]
columns:
- {name: id, type: String, path: [id], identifies: true}
- {name: at, type: \"DateTime64(3, 'UTC')\", path: [at], required: true}
",
)];

/// The event types afterwards: one declaration is fixed, and one is new.
const FIXED: &[(&str, &str)] = &[
    (
        "click.yaml",
        "table: clicks
rule: {path: [verb], equals: click}
order_by: [id]
columns:
- {name: id, type: String, path: [id], identifies: true}
- {name: at, type: \"DateTime64(3, 'UTC')\", path: [at], fallbacks: [[when]], required: true}
",
    ),
    (
        "tap.yaml",
        "table: taps
rule: {path: [verb], equals: tap}
order_by: [id]
columns:
- {name: id, type: String, path: [id], otherwise: line_hash}
",
    ),
];

/// Returns lines of all kinds. `N` is a placeholder for the name, since equal ids collapse in
/// merges.
fn mixed(name: &str) -> Vec<u8> {
    let before = r#"{"verb":"click","id":"N0","at":"2026-07-14T08:00:00Z"}
{"verb":"click","id":"N1","when":"2026-07-14T08:00:01Z"}
{"verb":"click","id":"N2"}
{"verb":"tap","id":"N3"}
no object

"#;
    let after = "{\"verb\":\"tap\",\"id\":\"N6\"}\n{\"verb\":\"hum\"}\n\
                 {\"verb\":\"tap\",\"id\":\"N8 é \\u0000\"}\r\n";
    let [before, after] = [before, after].map(|text| text.replace('N', name));
    [before.as_bytes(), b"\xff", after.as_bytes()].concat()
}

fn declare(directory: &Path, declarations: &[(&str, &str)]) {
    for (file, text) in declarations {
        std::fs::write(directory.join(file), text).unwrap();
    }
}

/// Returns the result of a query. `$` is a placeholder for the database, and `B` for the bucket.
async fn query(stack: &Stack, site: &Site, sql: &str) -> String {
    let sql = sql.replace('$', &site.database);
    let text = stack.clickhouse.query(&sql).await.unwrap();
    text.replace(&site.bucket, "B")
}

async fn all_rows(stack: &Stack, site: &Site) -> String {
    let mut all = String::new();
    for (table, columns) in [
        ("clicks", "source_path, id, toString(at)"),
        ("taps", "source_path, id, ''"),
        ("rejected_lines", "source_path, row_number, reason"),
        ("unmatched_statements", "source_path, row_number, reason"),
    ] {
        let sql = format!("SELECT {columns} FROM $.`{table}` ORDER BY ALL");
        all += &format!("{table}\n{}", query(stack, site, &sql).await);
    }
    all
}

#[tokio::test]
async fn rejects_that_have_become_valid_are_moved_once_and_the_others_stay() {
    for strategy in ["per_type", "single_pass"] {
        let directory = tempfile::tempdir().unwrap();
        declare(directory.path(), INITIAL);
        let contents = ["a", "b"].map(mixed);
        let objects = [("a/1.jsonl", &*contents[0]), ("b/2.jsonl", &*contents[1])];
        let (stack, site, sluice) = with_objects("replay", &objects, |it| {
            it.set("load.strategy", strategy)
                .set("event_types.dir", directory.path().display())
        })
        .await;
        declare(directory.path(), FIXED);
        sluice.migrate();
        let before = all_rows(stack, &site).await;

        let replay = |arguments: &[&str]| parsed(&sluice, &[&["replay"], arguments].concat());
        let planned = replay(&["--dry-run"]);
        insta::assert_snapshot!(
            "replay_dry_run",
            serde_json::to_string_pretty(&planned).unwrap()
        );
        assert_eq!(all_rows(stack, &site).await, before);
        let claimed = "SELECT count() FROM $.ledger_objects WHERE read_by LIKE '%\\_%'";
        assert_eq!(query(stack, &site, claimed).await, "0\n");

        let under = format!("s3://{}/b/", site.bucket);
        let moved = |report: &Value| report["moved"].to_string();
        for (arguments, expected) in [
            (&["--prefix", "s3://elsewhere/"][..], "{}"),
            (&["--since", "0s"], "{}"),
            (&["--reason", "JSON"], "{}"),
            (&["--kind", "unmatched", "--prefix", &under], r#"{"tap":2}"#),
            (&["--reason", "MISSING AT"], r#"{"click":2}"#),
        ] {
            assert_eq!(moved(&replay(arguments)), expected, "{arguments:?}");
        }
        let rest = replay(&[]);
        assert_eq!(moved(&rest), r#"{"tap":2}"#);
        assert_eq!(rest["left"], planned["left"]);
        insta::assert_snapshot!("replayed", all_rows(stack, &site).await);
        let again = output(&sluice, &["replay"]);
        assert!(again.starts_with("0 lines moved\n8 left\n"), "{again}");

        let lineage = "SELECT DISTINCT source_path, source_etag IN \
             (SELECT etag FROM $.ledger_objects WHERE read_by = 's3') AND batch_id IN \
             (SELECT batch_id FROM $.ledger_objects WHERE read_by = 'unmatched_statements') \
             FROM $.taps ORDER BY ALL";
        assert_eq!(
            query(stack, &site, lineage).await,
            "B/a/1.jsonl\t1\nB/b/2.jsonl\t1\n"
        );
        let url = format!("s3://{}/a/1.jsonl", site.bucket);
        let history = sluice.command(&["status", &url, "--output", "json"]);
        let history: Value = serde_json::from_slice(&history.stdout).unwrap();
        assert_eq!(
            history["versions"][0]["rows"].to_string(),
            r#"{"blank":1,"click":2,"rejected":3,"tap":2,"unmatched":1}"#
        );
        let events = "SELECT countIf(event = 'loaded'), countIf(event = 'cleaned') \
             FROM $.ledger_batches WHERE batch_id IN \
             (SELECT batch_id FROM $.ledger_objects WHERE read_by != 's3')";
        assert_eq!(query(stack, &site, events).await, "3\t3\n");
    }
}

#[tokio::test]
async fn a_raised_limit_lets_long_lines_be_replayed() {
    let line = |pad: usize| {
        let video = "{\"verb\":\"tap\",\"id\":\"X\",\"pad\":\"Y\"}\n";
        video
            .replace('X', &pad.to_string())
            .replace('Y', &"p".repeat(pad))
    };
    let directory = tempfile::tempdir().unwrap();
    declare(directory.path(), &FIXED[1..]);
    let content = [line(1), line(2000), line(5000)].concat();
    let objects = [("long.jsonl", content.as_bytes())];
    let (stack, site, sluice) = with_objects("replay-long", &objects, |it| {
        it.set("load.max_line_bytes", "1KiB")
            .set("event_types.dir", directory.path().display())
    })
    .await;
    let sluice = sluice.set("load.max_line_bytes", "3KiB");
    let report = parsed(&sluice, &["replay"]);
    assert_eq!(report["moved"].to_string(), r#"{"tap":1}"#);
    assert_eq!(report["left"].to_string(), r#"{"too large":1}"#);
    let ids = query(stack, &site, "SELECT id FROM $.taps ORDER BY id").await;
    assert_eq!(ids, "1\n2000\n");
}

/// There are more lines than one batch moves, and some objects have more than that, too.
#[tokio::test]
async fn many_lines_are_moved_in_several_batches() {
    let directory = tempfile::tempdir().unwrap();
    declare(directory.path(), INITIAL);
    let content: String = (0..25_000)
        .map(|number| match number % 5 {
            0 => format!("no JSON {number}\n"),
            1 => format!("{{\"verb\":\"hum\",\"id\":\"{number}\"}}\n"),
            _ => format!("{{\"verb\":\"tap\",\"id\":\"{number}\"}}\n"),
        })
        .collect();
    let objects = ["1", "2"].map(|key| (key, content.as_bytes()));
    let (stack, site, sluice) = with_objects("replay-many", &objects, |it| {
        it.set("load.strategy", "per_type")
            .set("event_types.dir", directory.path().display())
    })
    .await;
    declare(directory.path(), FIXED);
    sluice.migrate();
    let report = parsed(&sluice, &["replay"]);
    assert_eq!(report["moved"].to_string(), r#"{"tap":30000}"#);
    assert_eq!(
        report["left"].to_string(),
        r#"{"no event type":10000,"not JSON":10000}"#
    );
    let sums = "SELECT count(), uniqExact(source_path, id), uniqExact(batch_id) FROM $.taps";
    assert_eq!(query(stack, &site, sums).await, "30000\t30000\t2\n");
    let left = "SELECT count() FROM $.unmatched_statements";
    assert_eq!(query(stack, &site, left).await, "10000\n");
}
