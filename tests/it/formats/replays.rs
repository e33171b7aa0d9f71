//! Rejects of all formats, replayed after the declaration is fixed.

use serde_json::Value;

use super::{Objects, declare};

/// The pattern of the log does not know the last form of its lines.
const FORMATS: &str = r"
- {name: documents, keys: [documents/**], json: {}}
- {name: lists, keys: [lists/**], json: {records: [Records]}}
- {name: csv, keys: [csv/**], csv: {nulls: ['', '-']}}
- {name: plain, keys: [plain/**], csv: {quoted: false, nulls: ['-']}}
- {name: log, keys: [log/**], regex: {pattern: '^(?P<kind>\S+) (?P<id>\S+) (?P<at>\S+) (?P<when>\S+)$', nulls: ['-']}}
- {name: parquet, keys: [parquet/**], parquet: {}}
- {name: avro, keys: [avro/**], avro: {}}
";

/// `RULE` and `AT` are placeholders.
const CLICK: &str = "table: clicks
rule: {path: [kind], RULE}
order_by: [source, id]
columns:
- {name: id, type: String, path: [id], identifies: true}
- {name: source, type: String, expression: '{source_path}'}
- {name: at, type: \"DateTime64(3, 'UTC')\", path: [at], FALLBACKSrequired: true}
";

/// A click, one whose time has another name, one of another kind, and one without any time.
const RECORDS: &str = "SELECT * FROM VALUES(
    'kind String, id String, at Nullable(String), when Nullable(String)',
    ('click', 'a', '2026-07-14T08:00:00Z', NULL),
    ('click', 'b', NULL, '2026-07-14T08:00:01Z'),
    ('tap', 'c', '2026-07-14T08:00:02Z', NULL),
    ('click', 'd', NULL, NULL))";

fn click(rule: &str, fallbacks: &str) -> String {
    CLICK.replace("RULE", rule).replace("FALLBACKS", fallbacks)
}

async fn put_all(objects: &Objects) {
    let lines = objects.written(RECORDS, "JSONEachRow").await;
    let lines = String::from_utf8(lines).unwrap();
    let records: Vec<&str> = lines.lines().collect();
    let list = format!("{{\"Records\":[{}]}}", records.join(","));
    objects.put("documents/1", records.concat()).await;
    objects.put("lists/1", list).await;
    let null = |text: &str| format!("{RECORDS} SETTINGS format_csv_null_representation = '{text}'");
    let csv = objects.written(&null("-"), "CSVWithNames").await;
    // Without quotes, none of these fields needs any.
    let plain = String::from_utf8(csv.clone()).unwrap().replace('"', "");
    let log: Vec<String> = plain
        .lines()
        .skip(1)
        .map(|line| line.replace(',', " "))
        .collect();
    let log = format!("{}\nclick e 2026-07-14T08:00:04Z\n", log.join("\n"));
    objects.put("csv/1", csv).await;
    objects.put("plain/1", plain).await;
    objects.put("log/1", log).await;
    for (folder, format) in [("parquet", "Parquet"), ("avro", "Avro")] {
        let content = objects.written(RECORDS, format).await;
        objects.put(&format!("{folder}/1"), content).await;
    }
}

#[tokio::test]
async fn a_reject_of_each_format_is_replayed_after_the_declaration_is_fixed() {
    let declarations = declare(FORMATS);
    let directory = declarations.path();
    for file in ["record.yaml", "number.yaml"] {
        std::fs::remove_file(directory.join(file)).unwrap();
    }
    let write = |rule: &str, fallbacks: &str, formats: &str| {
        std::fs::write(directory.join("click.yaml"), click(rule, fallbacks)).unwrap();
        std::fs::write(
            directory.join("formats.yaml"),
            format!("formats:\n{formats}"),
        )
        .unwrap();
    };
    write("equals: click", "", FORMATS);
    let objects = Objects::new("replay-formats", directory).await;
    put_all(&objects).await;
    for strategy in ["single_pass", "per_type"] {
        write("equals: click", "", FORMATS);
        let load = objects.load(strategy, &[("load.strategy", strategy)]);
        assert!(
            load.failures().await.is_empty(),
            "{:#?}",
            load.failures().await
        );
        let ids = "SELECT splitByChar('/', source_path)[2] AS folder, \
                   arraySort(groupArray(id)) FROM $.clicks GROUP BY folder ORDER BY folder";
        let folders = [
            "avro",
            "csv",
            "documents",
            "lists",
            "log",
            "parquet",
            "plain",
        ];
        let all = |ids: &str| folders.map(|folder| format!("{folder}\t{ids}\n")).concat();
        assert_eq!(load.query(ids).await, all("['a']"));
        let rejects = "SELECT countIf(reason = 'missing at'), countIf(reason = 'no match') \
                       FROM $.rejected_lines";
        assert_eq!(load.query(rejects).await, "14\t1\n");

        let fixed = FORMATS.replace(
            r"(?P<at>\S+) (?P<when>\S+)$",
            r"(?P<at>\S+)(?: (?P<when>\S+))?$",
        );
        assert_ne!(fixed, FORMATS);
        write("in: [click, tap]", "fallbacks: [[when]], ", &fixed);
        load.sluice.migrate();
        let replay = load
            .sluice
            .command(&["rejects", "replay", "--output", "json"]);
        let report: Value = serde_json::from_slice(&replay.stdout).unwrap();
        assert_eq!(report["moved"].to_string(), r#"{"click":15}"#, "{report}");
        assert_eq!(report["left"].to_string(), r#"{"missing at":7}"#);
        let expected = all("['a','b','c']").replace("log\t['a','b','c']", "log\t['a','b','c','e']");
        assert_eq!(load.query(ids).await, expected, "{strategy}");
        assert_eq!(load.query(rejects).await, "7\t0\n");

        // Objects that are loaded by the new declarations have the same rows.
        let values = "SELECT source_path, id, at FROM $.clicks ORDER BY ALL";
        let replayed = load.query(values).await;
        for _ in 0..2 {
            load.backfill(&["--force"]);
            assert_eq!(load.query(values).await, replayed, "{strategy}");
            assert_eq!(load.query(rejects).await, "7\t0\n");
        }
        load.drop_tables().await;
    }
}
