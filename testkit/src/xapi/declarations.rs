//! Declarations of the xAPI event types with few columns.
//!
//! What ClickHouse spends on a small load is planning, which grows with the number of columns. A
//! test that is not about columns is three times as fast with these.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::project;

/// The columns that remain: those of the sorting key, and one that is not in it.
const COLUMNS: [&str; 4] = ["event_id", "timestamp", "user_id", "section_id"];

/// Writes the declarations of `config/event_types` to a directory, with the same names, tables,
/// rules and sorting keys, and with only one column beside these. What becomes of a generated line is the
/// same.
///
/// # Errors
///
/// Fails if the directory cannot be written.
pub fn write_lean_declarations(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for path in project::files_below("config/event_types", "yaml") {
        let name = path.file_name().context("a file has a name")?;
        let text = fs::read_to_string(&path)?;
        fs::write(directory.join(name), lean(&text))?;
    }
    Ok(())
}

/// Returns a declaration with only those of its columns that remain.
fn lean(declaration: &str) -> String {
    let (head, columns) = declaration
        .split_once("\ncolumns:\n")
        .unwrap_or((declaration, ""));
    let is_kept = |column: &&str| {
        let name = column.trim_start().strip_prefix("- name: ");
        let name = name.and_then(|rest| rest.lines().next());
        name.is_some_and(|name| COLUMNS.contains(&name))
    };
    let kept: Vec<&str> = columns.split("\n\n").filter(is_kept).collect();
    if kept.is_empty() {
        return format!("{head}\n");
    }
    format!("{head}\ncolumns:\n{}\n", kept.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lean_declaration_has_few_columns_and_the_same_sorting_key() {
        let base = lean(&project::read("config/event_types/xapi_base.yaml"));
        for column in COLUMNS {
            assert!(base.contains(&format!("- name: {column}\n")), "{base}");
        }
        assert_eq!(base.matches("- name:").count(), COLUMNS.len(), "{base}");
        assert!(base.contains("order_by: [section_id, timestamp, event_id]\n"));
    }

    #[test]
    fn a_lean_declaration_keeps_table_and_rule() {
        let full = project::read("config/event_types/video.yaml");
        let lean = lean(&full);
        assert!(full.starts_with(lean.trim_end()), "{lean}");
        assert!(lean.contains("\ntable: video_events\n") && lean.contains("\nrule:\n"));
        assert!(!lean.contains("- name:"), "{lean}");
    }
}
