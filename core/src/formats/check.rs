//! Checks the declarations of `formats.yaml`, and reports all of their problems at once.

use std::collections::BTreeMap;

use super::declaration::{
    self, DeclaredDelimited, DeclaredDocuments, DeclaredFormat, DeclaredRegex,
};
use super::{Delimited, Format, Formats, JSON_LINES, Kind, Regex, header};
use crate::event_types::{Path, Problem, Report, check_route};

/// The name of the file, without its extension. It cannot be that of an event type.
pub(crate) const FILE_NAME: &str = "formats";

/// The key of a surplus field in the raw text of a record.
pub(crate) const SURPLUS: &str = "\u{1}";

/// Columns that ClickHouse adds to those of a file.
pub(crate) const VIRTUAL: [&str; 3] = ["_path", "_etag", "_row_number"];

/// Returns the formats that a file declares.
pub(crate) fn formats(file: &str, text: &str, problems: &mut Vec<Problem>) -> Formats {
    let mut report = Report { file, problems };
    let declared = match declaration::parse(text) {
        Ok(file) => file.formats,
        Err(found) => {
            report.add_misshapen(found);
            return Formats::default();
        }
    };
    if u16::try_from(declared.len() + 1).is_err() {
        report.add("formats", "has more than 65,534 formats");
        return Formats::default();
    }
    check_names(&declared, &mut report);
    check_order(&declared, &mut report);
    let checked = declared.into_iter().enumerate();
    let checked = checked.filter_map(|(index, format)| check(format, &place(index), &mut report));
    Formats::new(checked.collect())
}

fn place(index: usize) -> String {
    format!("formats[{index}]")
}

fn check_names(declared: &[DeclaredFormat], report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for (index, format) in declared.iter().enumerate() {
        let at = format!("{}.name", place(index));
        let name = format.name.as_str();
        if name.trim().is_empty() {
            report.add(&at, "is empty; give the format a name");
        } else if name == JSON_LINES {
            report.add(
                &at,
                format!("{name:?} is the name of what no format takes; choose another name"),
            );
        }
        if let Some(other) = seen.insert(name, index) {
            report.add(
                &at,
                format!(
                    "{name:?} is also the name of {}; rename one of them",
                    place(other)
                ),
            );
        }
    }
}

/// Reports formats that never apply.
fn check_order(declared: &[DeclaredFormat], report: &mut Report<'_>) {
    for (index, format) in declared.iter().enumerate() {
        let earlier = declared[..index].iter().position(|earlier| {
            !format.keys.is_empty() && format.keys.iter().all(|glob| earlier.keys.contains(glob))
        });
        if let Some(earlier) = earlier {
            report.add(
                format!("{}.keys", place(index)),
                format!(
                    "all of them are also keys of {}, which comes first and therefore applies; \
                     remove one of the two, or put the more specific one first",
                    place(earlier)
                ),
            );
        }
    }
}

fn check(format: DeclaredFormat, at: &str, report: &mut Report<'_>) -> Option<Format> {
    let before = report.problems.len();
    let keys = format!("{at}.keys");
    let route = if format.keys.is_empty() {
        report.add(
            &keys,
            "is an empty list, which matches no objects; add a glob, such as exports/**/*.csv",
        );
        None
    } else {
        check_route(&format.keys, &keys, report).ok()
    };
    let on_all_rejected = format.on_all_rejected;
    let name = format.name.clone();
    let kind = check_kind(format, at, report);
    (report.problems.len() == before).then_some(())?;
    Some(Format {
        name,
        route: Some(route?),
        kind: kind?,
        on_all_rejected,
    })
}

fn check_kind(format: DeclaredFormat, at: &str, report: &mut Report<'_>) -> Option<Kind> {
    let csv = format.csv.map(|csv| delimited(csv, ",", true, at, report));
    let tsv = format
        .tsv
        .map(|tsv| delimited(tsv, "\t", false, at, report));
    let regex = format.regex.map(|declared| regex(declared, at, report));
    let json = format.json.map(|json| documents(json, at, report));
    let kinds: Vec<Option<Kind>> = [
        format.json_lines.map(|_| Some(Kind::JsonLines)),
        json,
        csv,
        tsv,
        regex,
        format.parquet.map(|_| Some(Kind::Parquet)),
        format.avro.map(|_| Some(Kind::Avro)),
        format.orc.map(|_| Some(Kind::Orc)),
    ]
    .into_iter()
    .flatten()
    .collect();
    match <[Option<Kind>; 1]>::try_from(kinds) {
        Ok([kind]) => kind,
        Err(_) => {
            report.add(
                at,
                "must have exactly one of `json`, `csv`, `tsv`, `regex`, `parquet`, `avro`, `orc` \
                 and `json_lines`, each with its options or with {}",
            );
            None
        }
    }
}

