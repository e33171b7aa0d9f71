//! Dependencies are compiled once for all programs that are built without optimisation.

use std::collections::BTreeSet;
use std::process::Command;

use sluice_testkit::project;

/// Returns the packages and features that cargo resolves for this selection.
fn resolve(selection: &[&str]) -> BTreeSet<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--quiet", "--locked", "--offline"])
        .args(["--prefix", "none", "--format", "{p} [{f}]"])
        .args(selection)
        .current_dir(project::path(""))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "{stderr}");
    let text = String::from_utf8(tree.stdout).unwrap();
    text.lines()
        .map(|line| line.trim_end_matches(" (*)").to_owned())
        .collect()
}

/// Cargo compiles a package once for each set of features that is requested. `cargo xtask`, the
/// daemon that it builds and the tests are three selections of packages. A feature that only one of
/// them enables recompiles everything that depends on it, which takes minutes.
#[test]
fn xtask_the_daemon_and_the_tests_share_their_dependencies() {
    let all = ["--workspace", "--features", "sluice/failpoints"];
    let tests = resolve(&[all.as_slice(), &["--edges", "normal,build,dev"]].concat());
    let daemon = resolve(&[all.as_slice(), &["--edges", "normal,build"]].concat());
    let xtask = resolve(&["--package", "xtask", "--edges", "normal,build"]);
    for (name, selection) in [("the daemon", daemon), ("xtask", xtask)] {
        let others: Vec<_> = selection.difference(&tests).collect();
        assert!(
            others.is_empty(),
            "{name} has other features than the tests; name those of the tests in \
             xtask/Cargo.toml: {others:#?}"
        );
    }
}
