//! Tests of what is shown of a configuration, and of what must not be.

use sluice_testkit::project::assert_generated;

use super::*;

const SECRET: &str = "hunter2";

#[test]
fn a_loaded_secret_is_not_shown() {
    let config = load(
        "clickhouse: {password: hunter2}\n\
         s3: {clickhouse_access: {kind: keys, access_key_id: AKIA, secret_access_key: hunter2}}",
    )
    .unwrap();
    let json = serde_json::to_string(&config).unwrap();
    for shown in [
        format!("{config:?}"),
        format!("{config:#?}"),
        json,
        effective_yaml(&config),
    ] {
        assert!(!shown.contains(SECRET), "{shown}");
        assert_eq!(shown.matches("[redacted]").count(), 2, "{shown}");
    }
    assert_eq!(config.clickhouse.password.expose(), SECRET);
}

#[test]
fn no_problem_quotes_a_secret() {
    let access = "s3: {clickhouse_access: ";
    let inputs = [
        // An error beside it.
        "clickhouse: {password: hunter2, user: '', url: nowhere}".to_owned(),
        format!("{access}{{kind: keys, access_key_id: 1, secret_access_key: hunter2}}}}"),
        format!("{access}{{kind: server, secret_access_key: hunter2}}}}"),
        format!("{access}{{kind: wrong, secret_access_key: hunter2}}}}"),
        // The secret in the wrong form or under the wrong key.
        "clickhouse: {password: [hunter2]}".to_owned(),
        "clickhouse: {password: {hunter2: hunter2}}".to_owned(),
        "clickhouse: {passwrd: hunter2}".to_owned(),
        "clickhouse: hunter2".to_owned(),
        "hunter2".to_owned(),
        "clickhouse:\n  password: 'hunter2\n".to_owned(),
        "clickhouse:\n  password: hunter2: x\n".to_owned(),
        "clickhouse:\n  password: hunter2\n url: x\n".to_owned(),
        "clickhouse:\n  password: @hunter2\n".to_owned(),
        "clickhouse:\n  password: *hunter2\n".to_owned(),
        "clickhouse:\n  password: !hunter2 [x]\n".to_owned(),
        // In a URL, good or bad.
        "clickhouse: {url: 'http://u:hunter2@h:8123'}".to_owned(),
        "clickhouse: {url: 'http://u:hunter2@h:8123:9'}".to_owned(),
        "clickhouse: {url: 'u:hunter2@h'}".to_owned(),
        "clickhouse: {url: 'http://h/?password=hunter2'}".to_owned(),
        "queue: {url: 'https://u:hunter2@h/1/q'}".to_owned(),
        "s3: {clickhouse_endpoint: 'http://u:hunter2@h'}".to_owned(),
    ];
    for yaml in inputs {
        let problems = load(&yaml).expect_err(&yaml);
        for shown in [problems.to_string(), format!("{problems:?}")] {
            assert!(!shown.contains(SECRET), "{yaml}\n{shown}");
        }
    }
}

#[test]
fn a_secret_of_the_wrong_type_is_not_quoted() {
    for value in ["4711", "47.11", "-4711", "0x4711"] {
        let problems = load(&format!("clickhouse: {{password: {value}}}")).unwrap_err();
        let shown = problems.to_string();
        assert!(shown.contains("put it in quotes"), "{shown}");
        assert!(!shown.contains("47"), "{shown}");
    }
    check("clickhouse: {password: true}", &["put it in quotes"]);
    // A template that was filled with nothing is not the same as no password.
    check(
        "clickhouse: {password: }",
        &["clickhouse.password: has no value"],
    );
}

