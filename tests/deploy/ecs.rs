//! The CloudFormation template, read by cfn-lint.

use std::process::Command;

use serde_json::{Value, json};
use sluice_testkit::install::install_deploy_tools;
use sluice_testkit::project;

/// Returns the template, after asserting that cfn-lint reports no findings, with a named collection
/// and everything else off.
fn template() -> Value {
    resolved(&unresolved_template(), &["HasCollection"])
}

/// Returns a part of the template with each `Fn::If` decided. `conditions` are those that hold.
fn resolved(part: &Value, conditions: &[&str]) -> Value {
    let chosen = |part: &Value| -> Value {
        match part["Fn::If"].as_array() {
            Some(choice) => {
                let holds = conditions.contains(&choice[0].as_str().unwrap());
                choice[if holds { 1 } else { 2 }].clone()
            }
            None => part.clone(),
        }
    };
    let none = json!({"Ref": "AWS::NoValue"});
    match chosen(part) {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, resolved(&value, conditions)))
            .filter(|(_, value)| *value != none)
            .collect(),
        Value::Array(values) => values
            .iter()
            .map(|value| resolved(value, conditions))
            .filter(|value| *value != none)
            .collect(),
        scalar => scalar,
    }
}

fn unresolved_template() -> Value {
    let output = Command::new(install_deploy_tools().unwrap())
        .arg(project::path("tests/deploy/template.py"))
        .arg(project::path("deploy/ecs/cloudformation.yaml"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let mut output: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output["findings"], json!([]));
    output["template"].take()
}

/// Returns the container's variables, including those with a secret.
fn environment(template: &Value) -> Vec<(String, Value)> {
    let container =
        &template["Resources"]["TaskDefinition"]["Properties"]["ContainerDefinitions"][0];
    let list = |name: &str, value: &'static str| {
        let entries = container[name].as_array().unwrap().clone();
        entries.into_iter().map(move |entry| {
            let name = entry["Name"].as_str().unwrap().to_owned();
            (name, entry[value].clone())
        })
    };
    list("Environment", "Value")
        .chain(list("Secrets", "ValueFrom"))
        .collect()
}

/// Returns an example value for a parameter of the template or a pseudo parameter of AWS.
fn example(value: &Value) -> String {
    match (value.as_str(), value["Ref"].as_str()) {
        (Some(text), _) => text.to_owned(),
        (_, Some("Queue")) => "https://sqs.eu-central-1.amazonaws.com/1/uploads".to_owned(),
        (_, Some("ClickHouseUrl")) => "https://clickhouse.example:8443".to_owned(),
        (_, Some("ClickHouseRoleArn")) => "arn:aws:iam::111122223333:role/clickhouse".to_owned(),
        (_, Some("AWS::Region")) => "eu-central-1".to_owned(),
        (_, Some(parameter)) => parameter.to_lowercase(),
        _ => panic!("{value}"),
    }
}

