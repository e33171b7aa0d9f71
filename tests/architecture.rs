//! ARCHITECTURE.md as a test: which modules may import each other, which may use what is not
//! deterministic, and which tests show the invariants.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sluice_testkit::project::files_below;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The modules of `sluice-core`. Each may import those before it.
const CORE: &[&str] = &[
    "label",
    "yaml",
    "env",
    "backoff",
    "glob",
    "sql",
    "secret",
    "sliding_window",
    "cost",
    "queue",
    "object",
    "outcome",
    "batch",
    "notification",
    "event_types",
    "infer",
    "statements",
    "ledger",
    "verify",
    "daemon",
    "fixtures",
];

/// The modules of `sluice`. Each may import those before it, and all of `sluice-core`.
const SHELLS: &[&str] = &[
    "event_types",
    "util",
    "config",
    "s3",
    "queue",
    "clickhouse",
    "ledger",
    "telemetry",
    "usage",
    "load",
    "rejects",
    "verify",
    "daemon",
    "backfill",
    "admin",
    "cli",
];

/// Modules that have the place of another one: formats are declared beside event types, a catalog
/// has both, and both have paths and routes.
const TOGETHER: &[(&str, &str)] = &[("formats", "event_types")];

/// Items that the root of a crate re-exports, each with its module.
const ALIASES: &[(&str, &str)] = &[("Env", "env"), ("labelled", "label")];

struct Source {
    /// Relative to the root of the crate.
    path: PathBuf,
    /// Without comments and unit tests.
    code: String,
}

impl Source {
    fn module(&self) -> String {
        let first = self.path.iter().next().unwrap_or_default();
        let first = first.to_string_lossy();
        placed(first.strip_suffix(".rs").unwrap_or(&first)).to_owned()
    }

    /// The modules of this crate that it imports by `crate::…`.
    fn imports(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (at, prefix) in self.code.match_indices("crate::") {
            let is_other = self.code[..at].ends_with(|before: char| before.is_alphanumeric());
            if is_other {
                continue;
            }
            let rest = &self.code[at + prefix.len()..];
            let list = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once('}').map_or(rest, |(list, _)| list),
                None => rest
                    .split(|next: char| !next.is_alphanumeric() && next != '_')
                    .next()
                    .unwrap_or_default(),
            };
            for name in list.split(',') {
                let name = name.trim().split("::").next().unwrap_or_default();
                let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
                let module = alias.map_or(name, |(_, module)| module);
                if !module.is_empty() {
                    found.insert(placed(module).to_owned());
                }
            }
        }
        found
    }
}

/// Returns the module by which the order knows this one.
fn placed(module: &str) -> &str {
    let other = TOGETHER.iter().find(|(it, _)| *it == module);
    other.map_or(module, |(_, other)| other)
}

/// The sources below a directory, without files that have only tests.
fn sources(directory: &str) -> Vec<Source> {
    let root = Path::new(ROOT).join(directory).canonicalize().unwrap();
    let is_test = |path: &Path| path.ends_with("tests.rs") || path.iter().any(|it| it == "tests");
    let mut found = Vec::new();
    for file in files_below(directory, "rs") {
        let path = file.strip_prefix(&root).unwrap().to_owned();
        if is_test(&path) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = code
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        found.push(Source {
            path,
            code: code.collect::<Vec<_>>().join("\n"),
        });
    }
    found
}

/// Returns every import of a module that is listed after the one that imports it.
fn imports_out_of_order(directory: &str, order: &[&str], below: &[&str]) -> Vec<String> {
    let place = |module: &str| order.iter().position(|it| *it == module);
    let mut found = Vec::new();
    for source in sources(directory) {
        let module = source.module();
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let Some(own) = place(&module) else {
            found.push(format!("{module} is not in the list of modules"));
            continue;
        };
        for import in source.imports() {
            let is_earlier = match place(&import) {
                Some(other) => other <= own,
                None => below.contains(&import.as_str()),
            };
            if !is_earlier {
                let path = source.path.display();
                found.push(format!("{directory}/{path} imports {import}"));
            }
        }
    }
    found
}

#[test]
fn imports_run_one_way() {
    let none: Vec<String> = Vec::new();
    assert_eq!(imports_out_of_order("core/src", CORE, &[]), none);
    assert_eq!(imports_out_of_order("src", SHELLS, CORE), none);
}

/// Returns the files that contain any of these words outside of tests.
fn files_using(words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["core/src", "src"] {
        for source in sources(directory) {
            if words.iter().any(|word| source.code.contains(word)) {
                found.push(format!("{directory}/{}", source.path.display()));
            }
        }
    }
    found.sort_unstable();
    found
}

