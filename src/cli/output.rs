//! Prints the result of a command, human-readable or for scripts.

use std::fmt::Display;

use clap::ValueEnum;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use serde::Serialize;

use super::print;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Format {
    /// Human-readable
    Text,
    /// One JSON document
    Json,
}

#[derive(clap::Args)]
pub(super) struct Output {
    /// Format of the result
    #[arg(
        long = "output",
        value_enum,
        default_value = "text",
        value_name = "FORMAT"
    )]
    format: Format,
}

impl Output {
    pub(super) fn is_json(&self) -> bool {
        matches!(self.format, Format::Json)
    }

    pub(super) fn show(&self, result: &(impl Serialize + Display)) -> anyhow::Result<()> {
        match self.format {
            Format::Text => print(result.to_string().trim_end()),
            Format::Json => print(&serde_json::to_string_pretty(result)?),
        }
    }
}

/// Returns a table of aligned columns, without lines between them.
pub(super) fn table<S: AsRef<str>>(
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<S>>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| shown(cell.as_ref())));
    }
    table.trim_fmt()
}

/// Returns a progress bar on standard error, hidden unless that is a terminal. It disappears when
/// it is dropped.
pub(super) fn progress(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos} of about {len}, {elapsed}");
    let bar = ProgressBar::new(total).with_finish(ProgressFinish::AndClear);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Escapes control characters, so that text from outside can neither move the cursor nor end the
/// line.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = if c.is_control() { None } else { Some(c) };
            let escaped = plain.is_none().then(|| c.escape_default());
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// Shortens a reason for a table. It is shown in full with a single object.
pub(super) fn first_words(reason: &str) -> String {
    const MAX_CHARS: usize = 80;
    match reason.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_steer_the_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\nc\td é"), "a\\u{1b}[2Jb\\nc\\td é");
    }

    #[test]
    fn columns_are_aligned() {
        let text = table(&["key", "rows"], [vec!["a", "12"], vec!["long", "3"]]);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines, ["key   rows", "a     12", "long  3"]);
    }
}
