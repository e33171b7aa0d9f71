//! Everything that the documents refer to exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sluice_testkit::project::files_below;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Every Markdown file of the project, with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(ROOT);
    let mut files = ["docs", "helm"].map(|it| files_below(it, "md")).concat();
    files.extend(
        [
            "README.md",
            "ARCHITECTURE.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "STYLE.md",
        ]
        .map(|file| root.join(file)),
    );
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    };
    files.into_iter().map(read).collect()
}

/// Returns the anchor that GitHub gives to a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.trim().to_lowercase();
    heading
        .chars()
        .filter(|it| it.is_alphanumeric() || " -_".contains(*it))
        .map(|it| if it == ' ' { '-' } else { it })
        .collect()
}

/// `.ci/run` runs the two commands with only these programs on the path.
#[test]
fn the_readme_names_every_program_that_its_commands_need() {
    let read = |file: &str| std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    let (script, readme) = (read(".ci/run"), read("README.md"));
    let (_, section) = readme.split_once("\n## Try it\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    for list in ["NEEDED=(", "OPTIONAL=("] {
        let (_, programs) = script.split_once(list).unwrap();
        let (programs, _) = programs.split_once(')').unwrap();
        for program in programs.split_whitespace() {
            assert!(section.contains(&format!("`{program}`")), "{program}");
        }
    }
}

#[test]
fn every_link_has_a_target() {
    let mut dead = Vec::new();
    for (path, text) in documents() {
        let targets = text.split("](").skip(1);
        for target in targets.filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, section) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let exists = file.exists()
                && (section.is_empty()
                    || std::fs::read_to_string(&file)
                        .unwrap()
                        .lines()
                        .filter(|line| line.starts_with('#'))
                        .any(|line| anchor(line.trim_start_matches('#')) == section));
            if !exists {
                dead.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

/// Checks every field in backticks, such as `batch.window`.
#[test]
fn every_configuration_field_that_is_named_exists() {
    let reference = std::fs::read_to_string(Path::new(ROOT).join("docs/configuration.md")).unwrap();
    let headings = |marks: &str| -> BTreeSet<String> {
        let lines = reference.lines();
        lines
            .filter_map(|line| line.strip_prefix(marks))
            .map(|name| name.replace('`', ""))
            .collect()
    };
    let fields = headings("### ");
    let sections = headings("## ");
    assert!(fields.contains("batch.window") && sections.contains("batch"));
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        for named in text.split('`').skip(1).step_by(2) {
            let of_section = named.split_once('.').is_some_and(|(section, rest)| {
                sections.contains(section)
                    && rest
                        .chars()
                        .all(|it| it.is_ascii_lowercase() || "._".contains(it))
            });
            // These are files, and a field of the log.
            let is_other = [".json", ".yaml", "batch.id"];
            let is_other = is_other.iter().any(|it| named.ends_with(it));
            if of_section && !is_other && !fields.contains(named) && !sections.contains(named) {
                unknown.push(format!("{}: {named}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// Checks every path in backticks, and every test in the form `path/to/file.rs::name`.
#[test]
fn every_file_and_test_that_the_recipes_name_exists() {
    let recipes = std::fs::read_to_string(Path::new(ROOT).join("CONTRIBUTING.md")).unwrap();
    let is_path = |text: &str| {
        let mut letters = text.chars();
        text.contains('/') && letters.all(|it| it.is_ascii_alphanumeric() || "./_-".contains(it))
    };
    let mut missing = Vec::new();
    for named in recipes.split('`').skip(1).step_by(2) {
        let (file, test) = match named.split_once(".rs::") {
            Some((file, test)) => (format!("{file}.rs"), Some(test)),
            None => (named.to_owned(), None),
        };
        // These are placeholders, and files that a build creates.
        if !is_path(&file) || file.contains("NAME") || file.starts_with("target/") {
            continue;
        }
        let path = Path::new(ROOT).join(&file);
        let exists = match test {
            None => path.exists(),
            Some(test) => std::fs::read_to_string(&path)
                .is_ok_and(|text| text.contains(&format!("fn {test}("))),
        };
        if !exists {
            missing.push(named);
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