#[test]
fn each_client_library_has_one_user() {
    let outside = |words: &[&str], home: &str| {
        let files = files_using(words).into_iter();
        files.filter(|it| !it.starts_with(home)).collect::<Vec<_>>()
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(outside(&["aws_sdk_sqs"], "src/queue/sqs"), none);
    assert_eq!(outside(&["aws_sdk_s3"], "src/s3/"), none);
    let client = [
        "clickhouse::Client",
        "clickhouse::query::",
        "clickhouse::error::",
    ];
    assert_eq!(outside(&client, "src/clickhouse/"), none);
}

/// What a simulation must be able to replace comes from an `Env`. The other uses are only shown to
/// people, or belong to a command that runs once.
#[test]
fn randomness_the_wall_clock_and_new_ids_come_from_env() {
    assert_eq!(
        files_using(&["fastrand::", "now_v7", "new_v4"]),
        [
            "core/src/env.rs",
            "src/cli/check/dedup_self_test.rs",
            "src/queue/sqs/whole.rs"
        ]
    );
    assert_eq!(
        files_using(&["SystemTime::now"]),
        [
            "core/src/env.rs",
            "src/admin/status.rs",
            "src/cli/backfill/mod.rs",
            "src/cli/dlq/purge.rs",
            "src/cli/time_argument.rs",
            "src/queue/sqs.rs",
            "src/telemetry/activity/mod.rs",
            "src/telemetry/metrics.rs",
            "src/telemetry/trace.rs",
        ]
    );
}

/// Each command has one `Env`, which its parts share.
#[test]
fn only_one_env_is_created() {
    assert_eq!(files_using(&["Env::default()"]), ["src/cli/app.rs"]);
}

/// The same events lead to the same run: a random choice between ready events would break this.
#[test]
fn every_select_polls_its_branches_in_order() {
    let mut found = Vec::new();
    for directory in ["core/src", "src"] {
        for source in sources(directory) {
            // One-shot commands and the pages of the admin listener need not be deterministic.
            if matches!(source.module().as_str(), "cli" | "admin") {
                continue;
            }
            for (_, branches) in source
                .code
                .match_indices("select! {")
                .map(|(at, word)| source.code.split_at(at + word.len()))
            {
                if !branches.trim_start().starts_with("biased;") {
                    found.push(source.path.display().to_string());
                }
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// Only `sql` turns values into SQL. A constant word may stand in quotes.
#[test]
fn values_are_quoted_in_the_sql_module_alone() {
    let mut found = Vec::new();
    for directory in ["core/src", "src"] {
        for source in sources(directory) {
            let is_sql = directory == "core/src" && source.path == Path::new("sql.rs");
            for (number, line) in source.code.lines().enumerate() {
                let quoted = line.split("'{").skip(1);
                let mut names = quoted.filter_map(|rest| Some(rest.split_once("}'")?.0));
                let is_value = |name: &str| {
                    let mut letters = name.chars();
                    letters.all(|it| it.is_ascii_lowercase() || it == '_' || it == '.')
                };
                if !is_sql && names.any(is_value) {
                    let path = source.path.display();
                    found.push(format!("{directory}/{path}, line {}: {line}", number + 1));
                }
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// `InFlightMessages` deletes messages of loaded objects, and the core deletes messages that have
/// nothing to load. The settler carries out both decisions.
#[test]
fn only_two_places_decide_that_a_message_is_deleted() {
    assert_eq!(
        files_using(&["Settlement::Delete"]),
        [
            "core/src/daemon/core.rs",
            "core/src/daemon/in_flight.rs",
            "src/daemon/settler.rs",
        ]
    );
}

/// Whether this file has a test of this name.
fn has_test(file: &str, name: &str) -> bool {
    let text = std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let head = format!("fn {name}(");
    lines.iter().enumerate().any(|(at, line)| {
        let attributes = lines[..at].iter().rev();
        let mut attributes = attributes.take_while(|line| line.starts_with("#["));
        line.contains(&head)
            && attributes.any(|it| it.starts_with("#[test]") || it.starts_with("#[tokio::test"))
    })
}

/// Returns the items of the numbered list in a section. Each extends to the next number.
fn numbered_items(section: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in section.lines() {
        if line.starts_with(|first: char| first.is_ascii_digit()) {
            items.push(line.to_owned());
        } else if let Some(item) = items.last_mut() {
            item.push('\n');
            item.push_str(line);
        }
    }
    items
}

/// Each invariant names its tests in backticks, as `path/to/file.rs::name_of_the_test`.
#[test]
fn every_invariant_is_shown_by_tests_that_exist() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("\n## Invariants\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let invariants = numbered_items(section);
    assert!(!invariants.is_empty());
    let mut problems = Vec::new();
    for (number, invariant) in (1..).zip(&invariants) {
        let start = format!("{number}. ");
        assert!(invariant.starts_with(&start), "{start}: {invariant}");
        let quoted = invariant.split('`').skip(1).step_by(2);
        let tests: Vec<_> = quoted.filter_map(|it| it.split_once(".rs::")).collect();
        if tests.is_empty() {
            problems.push(format!("{number} names no test"));
        }
        for (file, name) in tests {
            let file = format!("{file}.rs");
            if !has_test(&file, name) {
                problems.push(format!("{number}: {file} has no test {name}"));
            }
        }
    }
    assert_eq!(problems, Vec::<String>::new());
}
