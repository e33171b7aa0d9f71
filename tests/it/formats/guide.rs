//! The examples of docs/formats.md.
//!
//! Above each, a comment names a key, a file below tests/fixtures/formats, and what its records
//! become; in the YAML, a comment names each file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use sluice_testkit::{Stack, project};

use super::fixture;
use crate::harness::Sluice;

const MARK: &str = "<!-- example: ";

/// An example: its key, its file, the numbers of its records by kind, and its declarations.
struct Example {
    title: String,
    key: String,
    file: String,
    records: BTreeMap<String, usize>,
    declarations: Vec<(String, String)>,
}

/// Parses `KEY, FILE, KIND: COUNT, …` and the blocks of YAML that follow, up to the next heading.
fn parse(text: &str) -> Example {
    let (mark, rest) = text.split_once("-->").unwrap();
    let title = mark.trim().to_owned();
    let fields: Vec<&str> = mark.split(',').map(str::trim).collect();
    let [key, file, counts @ ..] = fields.as_slice() else {
        panic!("{title}");
    };
    let records = counts.iter().map(|count| {
        let (kind, count) = count.split_once(": ").unwrap_or_else(|| panic!("{title}"));
        (kind.to_owned(), count.parse().unwrap())
    });
    // A comment in a block begins as a heading of the first level does.
    let section = rest.split("\n##").next().unwrap();
    let blocks = section.split("```yaml\n").skip(1);
    let declarations = blocks.map(|block| {
        let (block, _) = block.split_once("```").unwrap();
        let (name, text) = block.split_once('\n').unwrap();
        let name = name.strip_prefix("# ").unwrap_or_else(|| panic!("{title}"));
        (name.to_owned(), text.to_owned())
    });
    Example {
        key: (*key).to_owned(),
        file: (*file).to_owned(),
        records: records.collect(),
        declarations: declarations.collect(),
        title,
    }
}

fn write(directory: &Path, example: &Example) {
    for (name, text) in &example.declarations {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

#[tokio::test]
async fn every_example_of_the_guide_has_the_records_that_it_names() {
    let guide = project::read("docs/formats.md");
    let examples: Vec<Example> = guide.split(MARK).skip(1).map(parse).collect();
    assert!(examples.len() >= 8, "{}", examples.len());
    assert_eq!(
        guide.matches("```yaml\n# formats.yaml\n").count(),
        examples.len(),
        "an example without a test"
    );
    let stack = Stack::shared();
    let site = stack.site("guide").await.unwrap();
    for example in &examples {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), example);
        let sluice = Sluice::new(stack, &site).set("event_types.dir", directory.path().display());
        let file = fixture(&example.file).display().to_string();
        let output = sluice.command(&[
            "types",
            "preview",
            &file,
            "--key",
            &example.key,
            "--lines",
            "1000",
            "--output",
            "json",
        ]);
        assert!(output.status.success(), "{}: {output:?}", example.title);
        let previewed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found: BTreeMap<String, usize> = previewed
            .as_object()
            .unwrap()
            .iter()
            .filter_map(|(kind, rows)| Some((kind.clone(), rows.as_array()?.len())))
            .filter(|(_, rows)| *rows > 0)
            .collect();
        assert_eq!(found, example.records, "{}: {previewed}", example.title);
    }
}
