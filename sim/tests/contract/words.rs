//! The event types and the lines of the cases: bytes that mean the same to both servers.
//!
//! The simulation takes a line for an event if its text is the name of an event type. A real server
//! parses it. So the event types here are named after the text of their events, which has the value
//! that the rule looks for: the file `{"is":"video"}.yaml` declares the type of the line
//! `{"is":"video"}`. White space at the end of a line, which neither server regards, makes the rows
//! of an object different from each other.

use sluice_core::event_types::Catalog;

/// Becomes a row of [`VIDEOS`].
pub(crate) const VIDEO: &str = r#"{"is":"video"}"#;
/// The same, with so much white space that it is longer than [`SHORT`]. All other lines are shorter.
pub(crate) const LONG: &str = concat!(
    r#"{"is":"video"}"#,
    "                                                  "
);
/// The limit of lines before the fix.
pub(crate) const SHORT: u64 = 40;
/// Becomes a row of [`PAGES`].
pub(crate) const PAGE: &str = r#"{"is":"page"}"#;
/// An event that is only looked for in objects below [`ROUTE`]; elsewhere, an unmatched statement.
pub(crate) const ROUTED: &str = r#"{"is":"elsewhere"}"#;
pub(crate) const REJECTED: &str = "rejected";
pub(crate) const BLANK: &str = "";

/// Why [`REJECTED`] is rejected.
pub(crate) const REASON: &str = "not JSON";

pub(crate) const VIDEOS: &str = "videos";
pub(crate) const PAGES: &str = "pages";
pub(crate) const ROUTED_TABLE: &str = "elsewhere";
pub(crate) const REJECTS: &str = "rejected_lines";
pub(crate) const UNMATCHED: &str = "unmatched_statements";
pub(crate) const COUNTS: &str = "object_rows";

/// The prefix of the objects that can have [`ROUTED`] events.
pub(crate) const ROUTE: &str = "elsewhere/";

/// Returns the event types of all cases.
pub(crate) fn catalog() -> Catalog {
    declared("keys: ['elsewhere/**']\n")
}

/// Returns the same event types, where [`ROUTED`] events are looked for in all objects. The tables
/// and views are the same, too.
pub(crate) fn catalog_without_route() -> Catalog {
    declared("")
}

fn declared(route: &str) -> Catalog {
    let declared = [
        (VIDEO, VIDEOS, "video", ""),
        (PAGE, PAGES, "page", ""),
        (ROUTED, ROUTED_TABLE, "elsewhere", route),
    ];
    let files = declared.map(|(name, table, value, route)| {
        let text = format!(
            "table: {table}\n{route}rule: {{path: [is], equals: {value}}}\norder_by: [line]\n\
             columns:\n- {{name: line, type: String, path: [id], otherwise: line_hash}}\n"
        );
        (format!("{name}.yaml"), text)
    });
    Catalog::from_files(files).expect("the declarations are sound")
}

/// Returns the content of an object with these lines.
pub(crate) fn lines(words: &[&str]) -> Vec<u8> {
    let mut content = Vec::new();
    for (number, word) in words.iter().enumerate() {
        content.extend_from_slice(word.as_bytes());
        // Blank lines and those that are not JSON have no row that others could equal.
        if word.starts_with('{') {
            content.extend(white_space(number));
        }
        content.push(b'\n');
    }
    content
}

/// Returns white space that is different for each number.
fn white_space(number: usize) -> impl Iterator<Item = u8> {
    let digits = usize::BITS - number.leading_zeros();
    (0..digits).map(move |digit| match (number >> digit) & 1 {
        0 => b' ',
        _ => b'\t',
    })
}
