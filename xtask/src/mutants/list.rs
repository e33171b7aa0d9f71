//! The list of mutants, and how they are applied to a source.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use sluice_testkit::project;
use yaml_rust2::{Yaml, YamlLoader};

/// Relative to the root of the project. The file documents its fields.
pub(super) const FILE: &str = "sim/mutants.yaml";

/// One bug: an edit of one file.
#[derive(Debug)]
pub(super) struct Mutant {
    pub(super) name: String,
    /// Relative to the root of the project.
    pub(super) file: String,
    replace: String,
    with: String,
    /// The number of seeds within which the simulation must find it.
    pub(super) seeds: u64,
    /// What goes wrong.
    pub(super) why: String,
}

/// Reads the list.
pub(super) fn read() -> Result<Vec<Mutant>> {
    let text = fs::read_to_string(project::path(FILE)).context(FILE)?;
    parse(&text).context(FILE)
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    let documents = YamlLoader::load_from_str(text)?;
    let entries = documents.first().and_then(Yaml::as_vec);
    let entries = entries.context("not a list of mutants")?;
    entries.iter().map(Mutant::parse).collect()
}

impl Mutant {
    fn parse(entry: &Yaml) -> Result<Self> {
        let name = entry["name"].as_str().context("a mutant has no name")?;
        let text = |field: &str| {
            let text = entry[field].as_str().map(str::to_owned);
            text.with_context(|| format!("{name} has no text `{field}`"))
        };
        let seeds = entry["seeds"].as_i64();
        let seeds = seeds.and_then(|it| u64::try_from(it).ok());
        let mutant = Self {
            name: name.to_owned(),
            file: text("file")?,
            replace: text("replace")?,
            with: text("with")?,
            seeds: seeds.with_context(|| format!("{name} has no number `seeds`"))?,
            why: text("why")?,
        };
        ensure!(mutant.seeds > 0, "{name}: `seeds` must be above 0");
        ensure!(
            first_line(&mutant.replace).starts_with(|it: char| !it.is_whitespace()),
            "{name}: the first line of `replace` must have a text that begins without indentation"
        );
        Ok(mutant)
    }

    /// Returns the source with the bug in it.
    ///
    /// # Errors
    ///
    /// Fails unless the text to replace occurs once in the source.
    pub(super) fn applied_to(&self, source: &str) -> Result<String> {
        let places = places(source, &self.replace);
        let [(at, indentation)] = places.as_slice() else {
            bail!(
                "{}: the text to replace occurs {} times in {}",
                self.name,
                places.len(),
                self.file
            );
        };
        let end = at + indented(&self.replace, indentation).len();
        let with = indented(&self.with, indentation);
        Ok(format!("{}{with}{}", &source[..*at], &source[end..]))
    }
}

/// Returns the places where a text begins in a source, each with the indentation of its line, by
/// which the other lines of the text are indented too.
fn places<'s>(source: &'s str, text: &str) -> Vec<(usize, &'s str)> {
    source
        .match_indices(first_line(text))
        .map(|(at, _)| (at, indentation(&source[..at])))
        .filter(|(at, indentation)| source[*at..].starts_with(&indented(text, indentation)))
        .collect()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Returns the indentation of the last line.
fn indentation(text: &str) -> &str {
    let line = text.rsplit('\n').next().unwrap_or_default();
    &line[..line.len() - line.trim_start().len()]
}

/// Returns the text with all lines but the first indented.
fn indented(text: &str, indentation: &str) -> String {
    text.replace('\n', &format!("\n{indentation}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_mutant_changes_the_sources_of_today() {
        let mutants = read().unwrap();
        assert!(mutants.len() >= 30);
        let mut problems = Vec::new();
        for mutant in mutants {
            let source = project::read(&mutant.file);
            match mutant.applied_to(&source) {
                Ok(mutated) if mutated == source => {
                    problems.push(format!("{} changes nothing", mutant.name));
                }
                Ok(_) => {}
                Err(error) => problems.push(error.to_string()),
            }
        }
        assert_eq!(problems, Vec::<String>::new());
    }

    #[test]
    fn each_mutant_has_a_name_of_its_own_and_says_what_goes_wrong() {
        let mut names = BTreeSet::new();
        for mutant in read().unwrap() {
            let is_snake_case = |it: char| it.is_ascii_lowercase() || it == '_';
            assert!(mutant.name.chars().all(is_snake_case), "{}", mutant.name);
            assert!(mutant.why.ends_with('.'), "{}", mutant.name);
            assert!(names.insert(mutant.name.clone()), "{}", mutant.name);
        }
    }

    fn mutant(replace: &str, with: &str) -> Mutant {
        let entry = format!(
            "- {{name: m, file: f, replace: {replace:?}, with: {with:?}, seeds: 1, why: w}}"
        );
        parse(&entry).unwrap().remove(0)
    }

    #[test]
    fn lines_are_indented_as_the_first_of_them_is_in_the_source() {
        let source = "fn f() {\n    if a() {\n        b();\n    }\n}\n";
        let mutant = mutant("if a() {\n    b();\n", "if a() {\n    c();\n    b();\n");
        let mutated = "fn f() {\n    if a() {\n        c();\n        b();\n    }\n}\n";
        assert_eq!(mutant.applied_to(source).unwrap(), mutated);
    }

    #[test]
    fn a_text_that_is_missing_or_not_unique_is_refused() {
        let mutant = mutant("a();\nb();", "");
        assert!(mutant.applied_to("a();\n").is_err());
        assert!(mutant.applied_to("a();\n  b();\n").is_err());
        assert!(mutant.applied_to("a();\nb();\na();\nb();\n").is_err());
        assert_eq!(mutant.applied_to("a();\nb();\na();\n").unwrap(), "\na();\n");
    }
}
