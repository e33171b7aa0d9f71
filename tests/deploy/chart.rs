//! The chart, rendered by Helm's own engine and checked against Kubernetes' schemas.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sluice_testkit::install::install_deploy_tools;
use sluice_testkit::project::{self, assert_generated};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/sluice");
const RENDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/deploy/render.py");
/// The oldest version that the chart allows, the newest that has schemas, and some in between.
const VERSIONS: [&str; 4] = ["1.27", "1.30", "1.33", "1.37"];

/// Returns what Helm renders from these values.
fn render(values: &Value) -> Value {
    render_all(std::slice::from_ref(values)).remove(0)
}

/// Returns what Helm renders from each of these values. One process renders all of them, since
/// loading the engine takes longer than rendering.
fn render_all(values: &[Value]) -> Vec<Value> {
    let python = install_deploy_tools().unwrap();
    let mut child = Command::new(python)
        .arg(RENDER)
        .arg(CHART)
        .args(VERSIONS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    serde_json::to_writer(&mut stdin, values).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the minimal values.
fn minimal_values() -> Value {
    json!({"image": {"repository": "registry.example/sluice"}, "config": {
        "queue": {"url": "https://sqs.eu-central-1.amazonaws.com/111122223333/uploads"},
        "clickhouse": {"url": "https://clickhouse.example:8443"},
    }})
}

/// Returns the minimal values, overridden by others.
fn values(over: Value) -> Value {
    fn merge(under: &mut Value, over: Value) {
        match (under, over) {
            (Value::Object(under), Value::Object(over)) => {
                for (key, value) in over {
                    merge(under.entry(key).or_insert(Value::Null), value);
                }
            }
            (under, over) => *under = over,
        }
    }
    let mut values = minimal_values();
    merge(&mut values, over);
    values
}

fn everything() -> Value {
    values(json!({
        "image": {"digest": format!("sha256:{}", "0a".repeat(32))},
        "imagePullSecrets": [{"name": "registry"}],
        "replicas": 3,
        "config": {
            "s3": {"clickhouse_access": {"kind": "keys", "access_key_id": "AKIAEXAMPLE"}},
            "shutdown": {"grace_period": "1h 2m 3s"},
        },
        "eventTypes": {"click.yaml": "table: clicks\nrule: {path: [verb], equals: click}\n"},
        "clickhousePassword": {"existingSecret": "clickhouse", "key": "pass"},
        "clickhouseCa": {"existingSecret": "authority", "key": "root.pem"},
        "s3SecretAccessKey": {"value": "secret"},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/s"}},
        "env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
        "envFrom": [{"secretRef": {"name": "settings"}}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "commonLabels": {"cost-center": "42"},
        "livenessProbe": {"failureThreshold": 9},
        "startupProbe": {"failureThreshold": 30},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
        "keda": {"enabled": true, "awsRegion": "eu-central-1"},
        "reconcile": {"enabled": true, "url": "s3://uploads/", "args": ["--since", "7d"]},
        "backfill": {"enabled": true, "url": "s3://uploads/2026/"},
        "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
        "service": {"port": 80},
        "prometheusRule": {"enabled": true, "runbookUrl": "https://wiki.example/runbooks/"},
        "dashboard": {"enabled": true},
        "networkPolicy": {"enabled": true, "from": [{"namespaceSelector": {}}]},
        "terminationGracePeriodSeconds": 4000,
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "data"},
        "priorityClassName": "high",
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    }))
}

/// Returns the manifests as one text, after asserting that they are valid by Kubernetes' schemas
/// and by Helm's lint.
#[track_caller]
fn valid_manifests(values: &Value) -> String {
    let rendered = render(values);
    assert_valid(&rendered);
    let manifests = rendered["manifests"].as_object().unwrap();
    let manifests: String = manifests
        .iter()
        .map(|(name, text)| format!("# {name}\n{}\n", text.as_str().unwrap().trim()))
        .collect();
    // The dashboard is long, and exists as a file.
    let dashboard = project::read("helm/sluice/dashboards/sluice.json");
    let indented: Vec<_> = dashboard
        .lines()
        .map(|line| format!("    {line}"))
        .collect();
    manifests.replace(&indented.join("\n"), "    (dashboards/sluice.json)")
}

#[test]
fn defaults() {
    insta::assert_snapshot!(valid_manifests(&minimal_values()));
}

#[test]
fn everything_on() {
    insta::assert_snapshot!(valid_manifests(&everything()));
}

#[test]
fn values_that_cannot_work_are_refused_with_advice() {
    let cases = [
        (
            json!({"image": {"repository": ""}}),
            "image.repository: give",
        ),
        (
            json!({"prometheusRule": {"enabled": true}}),
            "prometheusRule.runbookUrl: give",
        ),
        (
            json!({"commonLabels": {"app.kubernetes.io/name": "other"}}),
            "commonLabels: the chart itself sets app.kubernetes.io/name",
        ),
        (
            json!({"commonLabels": {"team": "a"}, "podLabels": {"team": "b"}}),
            "podLabels: the chart or commonLabels already set team",
        ),
        (
            json!({"extraVolumes": [{"name": "ca", "emptyDir": {}}]}),
            "extraVolumes: the chart itself has a volume named ca",
        ),
        (json!({"livenessProbe": {"exec": {}}}), "exec"),
        (json!({"strategy": {"type": "Rolling"}}), "strategy"),
        (
            json!({"extraVolumeMounts": [{"name": "more"}]}),
            "mountPath",
        ),
        (
            json!({"config": {"queue": {"url": null}}}),
            "config.queue.url: give",
        ),
        (
            json!({"config": {"clickhouse": {"url": ""}}}),
            "config.clickhouse.url: give",
        ),
        (
            json!({"config": {"clickhouse": {"password": "p"}}}),
            "clickhousePassword.existingSecret",
        ),
        (
            json!({"config": {"s3": {"clickhouse_access": {
                "kind": "keys", "access_key_id": "a", "secret_access_key": "s",
            }}}}),
            "s3SecretAccessKey.existingSecret",
        ),
        (
            json!({"terminationGracePeriodSeconds": 600}),
            "600 is shorter than the 615 that workers may need",
        ),
        (
            json!({"keda": {"enabled": true, "minReplicas": 3, "maxReplicas": 2, "awsRegion": "e"}}),
            "keda.minReplicas: 3 is more than",
        ),
        (json!({"keda": {"enabled": true}}), "keda.awsRegion: give"),
        (
            json!({"keda": {"enabled": true, "awsRegion": "e", "identityOwner": "pod"}}),
            "serviceAccount.annotations.eks.amazonaws.com/role-arn",
        ),
        (
            json!({"s3SecretAccessKey": {"existingSecret": "keys"}}),
            "config.s3.clickhouse_access.kind: keys",
        ),
        (
            json!({
                "s3SecretAccessKey": {"existingSecret": "keys"},
                "config": {"s3": {"region": "eu-central-1"}},
            }),
            "config.s3.clickhouse_access.kind: keys",
        ),
        (
            json!({"clickhouseCa": {"existingSecret": "a", "existingConfigMap": "b"}}),
            "existingSecret or existingConfigMap, not both",
        ),
        (
            json!({
                "clickhouseCa": {"existingSecret": "a"},
                "config": {"clickhouse": {"ca_file": "/ca.crt"}},
            }),
            "clickhouseCa and config.clickhouse.ca_file: give one of the two",
        ),
        (
            json!({"reconcile": {"enabled": true}}),
            "reconcile.url: give",
        ),
        (
            json!({"eventTypes": {"a.yaml": "x"}, "config": {"event_types": {"dir": "/x"}}}),
            "give one of the two",
        ),
        // These are rejected by the schema of the chart, or by that of the configuration.
        (json!({"replica": 2}), "replica"),
        (
            json!({"keda": {"identityOwner": "workload"}}),
            "identityOwner",
        ),
        (json!({"image": {"digest": "latest"}}), "digest"),
        (json!({"config": {"batch": {"windows": "5s"}}}), "windows"),
        (json!({"config": {"queue": {"receivers": 99}}}), "receivers"),
        (json!({"config": {"batch": {"window": 5}}}), "window"),
    ];
    let all: Vec<Value> = cases.iter().map(|(over, _)| values(over.clone())).collect();
    for ((over, expected), rendered) in cases.iter().zip(render_all(&all)) {
        let error = rendered["error"].as_str().unwrap_or_default();
        assert!(error.contains(expected), "{over}: {rendered}");
    }
}

#[track_caller]
fn assert_valid(rendered: &Value) {
    assert_eq!(rendered["error"], Value::Null);
    assert_eq!(rendered["problems"], json!([]));
    assert_eq!(rendered["findings"], json!([]));
}

/// Returns the manifests of one template, after asserting that all of them are valid.
#[track_caller]
fn manifests(rendered: &Value, template: &str) -> String {
    assert_valid(rendered);
    let text = &rendered["manifests"][format!("sluice/templates/{template}.yaml")];
    text.as_str().unwrap().to_owned()
}

#[track_caller]
fn assert_in_order(text: &str, words: &[&str]) {
    let mut rest = text;
    for word in words {
        let (_, after) = rest
            .split_once(word)
            .unwrap_or_else(|| panic!("{word:?} is missing or out of order in:\n{text}"));
        rest = after;
    }
}

#[test]
fn a_certificate_authority_is_mounted_where_the_configuration_names_it() {
    let cases = [
        (
            "existingSecret",
            "secret:\n            secretName: authority",
        ),
        (
            "existingConfigMap",
            "configMap:\n            name: authority",
        ),
    ];
    let all = cases.map(|(source, _)| values(json!({"clickhouseCa": {source: "authority"}})));
    for ((_, volume), rendered) in cases.iter().zip(render_all(&all)) {
        let deployment = manifests(&rendered, "deployment");
        assert_in_order(
            &deployment,
            &[
                "mountPath: /etc/sluice/ca\n",
                "- name: ca\n",
                volume,
                "{key: \"ca.crt\", path: ca.crt}",
            ],
        );
        let migrate = manifests(&rendered, "migrate");
        assert_in_order(&migrate, &["mountPath: /etc/sluice/ca\n", volume]);
        let file = manifests(&rendered, "configmap");
        assert_in_order(&file, &["ca_file: /etc/sluice/ca/ca.crt\n"]);
    }
}

/// OpenShift's restricted policy refuses users and groups that it has not assigned.
#[test]
fn fields_of_the_security_contexts_that_are_null_are_left_out() {
    let values = values(json!({
        "podSecurityContext": {"runAsUser": null, "runAsGroup": null, "fsGroup": null},
    }));
    let rendered = render(&values);
    for template in ["deployment", "migrate"] {
        let text = manifests(&rendered, template);
        assert_in_order(&text, &["runAsNonRoot: true\n", "type: RuntimeDefault\n"]);
        assert!(!text.contains("runAsUser"), "{text}");
        assert!(!text.contains("fsGroup"), "{text}");
    }
}

#[test]
fn event_types_of_the_chart_keep_the_other_event_type_settings() {
    let values = values(json!({
        "eventTypes": {"a.yaml": "table: a\n"},
        "config": {"event_types": {"min_year": 1990}},
    }));
    let file = manifests(&render(&values), "configmap");
    let expected = [
        "event_types:\n",
        "dir: /etc/sluice/event_types\n",
        "min_year: 1990\n",
    ];
    assert_in_order(&file, &expected);
}

#[test]
fn keda_reads_the_queue_with_the_identity_that_the_values_select() {
    let keda = |over: Value| {
        let mut keda = json!({"enabled": true, "awsRegion": "eu-central-1"});
        keda.as_object_mut()
            .unwrap()
            .extend(over.as_object().unwrap().clone());
        let annotations = json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/s"});
        values(json!({"keda": keda, "serviceAccount": {"annotations": annotations}}))
    };
    let selecting = |authentication: Value| {
        keda(json!({"identityOwner": "pod", "triggerAuthentication": authentication}))
    };
    let owners = ["workload", "keda"];
    let mut all = vec![keda(json!({})), selecting(json!({"existing": "sqs"}))];
    all.extend(owners.map(|owner| selecting(json!({"identityOwner": owner}))));
    let mut rendered = render_all(&all).into_iter();
    let mut next = || manifests(&rendered.next().unwrap(), "scaledobject");
    let (by_operator, existing) = (next(), next());
    assert_in_order(&by_operator, &["identityOwner: \"operator\""]);
    assert!(!by_operator.contains("uthentication"), "{by_operator}");
    for owner in owners {
        let selected = next();
        let identity = format!("provider: aws\n    identityOwner: \"{owner}\"");
        assert_in_order(
            &selected,
            &[
                "identityOwner: \"pod\"\n      authenticationRef:\n        name: demo-sluice\n",
                "kind: TriggerAuthentication\n",
                "name: demo-sluice\n",
                &identity,
            ],
        );
    }
    assert_in_order(&existing, &["identityOwner: \"pod\"", "name: sqs"]);
    assert!(!existing.contains("kind: TriggerAuth"), "{existing}");
}

#[test]
fn sluice_accepts_the_configuration_that_the_chart_writes() {
    for rendered in render_all(&[minimal_values(), everything()]) {
        let config_map = rendered["manifests"]["sluice/templates/configmap.yaml"].as_str();
        let (_, file) = config_map.unwrap().split_once("sluice.yaml: |\n").unwrap();
        let file: String = file
            .lines()
            .take_while(|line| line.starts_with("    "))
            .flat_map(|line| [&line[4..], "\n"])
            .collect();
        // These files exist only in the pod.
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "clickhouse/password",
            "ca/ca.crt",
            "s3/secret_access_key",
            "event_types/a.yaml",
        ] {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "secret").unwrap();
        }
        let here = directory.path().display().to_string();
        let path = directory.path().join("sluice.yaml");
        std::fs::write(&path, file.replace("/etc/sluice", &here)).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["config", "show", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}{stderr}");
    }
}

