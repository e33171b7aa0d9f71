//! Lists at any depth. Each value must be what JSONExtract reads at its path, which never takes a
//! value by its position.

use fastrand::Rng;
use serde_json::Value;
use sluice::event_types::Catalog;
use sluice::sql;
use sluice::statements::select::parsed_lines;

use super::harness::Harness;

/// The paths of the declared columns.
const PATHS: [&[&str]; 6] = [
    &["a", "b", "x"],
    &["a", "b", "y"],
    &["a", "x"],
    &["c", "x"],
    &["c", "y"],
    &["d"],
];

/// The keys in [`PATHS`], other keys, and the key of the sentinel element.
const KEYS: [&str; 8] = ["a", "b", "c", "d", "x", "y", "z", "\\u0001"];

/// Lines with duplicate keys. The first value counts, even if only the second is a list.
const TWICE: &[&str] = &[
    r#"{"a":{},"a":["g","v"]}"#,
    r#"{"a":{"z":1},"a":["g","v"]}"#,
    r#"{"a":{"z":1},"a":[null,"v"]}"#,
    r#"{"a":{"b":[]},"a":[null,{"x":"v"},"v"]}"#,
    r#"{"a":1,"a":["g","v","v"]}"#,
    r#"{"a":{"x":1},"a":["g","v","v"]}"#,
    r#"{"a":{"x":null},"a":["g","v","v"]}"#,
    r#"{"a":["g","v","v"],"a":{"x":1}}"#,
    r#"{"a":[null,"v","v"],"a":{"x":1}}"#,
    r#"{"c":1,"c":{"x":1},"d":2,"a":["g"]}"#,
];

fn value(rng: &mut Rng, depth: u32) -> String {
    match rng.u32(0..if depth == 0 { 1 } else { 4 }) {
        0 => {
            let scalars = ["null", "1", "1.5", "true", r#""t""#, r#""[null""#];
            rng.choice(scalars).unwrap_or_default().to_owned()
        }
        1 => object(rng, depth),
        _ => list(rng, depth),
    }
}

fn object(rng: &mut Rng, depth: u32) -> String {
    let count = rng.usize(0..=KEYS.len());
    let keys = rng.choose_multiple(KEYS, count);
    let members: Vec<_> = keys
        .into_iter()
        .map(|key| format!(r#""{key}":{}"#, value(rng, depth - 1)))
        .collect();
    format!("{{{}}}", members.join(","))
}

fn list(rng: &mut Rng, depth: u32) -> String {
    let elements: Vec<_> = (0..rng.u32(0..6)).map(|_| value(rng, depth - 1)).collect();
    let space = rng.choice(["", " ", " \t "]).unwrap_or_default();
    format!("[{space}{}]", elements.join(","))
}

/// Returns a catalog whose event type matches no line, so that each line is kept with its text.
fn catalog() -> Catalog {
    let columns = PATHS.iter().enumerate().map(|(index, path)| {
        format!(
            "- {{name: column{index}, type: Nullable(String), path: [{}]}}\n",
            path.join(", ")
        )
    });
    let text = format!(
        "table: none\nrule: {{path: [d], equals: none}}\norder_by: [id]\ncolumns:\n\
         - {{name: id, type: String, path: [d], required: true}}\n{}",
        columns.collect::<String>()
    );
    Catalog::from_files([("none.yaml".to_owned(), text)]).unwrap()
}

#[tokio::test]
async fn each_value_is_read_at_its_path_however_lists_are_nested() {
    let harness = Harness::with("nested-lists", catalog()).await;
    let seed = fastrand::u64(..);
    let mut rng = Rng::with_seed(seed);
    let mut lines: Vec<String> = (0..20_000).map(|_| object(&mut rng, 4)).collect();
    lines.extend((0..1_000).map(|_| list(&mut rng, 4)));
    lines.extend(TWICE.iter().map(|line| (*line).to_owned()));
    harness.put("lists.jsonl", lines.join("\n")).await;

    let landed = parsed_lines(
        &harness.catalog,
        &harness.lines(&["lists.jsonl".to_owned()]),
    );
    let differ = PATHS.map(|path| {
        let column = sql::ident(&format!("$.{}", path.join(".")));
        let by_path = format!(
            "JSONExtract(raw, {}, 'Nullable(String)')",
            sql::strings(path)
        );
        format!("{column} IS DISTINCT FROM {by_path}")
    });
    let query = |columns: &str, condition: &str| {
        format!("SELECT {columns} FROM {landed} WHERE {condition}")
    };
    let read = query("count()", "NOT empty(raw)");
    assert_eq!(harness.scalar(&read).await, lines.len().to_string());
    let wrong = query(
        "* EXCEPT (line_hash)",
        &format!("{} LIMIT 5", differ.join(" OR ")),
    );
    assert_eq!(
        harness.rows(&wrong).await,
        Vec::<Value>::new(),
        "seed {seed}"
    );
}
