//! The rules for Prometheus, run by promtool, and their runbooks.

use std::collections::BTreeSet;
use std::process::Command;

use sluice_testkit::install::install_prometheus;
use sluice_testkit::{Requirement, project};

/// Returns the values of a field at any depth.
fn values<'a>(yaml: &'a str, field: &str) -> BTreeSet<&'a str> {
    let lines = yaml.lines();
    lines
        .filter_map(|line| {
            let line = line.trim_start().trim_start_matches("- ");
            line.strip_prefix(field)?.strip_prefix(": ")
        })
        .collect()
}

fn promtool(arguments: &[&str]) {
    let output = Command::new(install_prometheus().unwrap().join("promtool"))
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("SUCCESS"), "{text}");
}

#[test]
fn every_alert_fires_when_it_should_and_not_before() {
    if !Requirement::Prometheus.is_met() {
        return;
    }
    let rules = project::path("helm/sluice/alerts.yaml");
    let rules = rules.display();
    promtool(&["check", "rules", &rules.to_string()]);

    let tests = project::read("tests/deploy/alerts.test.yaml");
    let alerts = project::read("helm/sluice/alerts.yaml");
    for alert in values(&alerts, "alert") {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n");
        assert!(tests.contains(&fires), "no test in which {alert} fires");
        let silent = format!("alertname: {alert}}}\n");
        assert!(
            tests.contains(&silent),
            "no test in which {alert} does not fire"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tests.yaml");
    std::fs::write(&file, format!("rule_files: ['{rules}']\n{tests}")).unwrap();
    promtool(&["test", "rules", &file.display().to_string()]);
}

#[test]
fn every_alert_has_a_runbook() {
    let alerts = project::read("helm/sluice/alerts.yaml");
    let runbooks = values(&alerts, "runbook_url");
    assert_eq!(runbooks.len(), values(&alerts, "alert").len());
    for block in alerts.split("- alert: ").skip(1) {
        let name = block.lines().next().unwrap();
        let runbook = values(block, "runbook_url").into_iter().next().unwrap();
        let text = project::read(runbook);
        assert!(text.starts_with(&format!("# {name}\n")), "{runbook}");
        for part in ["\n## Meaning\n", "\n## First query\n", "\n## Safe action\n"] {
            assert!(text.contains(part), "{runbook} lacks {part:?}");
        }
    }
}
