//! The image.

use std::process::Command;

use sluice_testkit::install::target_directory;
use sluice_testkit::project;

#[test]
fn the_image_is_built_with_the_toolchain_of_the_workspace() {
    let toolchain = project::read("rust-toolchain.toml");
    let (_, channel) = toolchain.split_once("channel = \"").unwrap();
    let (channel, _) = channel.split_once('"').unwrap();
    assert!(project::read("Dockerfile").contains(&format!("FROM rust:{channel}-slim-")));
}

/// What the Dockerfile runs, with this machine's toolchain.
#[test]
#[ignore = "builds with optimisation, which takes minutes: cargo test --test deploy -- --ignored"]
fn the_binary_of_the_image_runs() {
    let dockerfile = project::read("Dockerfile");
    let build = dockerfile
        .lines()
        .filter_map(|line| line.trim().strip_prefix("&& cargo "))
        .next_back()
        .unwrap();
    let built = Command::new(env!("CARGO"))
        .args(build.split(' '))
        .current_dir(project::path(""))
        .status()
        .unwrap();
    assert!(built.success());
    let sluice = target_directory().join("release/sluice");
    let help = Command::new(sluice).args(["check", "--help"]).output();
    let help = help.unwrap();
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: sluice check"));
}

#[test]
fn the_chart_is_of_this_version() {
    let chart = project::read("helm/sluice/Chart.yaml");
    let version = env!("CARGO_PKG_VERSION");
    assert!(chart.contains(&format!("\nversion: {version}\n")));
    assert!(chart.contains(&format!("\nappVersion: {version}\n")));
}
