//! The Docker Compose stack.

use std::process::Command;

use sluice_testkit::install::{CLICKHOUSE_VERSION, MINISTACK_VERSION};
use sluice_testkit::project;
use yaml_rust2::{Yaml, YamlLoader};

fn services() -> Yaml {
    YamlLoader::load_from_str(&project::read("compose.yaml")).unwrap()[0].clone()
}

#[test]
fn the_compose_file_runs_the_versions_that_the_tests_use() {
    let services = &services()["services"];
    let image = |service: &str| services[service]["image"].as_str().unwrap().to_owned();
    let tag = image("clickhouse");
    let (_, tag) = tag.split_once(':').unwrap();
    assert!(CLICKHOUSE_VERSION.starts_with(tag), "{tag}");
    assert!(image("aws").ends_with(&format!(":{MINISTACK_VERSION}")));
}

#[test]
fn sluice_accepts_the_configuration_of_the_compose_file() {
    let file = services();
    let environment = file["x-sluice"]["environment"].as_hash().unwrap();
    let text = |value: &Yaml| value.as_str().map(str::to_owned);
    let variables: Vec<_> = environment
        .iter()
        .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
        .collect();
    assert!(variables.len() > 5);
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["config", "show"])
        .env_clear()
        .envs(variables)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}