#[test]
fn the_schema_of_the_chart_includes_that_of_the_configuration() {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["config", "schema"])
        .output()
        .unwrap();
    let mut config: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The chart's schema follows another draft, in which the keywords used here mean the same.
    config.as_object_mut().unwrap().remove("$schema");
    let schema = project::read("helm/sluice/values.schema.json");
    let mut schema: Value = serde_json::from_str(&schema).unwrap();
    schema["properties"]["config"] = config;
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    assert_generated("helm/sluice/values.schema.json", &text, "--test deploy");
}

#[test]
fn the_readme_of_the_chart_lists_every_value() {
    let values = project::read("helm/sluice/values.yaml");
    let mut text = String::from(
        "<!-- Generated from values.yaml. Update it with: UPDATE_DOCS=1 cargo test --test deploy -->\n\n\
         # The Sluice chart\n\n\
         ```sh\n\
         helm install sluice helm/sluice --values values.yaml\n\
         helm test sluice\n\
         ```\n\n\
         `image.repository`, `config.queue.url` and `config.clickhouse.url` are required. Unknown keys are rejected, \
         including those within `config`. Before workers start, and before each upgrade, a Job runs \
         `sluice migrate`; `helm test` runs `sluice check`.\n",
    );
    for block in values.split("\n\n").skip(1) {
        let (comment, yaml): (Vec<_>, Vec<_>) = block
            .trim_end()
            .lines()
            .partition(|line| line.starts_with('#'));
        let comment: Vec<_> = comment.iter().map(|line| line[1..].trim()).collect();
        text += &format!(
            "\n{}\n\n```yaml\n{}\n```\n",
            comment.join(" "),
            yaml.join("\n")
        );
    }
    assert_generated("helm/sluice/README.md", &text, "--test deploy");
}