#[test]
fn what_is_in_effect_loads_again() {
    let yamls = [
        "",
        "queue: {url: 'http://h/1/q', wait_time: 0s}\nlog: {level: 'sluice=debug,info'}",
        "clickhouse: {database: '123', cluster: 'yes', user: '~', ca_file: ' a: b', url: 'https://h'}",
        "clickhouse: {database: '#x', cluster: '1e3', user: \"a'b\\\"c\"}\nevent_types: {dir: '-'}",
        "notifications: {include: ['a b', '#c', '[d]'], exclude: ['*']}",
        "s3: {region: 'null', clickhouse_access: {kind: named_collection, name: '0x10'}}",
    ];
    for yaml in yamls {
        let config = load(yaml).unwrap();
        let shown = effective_yaml(&config);
        assert_eq!(load(&shown).unwrap(), config, "{shown}");
    }
}

#[test]
fn a_redacted_secret_is_not_taken_for_one() {
    let config = load("clickhouse: {password: hunter2}").unwrap();
    check(
        &effective_yaml(&config),
        &["`[redacted]` stands for a secret that was hidden"],
    );
}

#[test]
fn what_is_in_effect_is_yaml_in_the_order_of_declaration() {
    let shown = effective_yaml(&load("queue: {url: 'http://h/1/q'}").unwrap());
    assert!(
        shown.starts_with("queue:\n  url: \"http://h/1/q\"\n  wait_time: 20s\n"),
        "{shown}"
    );
}

#[test]
fn the_examples_load() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
    for name in ["aws-ecs.yaml", "kubernetes.yaml", "local.yaml"] {
        let sources = Sources {
            file: Some(dir.join(name)),
            ..Sources::default()
        };
        let config = Config::load(sources).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        config.queue.require_url().unwrap();
    }
    let is_file = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().path().is_file();
    let files = fs::read_dir(dir).unwrap().map(is_file);
    assert_eq!(
        files.filter(|is_file| *is_file).count(),
        3,
        "an example without a test"
    );
}

#[test]
fn the_schema_describes_every_field() {
    let schema = json_schema();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    assert_eq!(schema["additionalProperties"], false);
    let pretty = |path| serde_json::to_string_pretty(schema.pointer(path).unwrap()).unwrap();
    insta::assert_snapshot!(pretty("/properties/batch/properties/window"), @r#"
{
  "title": "duration",
  "type": "string",
  "pattern": "^\\s*([0-9.]+\\s*[A-Za-zµ]+\\s*)+$",
  "examples": [
    "500ms",
    "10s",
    "1h30m",
    "90d"
  ],
  "description": "How long a batch waits for more objects after its first one, 100ms to 1h; longer while all load slots are busy. This is the delay that Sluice adds to a steady stream. A longer window results in fewer and larger inserts.",
  "default": "10s"
}
"#);
    insta::assert_snapshot!(pretty("/properties/queue/properties/receivers"), @r#"
{
  "type": "integer",
  "default": 2,
  "minimum": 1,
  "description": "The number of concurrent receives, 1 to 16. One receive returns at most 10 messages. Raise it if messages stay visible in the queue although load slots are idle.",
  "maximum": 16
}
"#);
    insta::assert_snapshot!(pretty("/properties/s3/properties/clickhouse_access/oneOf/2"), @r#"
{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "kind": {
      "type": "string",
      "const": "keys"
    },
    "access_key_id": {
      "type": "string",
      "description": "The id of the access key."
    },
    "secret_access_key": {
      "type": "string",
      "format": "password",
      "writeOnly": true,
      "description": "The secret access key; set either this or `secret_access_key_file`. Set it in the environment rather than in the configuration file."
    },
    "secret_access_key_file": {
      "type": [
        "string",
        "null"
      ],
      "description": "A file that contains the secret access key, such as a mounted secret. It is read at startup."
    }
  },
  "description": "An access key that Sluice includes in its statements. ClickHouse hides it in its logs, except in statements with a syntax error.",
  "required": [
    "kind"
  ]
}
"#);
}

#[test]
fn the_reference_is_up_to_date() {
    assert_generated(
        "docs/configuration.md",
        &reference_markdown(),
        "--lib config",
    );
}
