//! The container image.

use std::fs;
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

/// The layer of the dependencies has the workspace without its sources. Cargo must be able to
/// resolve it.
#[test]
fn the_image_has_every_member_of_the_workspace() {
    let (dockerfile, dockerignore) = (project::read("Dockerfile"), project::read(".dockerignore"));
    let layer = tempfile::tempdir().unwrap();
    for line in dockerfile.lines() {
        let Some(files) = line.strip_prefix("COPY ").filter(|it| it.contains("Cargo")) else {
            continue;
        };
        let (files, to) = files.rsplit_once(' ').unwrap();
        for file in files.split(' ') {
            let folder = file.split('/').next().unwrap();
            let is_in_context = [file, folder]
                .iter()
                .any(|it| dockerignore.contains(&format!("\n!{it}\n")));
            assert!(is_in_context, "{file}");
            let name = file.rsplit('/').next().unwrap();
            fs::create_dir_all(layer.path().join(to)).unwrap();
            fs::copy(project::path(file), layer.path().join(to).join(name)).unwrap();
        }
    }
    let (_, commands) = dockerfile.split_once("RUN mkdir").unwrap();
    let (commands, _) = commands.split_once("&& cargo").unwrap();
    // Resolves as the build of the image does, with packages that the build of this test fetched.
    let resolve = "tree --quiet --locked --offline --package sluice --edges normal,build";
    let commands = format!("mkdir{commands}&& {} {resolve}", env!("CARGO"));
    let output = Command::new("bash")
        .args(["-c", &commands])
        .current_dir(layer.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

/// Runs the build command of the Dockerfile with this machine's toolchain.
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
fn the_chart_has_the_version_of_the_workspace() {
    let chart = project::read("helm/sluice/Chart.yaml");
    let version = env!("CARGO_PKG_VERSION");
    assert!(chart.contains(&format!("\nversion: {version}\n")));
    assert!(chart.contains(&format!("\nappVersion: {version}\n")));
}