/// Runs `sluice` with exactly the environment variables that the template gives to the task.
fn sluice(template: &Value, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(arguments)
        .env_clear()
        // Nothing listens there, so no service is queried.
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        .envs([
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ])
        .envs(
            environment(template)
                .iter()
                .map(|(name, value)| (name, example(value))),
        )
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_task_has_a_valid_configuration() {
    let template = unresolved_template();
    for (conditions, expected) in [
        (&["HasCollection"][..], "named_collection"),
        (&[][..], "role_arn"),
    ] {
        let shown = sluice(&resolved(&template, conditions), &["config", "show"]);
        assert!(shown.contains(expected), "{shown}");
    }
}

#[test]
fn ecs_exec_and_alarm_actions_are_off_unless_parameters_turn_them_on() {
    let template = unresolved_template();
    for conditions in [&[][..], &["AllowsExec", "HasAlarmTopic"]] {
        let is_on = !conditions.is_empty();
        let resources = &resolved(&template, conditions)["Resources"];
        let of = |name: &str| &resources[name]["Properties"];
        assert_eq!(of("Service")["EnableExecuteCommand"], is_on);
        let container = &of("TaskDefinition")["ContainerDefinitions"][0];
        assert_eq!(container["ReadonlyRootFilesystem"], !is_on);
        let policies = of("TaskRole")["Policies"].as_array().unwrap();
        assert_eq!(policies.len(), 1 + usize::from(is_on));
        for alarm in ["DeadLetterAlarm", "AgeAlarm"] {
            for actions in ["AlarmActions", "OKActions"] {
                let topics = is_on.then(|| json!([{"Ref": "AlarmTopicArn"}]));
                assert_eq!(of(alarm)[actions], topics.unwrap_or_default(), "{alarm}");
            }
        }
    }
}

/// The command of a task that creates the tables names the container of the task definition.
#[test]
fn the_command_that_migrates_overrides_the_container_of_the_task() {
    let template = template();
    let command = template["Outputs"]["MigrateCommand"]["Value"]["Fn::Sub"][0].as_str();
    let (_, overrides) = command.unwrap().split_once("--overrides '").unwrap();
    let (overrides, _) = overrides.split_once('\'').unwrap();
    let overrides: Value = serde_json::from_str(overrides).unwrap();
    let container =
        &template["Resources"]["TaskDefinition"]["Properties"]["ContainerDefinitions"][0];
    let overridden = &overrides["containerOverrides"][0];
    assert_eq!(overridden["name"], container["Name"]);
    assert_eq!(overridden["command"], json!(["migrate"]));
}

/// ECS would kill a worker that takes longer, so that another worker has to recover its batches.
#[test]
fn the_grace_period_fits_into_the_stop_timeout_of_ecs() {
    let template = template();
    let environment = environment(&template);
    let grace = environment
        .iter()
        .find(|(name, _)| name == "SLUICE__SHUTDOWN__GRACE_PERIOD");
    let grace = grace.unwrap().1.as_str().unwrap().strip_suffix('s');
    let grace: u64 = grace.unwrap().parse().unwrap();
    let container =
        &template["Resources"]["TaskDefinition"]["Properties"]["ContainerDefinitions"][0];
    // Releasing messages at the end takes up to 15 s.
    assert!(grace + 15 <= container["StopTimeout"].as_u64().unwrap());
}

#[test]
fn the_task_role_allows_what_check_prints_for_the_worker() {
    let template = template();
    let printed = sluice(
        &template,
        &[
            "check",
            "--print-policy",
            "--bucket",
            "uploads",
            "--output",
            "json",
        ],
    );
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let of_role = &template["Resources"]["TaskRole"]["Properties"]["Policies"][0]["PolicyDocument"];
    let actions = |policy: &Value| -> Vec<Vec<String>> {
        let statements = policy["Statement"].as_array().unwrap();
        let of = |statement: &Value| match &statement["Action"] {
            Value::String(one) => vec![one.clone()],
            many => serde_json::from_value(many.clone()).unwrap(),
        };
        statements.iter().map(of).collect()
    };
    assert_eq!(actions(of_role), actions(&printed["iam"]["worker"]));
}

/// Existing buckets and those that the template creates announce the same events.
#[test]
fn existing_buckets_and_the_template_announce_the_same_events() {
    let text = project::read("deploy/s3-notification.json");
    let of_file: Value = serde_json::from_str(&text).unwrap();
    let of_file = &of_file["QueueConfigurations"][0];
    let template = template();
    let bucket = &template["Resources"]["Bucket"]["Properties"]["NotificationConfiguration"];
    let of_template = bucket["QueueConfigurations"].as_array().unwrap();
    let events: Vec<_> = of_template.iter().map(|it| &it["Event"]).collect();
    let events_of_file: Vec<_> = of_file["Events"].as_array().unwrap().iter().collect();
    assert_eq!(events, events_of_file);
}
