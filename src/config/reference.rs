//! The effective configuration as YAML, and the reference of all fields.

use std::fmt::Write;

use serde_json::Value;
use yaml_rust2::yaml::Hash;
use yaml_rust2::{Yaml, YamlEmitter};

use super::fields::{Field, Fields, plain};
use super::layers::variable_name;
use super::types::Config;

/// Returns the configuration as YAML with its secrets redacted. Apart from
/// those, it can be loaded again.
pub fn effective_yaml(config: &Config) -> String {
    let tree = serde_json::to_value(config).expect("a configuration is plain data");
    let mut text = String::new();
    YamlEmitter::new(&mut text)
        .dump(&to_yaml(tree))
        .expect("writing to a string cannot fail");
    // The emitter writes a document marker, which a single document does not
    // need.
    let body = text.trim_start_matches("---\n").to_owned();
    body + "\n"
}

fn to_yaml(value: Value) -> Yaml {
    match value {
        Value::Null => Yaml::Null,
        Value::Bool(value) => Yaml::Boolean(value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Yaml::Integer(number),
            None => Yaml::Real(number.to_string()),
        },
        Value::String(text) => Yaml::String(text),
        Value::Array(values) => Yaml::Array(values.into_iter().map(to_yaml).collect()),
        Value::Object(object) => {
            let pairs = object
                .into_iter()
                .map(|(key, value)| (Yaml::String(key), to_yaml(value)));
            Yaml::Hash(pairs.collect::<Hash>())
        }
    }
}

const INTRODUCTION: &str = "\
<!-- Generated from src/config. Update it with: UPDATE_DOCS=1 cargo test --lib config -->

# Configuration

Sluice needs only the URL of its queue; everything else has a default. Each layer overrides the ones before it, field by field:

1. the defaults, [config/default.yaml](../config/default.yaml);
2. the YAML file that `--config FILE` or the variable `SLUICE_CONFIG` names;
3. environment variables: `SLUICE__`, then the path of the field with `__` between its parts, in upper or lower case. `batch.window` is `SLUICE__BATCH__WINDOW`;
4. `--set PATH=VALUE`, such as `--set batch.window=5s`, any number of times.

Nothing is guessed: if there is an unknown key, a number without a unit or a value out of range, Sluice does not start, and reports every problem with its origin and what to do. `sluice config show` prints the effective configuration, without secrets; `sluice config schema` prints the JSON schema, with which editors can check files. Examples are in [config/examples](../config/examples).

In a file, a list is a YAML list. In the environment and with `--set`, it is a JSON list, such as `[\"a\", \"b\"]`, or a single string.

Durations have a unit (`500ms`, `10s`, `2m`, `1h30m`, `90d`), and so do sizes (`64KB` is 64,000 bytes, `128MiB` is 134,217,728 bytes).

## AWS

Sluice's own requests to SQS take credentials, endpoint and, unless `s3.region` is set, the region from the usual AWS environment: `AWS_REGION`, `AWS_PROFILE`, `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY`, web identity (EKS), container credentials (ECS) and instance profiles, in the SDK's order. `AWS_ENDPOINT_URL`, or `AWS_ENDPOINT_URL_SQS`, sets another endpoint, such as that of LocalStack.

ClickHouse reads the objects itself, from `s3.clickhouse_endpoint` and with the credentials of `s3.clickhouse_access`; the AWS environment of Sluice does not apply to it.
";

/// Returns the text of docs/configuration.md.
pub fn reference_markdown() -> String {
    let fields = Fields::new();
    let mut page = INTRODUCTION.to_owned();
    for (section, description) in &fields.sections {
        page += &format!("\n## {section}\n\n{description}\n");
        for field in &fields.fields {
            if field.path.rsplit_once('.').map(|(parent, _)| parent) == Some(section) {
                write_field(&mut page, field).expect("writing to a string cannot fail");
            }
        }
    }
    page
}

fn write_field(page: &mut String, field: &Field) -> std::fmt::Result {
    let path = &field.path;
    writeln!(page, "\n### `{path}`\n")?;
    writeln!(page, "{}\n", field.description)?;
    // A new paragraph, since the text would otherwise become part of a list that ends the
    // description.
    if !field.kinds.is_empty() {
        write!(page, "Only for kind `{}`. ", field.kinds.join("`, `"))?;
    }
    write!(page, "Takes {}. ", field.takes)?;
    match field.default.as_ref().map(plain) {
        Some(default) if default.is_empty() => write!(page, "Default: empty. ")?,
        Some(default) => write!(page, "Default: `{default}`. ")?,
        None if field.kinds.is_empty() => write!(page, "Default: unset. ")?,
        None => write!(page, "No default. ")?,
    }
    writeln!(page, "Environment: `{}`.", variable_name(path))
}
