//! The Docker Compose stack, and the cluster for tests.

use std::process::Command;

use sluice_testkit::install::{CLICKHOUSE_VERSION, MINISTACK_VERSION};
use sluice_testkit::{CLUSTER_VARIABLE, Cluster, project};
use yaml_rust2::{Yaml, YamlLoader};

fn load(file: &str) -> Yaml {
    YamlLoader::load_from_str(&project::read(file)).unwrap()[0].clone()
}

#[test]
fn the_compose_file_runs_the_versions_that_the_tests_use() {
    let services = &load("compose.yaml")["services"];
    let image = |service: &str| services[service]["image"].as_str().unwrap().to_owned();
    let tag = image("clickhouse");
    let (_, tag) = tag.split_once(':').unwrap();
    assert!(CLICKHOUSE_VERSION.starts_with(tag), "{tag}");
    assert!(image("aws").ends_with(&format!(":{MINISTACK_VERSION}")));
}

#[test]
fn sluice_accepts_the_configuration_of_the_compose_file() {
    let file = load("compose.yaml");
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

/// The servers have the version, the name and the ports that the tests and the workflow expect.
#[test]
fn the_cluster_for_tests_is_the_one_that_its_workflow_names() {
    let file = load("tests/cluster/compose.yaml");
    let image = file["x-replica"]["image"].as_str().unwrap();
    let (_, tag) = image.split_once(':').unwrap();
    assert!(CLICKHOUSE_VERSION.starts_with(tag), "{tag}");

    let services = file["services"].as_hash().unwrap();
    let variable = |service: &Yaml, name: &str| service["environment"][name].as_i64().unwrap();
    let urls: Vec<String> = services
        .values()
        .map(|service| format!("http://127.0.0.1:{}", variable(service, "HTTP_PORT")))
        .collect();
    let workflow = load(".github/workflows/cluster.yaml");
    let given = workflow["jobs"]["cluster"]["env"][CLUSTER_VARIABLE].as_str();
    assert_eq!(given, Some(urls.join(",").as_str()));

    let configuration = project::read("tests/cluster/replica.xml");
    assert!(configuration.contains(&format!("<{}>", Cluster::NAME)));
    for service in services.values() {
        for name in ["TCP_PORT", "KEEPER_PORT"] {
            let port = format!("<port>{}</port>", variable(service, name));
            assert!(configuration.contains(&port), "{port}");
        }
    }
}
