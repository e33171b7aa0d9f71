//! Writes declarations, with what they were inferred from as comments.

use super::columns::Column;
use super::content::title;
use super::delimited::Table;
use super::keys::Keys;
use super::names::{count, identifier, path, quoted, scalar, snake_case};
use super::types::Kind as ValueKind;
use super::{Content, File, Found, Kind, Options, Rule};
use crate::formats::JSON_LINES;

/// The length of an example, at most.
const MAX_EXAMPLE: usize = 40;
/// The number of paths that a comment names.
const MAX_PATHS: usize = 10;

/// Returns the files of these kinds, and that of the format unless it is JSON lines.
pub(super) fn files(content: &Content, kinds: &[Kind], options: &Options) -> Vec<File> {
    let all = content.records.len() as u64;
    let of_kinds = kinds.iter().map(|kind| File {
        name: format!("{}.yaml", kind.name),
        text: event_type(kind, content, all, options),
    });
    format(content, options)
        .into_iter()
        .chain(of_kinds)
        .collect()
}

/// Returns the file of the format; `None` for JSON lines.
fn format(content: &Content, options: &Options) -> Option<File> {
    let kind = match &content.found {
        Found::JsonLines => return None,
        Found::Documents { records: None } => "json: {}".to_owned(),
        Found::Documents {
            records: Some(list),
        } => format!("json: {{records: {}}}", path(list)),
        Found::Delimited(table) => delimited(table),
    };
    let name = identifier(&snake_case(&options.name), "objects");
    let name = if name == JSON_LINES { "objects" } else { &name };
    let everything = ["**".to_owned()];
    let keys = if options.keys.is_empty() {
        &everything
    } else {
        options.keys.as_slice()
    };
    let mut text = String::new();
    if !options.are_keys_known {
        text += "# Replace `keys` by globs on the keys that such objects have in S3.\n";
    }
    text += &format!(
        "formats:\n  # {}\n  - name: {}\n    keys: {}\n    {kind}\n",
        title(&content.found),
        scalar(name),
        globs(keys),
    );
    Some(File {
        name: "formats.yaml".to_owned(),
        text,
    })
}

fn globs(keys: &[String]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| quoted(key)).collect();
    format!("[{}]", keys.join(", "))
}

fn delimited(table: &Table) -> String {
    let Table {
        delimiter,
        quoted: is_quoted,
        header,
        names,
        nulls,
        has_comments,
    } = table;
    let mut options = Vec::new();
    let name = if *delimiter == '\t' { "tsv" } else { "csv" };
    if !matches!(delimiter, '\t' | ',') {
        options.push(format!("delimiter: {}", quoted(&delimiter.to_string())));
    }
    if *is_quoted == (*delimiter == '\t') {
        options.push(format!("quoted: {is_quoted}"));
    }
    if !header {
        options.push(format!("header: false, columns: {}", path(names)));
    }
    if !nulls.is_empty() {
        let nulls: Vec<String> = nulls.iter().map(|text| quoted(text)).collect();
        options.push(format!("nulls: [\"\", {}]", nulls.join(", ")));
    }
    if *has_comments {
        options.push("comment: \"#\"".to_owned());
    }
    format!("{name}: {{{}}}", options.join(", "))
}

fn event_type(kind: &Kind, content: &Content, all: u64, options: &Options) -> String {
    let mut text = header(kind, content, all);
    text += &format!("table: {}\n", kind.table);
    if options.are_keys_known && !options.keys.is_empty() && matches!(kind.rule, Rule::Present(_)) {
        text += &format!("keys: {}\n", globs(&options.keys));
    }
    text += &format!("rule: {}\n", rule(&kind.rule));
    text += &sorting(&kind.keys);
    text += "columns:\n";
    for column in &kind.columns.columns {
        text += &print_column(column, kind.records);
    }
    for (paths, why) in [
        (
            &kind.columns.empty,
            "Never with a value, and therefore without a column",
        ),
        (&kind.columns.left_out, "Left out"),
    ] {
        if paths.is_empty() {
            continue;
        }
        let shown: Vec<String> = paths.iter().take(MAX_PATHS).map(|it| path(it)).collect();
        let more = paths.len() - shown.len();
        let more = if more > 0 {
            format!(", and {more} more")
        } else {
            String::new()
        };
        text += &format!("# {why}: {}{more}\n", shown.join(", "));
    }
    text
}

fn header(kind: &Kind, content: &Content, all: u64) -> String {
    let records = count(kind.records);
    let mut text = match &kind.rule {
        Rule::In(..) => format!("# {records} of the {} records of a sample.\n", count(all)),
        Rule::Present(_) => format!("# All {records} records of a sample are of one kind.\n"),
    };
    if content.unreadable > 0 {
        text += &format!("# {} more could not be read.\n", count(content.unreadable));
    }
    text
}