fn documents(declared: DeclaredDocuments, at: &str, report: &mut Report<'_>) -> Option<Kind> {
    let at = format!("{at}.json.records");
    let is_bad = |path: &Path| {
        let first = path.first().map_or("", String::as_str);
        path.iter().any(String::is_empty) || path.is_empty() || VIRTUAL.contains(&first)
    };
    if declared.records.as_ref().is_some_and(is_bad) {
        report.add(
            at,
            "is not a path; list the keys from the top of the document down to the list, none of \
             them empty, such as [Records]; omit it if each document is a record",
        );
        return None;
    }
    Some(Kind::Documents {
        records: declared.records,
    })
}

fn delimited(
    declared: DeclaredDelimited,
    delimiter: &str,
    quoted: bool,
    at: &str,
    report: &mut Report<'_>,
) -> Option<Kind> {
    let at = format!("{at}.{}", if quoted { "csv" } else { "tsv" });
    let before = report.problems.len();
    let quoted = declared.quoted.unwrap_or(quoted);
    let header = declared.header.unwrap_or(true);
    let delimiter = declared.delimiter.unwrap_or_else(|| delimiter.to_owned());
    let one: Option<char> = match Vec::from_iter(delimiter.chars()).as_slice() {
        [one] if one.is_ascii() && !matches!(one, '"' | '\r' | '\n' | '\0') => Some(*one),
        _ => None,
    };
    if one.is_none() {
        report.add(
            format!("{at}.delimiter"),
            format!(
                "{delimiter:?} must be one ASCII character, and neither a quote nor a line break"
            ),
        );
    }
    let nulls = declared.nulls.unwrap_or_else(|| vec![String::new()]);
    check_nulls(&nulls, one, &format!("{at}.nulls"), report);
    if let Some(comment) = &declared.comment
        && (comment.trim().is_empty() || one.is_some_and(|one| comment.starts_with(one)))
    {
        report.add(
            format!("{at}.comment"),
            "must be the text with which comments begin, such as #, and not the delimiter",
        );
    }
    check_columns(declared.columns.as_deref(), header, &at, report);
    (report.problems.len() == before).then_some(())?;
    Some(Kind::Delimited(Delimited {
        delimiter: one?,
        header,
        columns: declared.columns,
        quoted,
        nulls,
        comment: declared.comment,
        skip_lines: declared.skip_lines,
    }))
}

fn check_nulls(nulls: &[String], delimiter: Option<char>, at: &str, report: &mut Report<'_>) {
    for text in nulls {
        if text.contains(['\n', '\r', '"']) || delimiter.is_some_and(|one| text.contains(one)) {
            report.add(
                at,
                format!(
                    "{text:?} has the delimiter, a quote or a line break in it, and is therefore \
                     never the whole text of a field; remove it"
                ),
            );
        }
    }
}

fn check_columns(columns: Option<&[String]>, header: bool, at: &str, report: &mut Report<'_>) {
    let Some(columns) = columns else {
        if !header {
            report.add(
                format!("{at}.columns"),
                "is missing; name the fields in their order, since there is no header",
            );
        }
        return;
    };
    let at = format!("{at}.columns");
    if columns.is_empty() {
        report.add(&at, "is an empty list; name the fields in their order");
    }
    if let Some(name) = header::duplicate(columns) {
        report.add(&at, format!("{name:?} is there twice; rename one of them"));
    }
    if columns
        .iter()
        .any(|name| name.is_empty() || name == SURPLUS)
    {
        report.add(&at, "has an empty name; give each field a name");
    }
}

fn regex(declared: DeclaredRegex, at: &str, report: &mut Report<'_>) -> Option<Kind> {
    let DeclaredRegex { pattern, nulls } = declared;
    let at = format!("{at}.regex.pattern");
    // ClickHouse's classes, such as \w, are those of ASCII.
    let compiled = regex::bytes::RegexBuilder::new(&pattern)
        .unicode(false)
        .build();
    let compiled = match compiled {
        Ok(compiled) => compiled,
        Err(error) => {
            report.add(at, format!("is not a valid regular expression: {error}"));
            return None;
        }
    };
    let groups: Vec<Option<&str>> = compiled.capture_names().skip(1).collect();
    let names: Vec<String> = groups.iter().flatten().map(ToString::to_string).collect();
    let is_word = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if names.is_empty() {
        report.add(
            at,
            "has no named group; name each field, as in (?P<status>[0-9]+)",
        );
    } else if names.len() < groups.len() {
        report.add(
            at,
            "has a group without a name; name it, as in (?P<status>[0-9]+), or write (?:…)",
        );
    } else if !names.iter().all(is_word) {
        report.add(
            at,
            "has a group whose name has other characters than letters, digits and _; rename it",
        );
    } else {
        return Some(Kind::Regex(Regex {
            pattern,
            names,
            nulls,
        }));
    }
    None
}
