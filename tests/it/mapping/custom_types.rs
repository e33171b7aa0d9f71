//! Event types declared by a user.

use serde_json::json;
use sluice::event_types::Catalog;

use super::harness::{Harness, case};

#[tokio::test]
async fn declarations_may_use_unusual_keys_and_other_types() {
    let declared = r#"
table: odd events
rule: {path: ["it's"], equals: "a\\b'c"}
order_by: [id]
columns:
  - {name: id, type: UUID, path: [id], identifies: true}
  - {name: "b`t\\n", type: String, path: ["x`y\\z'\"{w}"]}
  - {name: dotted, type: String, path: [a.b]}
  - {name: nested, type: String, path: [a, b]}
  - {name: number_key, type: Nullable(Int8), path: ["1", "0"]}
  - {name: when, type: "Nullable(DateTime64(6, 'UTC'))", path: [when]}
  - {name: flag, type: Bool, path: [flag]}
  - {name: real, type: Float32, path: [real]}
  - {name: sum, type: Int64, path: [n], inputs: {m: [m]}, expression: "toInt64OrNull({value}) + toInt64OrNull({m})"}
  - {name: place, type: String, expression: "concat('row ', toString({row_number}))"}
"#;
    let catalog = Catalog::from_files([("odd's.yaml".to_owned(), declared.to_owned())]).unwrap();
    let harness = Harness::with("odd-keys", catalog).await;
    let line = json!({
        "it's": "a\\b'c", "id": "5f1c0000-0000-0000-0000-000000000001", "x`y\\z'\"{w}": "odd",
        "a.b": "dot", "a": {"b": "nest"}, "1": {"0": "-7"}, "when": "2026-07-14T12:00:00.123456Z",
        "flag": true, "real": "0.5", "n": 1, "m": "2",
    });
    let sparse = json!({"it's": "a\\b'c", "when": "never", "1": {"0": 128}, "n": 1});
    harness.check(&[
        case("full", line.to_string(), "odd events", json!({
            "id": "5f1c0000-0000-0000-0000-000000000001", "b`t\\n": "odd", "dotted": "dot",
            "nested": "nest", "number_key": -7, "when": "2026-07-14 12:00:00.123456", "flag": true,
            "real": 0.5, "sum": 3, "place": "row 0",
        })),
        case("sparse", sparse.to_string(), "odd events", json!({
            "id": "00000000-0000-0000-0000-000000000000", "b`t\\n": "", "dotted": "", "nested": "",
            "number_key": null, "when": null, "flag": false, "real": 0.0, "sum": 0,
        })),
    ])
    .await;
}