fn rule(rule: &Rule) -> String {
    let present = |it: &Vec<String>| format!("{{path: {}, present: true}}", path(it));
    match rule {
        Rule::In(it, values) => match values.as_slice() {
            [value] => format!("{{path: {}, equals: {}}}", path(it), quoted(value)),
            values => {
                let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
                format!("{{path: {}, in: [{}]}}", path(it), values.join(", "))
            }
        },
        Rule::Present(paths) => match paths.as_slice() {
            [one] => present(one),
            paths => {
                let paths: Vec<String> = paths.iter().map(present).collect();
                format!("{{any: [{}]}}", paths.join(", "))
            }
        },
    }
}

fn sorting(keys: &Keys) -> String {
    let mut text = String::new();
    match &keys.time {
        Some(time) => text += &format!("# Time: {time}{}.\n", others(&keys.other_times)),
        None => {
            text += "# No field has a time in each record, so that the table has no partitions.\n"
        }
    }
    if keys.is_hash {
        text += "# No field identifies each record; copies of a record have the same hash.\n";
    } else {
        text += &format!("# Id: {}{}.\n", keys.id, others(&keys.other_ids));
    }
    text += "# Put columns by which queries select before the time, those with few values first.\n";
    text += &format!("order_by: {}\n", path(&keys.order_by));
    if let Some(partition_by) = &keys.partition_by {
        text +=
            "# A part for each month can be dropped at once; small tables need no partitions.\n";
        text += &format!("partition_by: {partition_by}\n");
    }
    if let Some(why) = &keys.unpartitioned {
        text += &format!("# No partitions: {why}.\n");
    }
    text
}

fn others(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let shown: Vec<&str> = names.iter().take(MAX_PATHS).map(String::as_str).collect();
    format!(" (it could also be {})", shown.join(", "))
}

fn print_column(column: &Column, records: u64) -> String {
    let Column {
        name,
        path: at,
        chosen,
        required,
        is_hash,
        ..
    } = column;
    let mut text = format!("  # {}\n", evidence(column, records));
    text += &format!(
        "  - name: {}\n    type: {}\n    path: {}\n",
        scalar(name),
        type_of(column, records),
        path(at)
    );
    if let Some(unit) = chosen.unit {
        text += &format!("    time: {unit}\n");
    }
    if *required {
        text += "    required: true\n";
    }
    if *is_hash {
        text += "    otherwise: line_hash\n";
    }
    text
}

/// Returns the type: Nullable if a missing value differs from the default of the type, which is
/// not so for most texts.
fn type_of(column: &Column, records: u64) -> String {
    let name = &column.chosen.name;
    let is_missing = column.valid < records && !column.is_hash;
    let is_nullable = if column.chosen.is_text() {
        is_missing && column.needs_null
    } else {
        is_missing && column.chosen.can_be_nullable()
    };
    match (is_nullable, column.chosen.kind) {
        (false, _) => name.clone(),
        (true, ValueKind::Category) => "LowCardinality(Nullable(String))".to_owned(),
        (true, _) => format!("Nullable({name})"),
    }
}

/// Returns in how many records there is a value, what is remarkable about it, and examples.
fn evidence(column: &Column, records: u64) -> String {
    let mut parts = Vec::new();
    if column.present > 0 {
        parts.push(share(column.valid, records));
    }
    if column.valid < column.present {
        parts.push(format!("{} empty", count(column.present - column.valid)));
    }
    match (column.is_unique, column.distinct) {
        (true, _) if records > 1 => parts.push("all different".to_owned()),
        (false, Some(1)) => parts.push("always the same".to_owned()),
        (false, Some(distinct)) => parts.push(format!("{} different", count(distinct))),
        _ => {}
    }
    parts.extend(column.chosen.note.clone());
    if !column.examples.is_empty() {
        let examples = column.examples.iter().map(|example| shortened(example));
        parts.push(format!(
            "such as {}",
            examples.collect::<Vec<_>>().join(", ")
        ));
    }
    parts.join("; ")
}

fn share(present: u64, records: u64) -> String {
    let of = format!("of {} records", count(records));
    match present * 100 / records.max(1) {
        100 => format!("in each {of}"),
        0 => format!("in {} {of}", count(present)),
        percent => format!("in {percent} % {of}"),
    }
}

/// Returns an example, which is JSON, without anything that could end a comment.
fn shortened(example: &str) -> String {
    let is_odd = |letter: char| letter.is_control() || "\u{2028}\u{2029}\u{feff}".contains(letter);
    let shown = example.replace(is_odd, "\u{fffd}");
    match shown.char_indices().nth(MAX_EXAMPLE) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}
