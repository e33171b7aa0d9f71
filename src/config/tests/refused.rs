//! Tests of invalid configurations, and of their error messages.

use super::*;

#[test]
fn a_file_that_cannot_be_used_is_a_problem_among_others() {
    let problems = Config::load(Sources {
        file: Some("/nowhere/sluice.yaml".into()),
        env: owned(&[("SLUICE__BATCH__WINDOW", "5")]),
        flags: Vec::new(),
    });
    check_lines(
        problems,
        &[
            "/nowhere/sluice.yaml: failed to read",
            "batch.window: `5` has no unit",
        ],
        "",
    );
    check(
        "- a\n- b\n",
        &["is not a single YAML document of keys and values"],
    );
    check(
        "hunter2",
        &["is not a single YAML document of keys and values"],
    );
    check("batch: {window: 1s", &["invalid YAML: while parsing"]);
    check(
        "log: {level: info}\nlog: {level: info}",
        &["duplicated key"],
    );
}

#[test]
fn unknown_keys_are_found_with_what_was_meant() {
    check(
        "batch: {windw: 5s}",
        &["batch.windw: unknown key (did you mean `batch.window`?)"],
    );
    check("batch: {Window: 5s}", &["did you mean `batch.window`?"]);
    check("window: 5s", &["did you mean `batch.window`?"]);
    check(
        "batches: {window: 5s}",
        &["batches: unknown key (did you mean `batch`?)"],
    );
    check(
        "load: {max-bytes: 1MiB}",
        &["did you mean `batch.max_bytes`?"],
    );
    check(
        "log: {colour: true}",
        &["the keys of log are format, level"],
    );
    check(
        "metrics: {port: 1}",
        &["the sections are queue, notifications, clickhouse, s3, batch"],
    );
    check(
        "batch: {window: {max: 5s}}",
        &["batch.window: takes a single value"],
    );
    check(
        "batch.window: 5s",
        &["batch.window: contains a dot in its key"],
    );
    check(
        "batch: 5s",
        &["batch: is a section, not a field (set its fields: window,"],
    );
    check("batch: {window: }", &["batch.window: has no value"]);
    check_env(
        &[("SLUICE__BATCH__WINDWO", "5s")],
        &["did you mean `batch.window`?"],
    );
    check_env(&[("SLUICE__BATCH", "5s")], &["batch: is a section"]);
    check_env(
        &[("SLUICE__BATCH__WINDOW__MAX", "5s")],
        &["batch.window is a field and has no keys"],
    );
    check_env(
        &[("SLUICE__LOG__LEVEL", "a\u{fffd}")],
        &["log.level: is not Unicode"],
    );
    check_env(&[("SLUICE__", "5s")], &["unknown key"]);
    check_env(
        &[
            ("SLUICE__LOG__LEVEL", "info"),
            ("sluice__log__level", "warn"),
        ],
        &["log.level: is also set by SLUICE__LOG__LEVEL"],
    );
}

#[test]
fn values_of_the_wrong_type_say_what_the_field_takes() {
    check(
        "batch: {window: 10}",
        &["batch.window: `10` has no unit; write `10s`"],
    );
    check(
        "batch: {max_bytes: 5}",
        &["batch.max_bytes: `5` has no unit; write `5MiB`"],
    );
    check("batch: {window: soon}", &["`soon` is not a duration"]);
    check(
        "queue: {receivers: 2.5}",
        &["whole number (set it to a whole number, 1 to 16; the default is `2`)"],
    );
    check(
        "queue: {receivers: -1}",
        &["queue.receivers: invalid value"],
    );
    check(
        "queue: {receivers: many}",
        &["queue.receivers: invalid value"],
    );
    check(
        "queue: {allow_missing_dlq: maybe}",
        &["set it to `true` or `false`"],
    );
    check("queue: {url: 12}", &["queue.url: invalid type"]);
    check(
        "load: {strategy: fast}",
        &["set it to one of `single_pass`, `per_type`"],
    );
    check("admin: {listen: 9464}", &["admin.listen: "]);
    check(
        "admin: {listen: localhost}",
        &["admin.listen: invalid socket address"],
    );
    check_env(
        &[("SLUICE__LOG__FORMAT", "xml")],
        &["log.format: unknown variant `xml`"],
    );
}

#[test]
fn values_out_of_range_are_refused() {
    check(
        "queue: {receivers: 17}",
        &["queue.receivers: `17` is out of range (set it to a whole number, 1 to 16"],
    );
    check("queue: {receivers: 0}", &["queue.receivers"]);
    check("queue: {max_held: 100001}", &["queue.max_held"]);
    check(
        "queue: {wait_time: 21s}",
        &["queue.wait_time: `21s` is out of range (set it to a duration from 0s to 20s"],
    );
    check(
        "queue: {wait_time: 1500ms}",
        &["`1s500ms` is not a whole number of seconds"],
    );
    check(
        "queue: {visibility_timeout: 9s}",
        &["set it to a duration from 10s to 12h"],
    );
    check(
        "queue: {visibility_timeout: 13h}",
        &["queue.visibility_timeout"],
    );
    check(
        "queue: {retry_backoff_max: 13h}",
        &["queue.retry_backoff_max"],
    );
    check(
        "clickhouse: {connect_timeout: 0s}",
        &["`0s` is out of range (set it to a duration from 1ms to 1d)"],
    );
    check(
        "clickhouse: {dedup_window: 1}",
        &["clickhouse.dedup_window"],
    );
    check(
        "clickhouse: {dedup_age: 59m}",
        &["clickhouse.dedup_age: `59m` is out of range (set it to a duration from 1h to 365d)"],
    );
    check(
        "clickhouse: {dedup_age: 1h, insert_timeout: 15m}",
        &["clickhouse.dedup_age: 1h is less than five times clickhouse.insert_timeout (15m)"],
    );
    assert!(load("clickhouse: {dedup_age: 1h, insert_timeout: 12m}").is_ok());
    check("clickhouse: {reject_ttl: 1h}", &["clickhouse.reject_ttl"]);
    check(
        "clickhouse: {database: ''}",
        &["clickhouse.database: is empty"],
    );
    check(
        "clickhouse: {cluster: \"a\\0b\"}",
        &["clickhouse.cluster: contains a control character"],
    );
    check("batch: {window: 0s}", &["batch.window"]);
    check("batch: {max_objects: 5001}", &["batch.max_objects"]);
    check(
        "batch: {max_bytes: 1023KiB}",
        &["batch.max_bytes: `1023KiB` is too small (set it to 1MiB or more)"],
    );
    check("load: {concurrency: 65}", &["load.concurrency"]);
    check(
        "load: {janitor_interval: 500ms}",
        &["load.janitor_interval: `500ms` is out of range (set it to a duration from 1s to 1d)"],
    );
    check(
        "load: {max_line_bytes: 2GiB}",
        &["load.max_line_bytes: `2GiB` is too large (set it to 1GiB or less)"],
    );
    check(
        "load: {accept_unproven: [zst, zip, '']}",
        &[
            "load.accept_unproven: `zip` is not the extension of a supported compression (use gz, zst, lz4,",
            "load.accept_unproven: `` is not",
        ],
    );
    check(
        "load: {max_memory: 100MiB}",
        &["load.max_memory: `100MiB` is too small (set it to 256MiB or more)"],
    );
    check(
        "event_types: {min_year: 1969}",
        &["event_types.min_year: `1969` is out of range (set it to a whole number, 1970 to 2299"],
    );
    check(
        "load: {stream_below: 2MiB}",
        &["load.stream_below: `2MiB` is too large (set it to 1MiB or less)"],
    );
    check(
        "load: {stream_below: 16KiB, fallback: never}",
        &[
            "load.stream_below: conflicts with `load.fallback: never`, with which the worker streams nothing",
        ],
    );
    check(
        "load: {stream_below: 16KiB, strategy: per_type}",
        &["load.stream_below: conflicts with `load.strategy: per_type`"],
    );
    for ratio in ["1.1", "-0.1", "half"] {
        check(
            &format!("load: {{max_rejected_ratio: {ratio}}}"),
            &["is not a number from 0 to 1 (set it to a number from 0 to 1; the default is `1"],
        );
    }
    check("shutdown: {grace_period: 0s}", &["shutdown.grace_period"]);
    check("log: {level: inof}", &["`inof` is not a level"]);
    check(
        "log: {level: 'info,clickhouse::error=debug'}",
        &["would log statements with their secrets"],
    );
    check(
        "log: {level: 'sluice=loud'}",
        &["log.level: is not a log filter"],
    );
    check(
        "clickhouse: {password: \"x\\n\"}",
        &["clickhouse.password: contains a control character"],
    );
    check("log: {level: ''}", &["log.level: is empty"]);
    assert!(load("log: {level: 'sluice=debug,hyper::client=off,WARN'}").is_ok());
}

#[test]
fn lists_are_checked_as_one_value() {
    check(
        "notifications: {events: [ObjectRemoved:*, 'ObjectCreated:*'], include: ['a[', 'b']}",
        &[
            "notifications.events: `ObjectRemoved:*` is not an event that creates an object (use names such as",
            "notifications.include: `a[` is not a valid glob: a `[` is not closed",
        ],
    );
    check(
        "notifications: {events: []}",
        &["notifications.events: is empty, so nothing would be loaded"],
    );
    check(
        "notifications: {include: [a, {b: c}], exclude: [[d]]}",
        &[
            "notifications.exclude: invalid type: sequence",
            "notifications.include: invalid type: map, expected a string (set it to a list of strings",
        ],
    );
    check(
        "notifications: {include: {a: b}}",
        &["notifications.include: takes a single value"],
    );
    check_env(
        &[("SLUICE__NOTIFICATIONS__EXCLUDE", "[a")],
        &["notifications.exclude: `[a` is not a JSON list"],
    );
    check("log: {level: [info]}", &["log.level: takes a single value"]);
}

#[test]
fn urls_are_checked() {
    check("queue: {url: uploads}", &["queue.url: is not a URL"]);
    check(
        "queue: {url: 'arn:aws:sqs:eu-central-1:1:q'}",
        &["queue.url: is an ARN, not a URL"],
    );
    check(
        "queue: {url: 'https://sqs.eu-central-1.amazonaws.com'}",
        &["does not name a queue"],
    );
    check(
        "queue: {url: 'sqs://host/1/q'}",
        &["is not an http or https URL"],
    );
    check(
        "clickhouse: {url: 'tcp://h:9000'}",
        &["clickhouse.url: is not an http or https URL"],
    );
    check(
        "clickhouse: {url: 'http://sluice@h:8123'}",
        &["contains a user or password (set clickhouse.user and clickhouse.password instead)"],
    );
    check(
        "clickhouse: {url: 'http://h:8123/?user=a'}",
        &["contains a query or fragment"],
    );
    check(
        "s3: {clickhouse_endpoint: 'http://h/?x=1'}",
        &["s3.clickhouse_endpoint: contains a query"],
    );
    check(
        "s3: {key_time: 'logs/.*'}",
        &["s3.key_time: the regular expression `logs/.*` must have exactly one group"],
    );
    check(
        "telemetry: {otlp_endpoint: 'http://user:pw@h:4318'}",
        &["telemetry.otlp_endpoint: contains a user or password"],
    );
    check(
        "telemetry: {sample_ratio: 2}",
        &["telemetry.sample_ratio: `2` is not a number from 0 to 1"],
    );
    check(
        "telemetry: {otlp_endpoint: 'http://h:4318', metrics_interval: 500ms}",
        &["telemetry.metrics_interval: `500ms` is out of range"],
    );
    check(
        "telemetry: {metrics_interval: 1m}",
        &["telemetry.metrics_interval: requires telemetry.otlp_endpoint"],
    );
}

#[test]
fn related_fields_are_checked_together() {
    check(
        "queue: {retry_backoff_max: 5s}",
        &[
            "queue.retry_backoff_max: queue.retry_backoff_min (10s) is more than queue.retry_backoff_max (5s)",
        ],
    );
    check(
        "load: {retry_backoff_min: 2m}",
        &["load.retry_backoff_min: load.retry_backoff_min (2m)"],
    );
    check(
        "queue: {max_held: 10}",
        &["10 is less than batch.max_objects (1000)"],
    );
    check(
        "clickhouse: {ca_file: /ca.pem}",
        &["clickhouse.ca_file: has no effect"],
    );
    // A value that is wrong by itself is not compared as well.
    check(
        "clickhouse: {url: [], ca_file: /ca.pem}",
        &["clickhouse.url: takes a single value"],
    );
    check(
        "load: {retry_backoff_min: 2, retry_backoff_max: 500ms}",
        &["`2` has no unit"],
    );
    check(
        "queue: {max_held: 0}",
        &["queue.max_held: `0` is out of range"],
    );
}

#[test]
fn a_secret_is_not_taken_from_the_command_line() {
    let found = load_all("", &NO_ENV, &[("clickhouse.password", "hunter2")]);
    let shown = found.unwrap_err().to_string();
    for word in ["SLUICE__CLICKHOUSE__PASSWORD", "clickhouse.password_file"] {
        assert!(shown.contains(word), "{shown}");
    }
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_secret_comes_from_its_file_or_is_given() {
    let secret = file("hunter2\n");
    let yaml = format!("clickhouse: {{password_file: {}}}", secret.path.display());
    let config = load(&yaml).unwrap();
    assert_eq!(
        config.clickhouse.password().read().unwrap().expose(),
        "hunter2"
    );
    assert!(!effective_yaml(&config).contains("hunter2"));
    check(
        "clickhouse: {password: x, password_file: y}",
        &["clickhouse.password_file: clickhouse.password is also set"],
    );
    check(
        "clickhouse: {password_file: /nowhere/password}",
        &["clickhouse.password_file: failed to read /nowhere/password"],
    );
}

#[test]
fn each_kind_of_access_has_its_fields() {
    let access = |fields: &str| format!("s3: {{clickhouse_access: {{{fields}}}}}");
    let good = [
        "kind: server",
        "kind: anonymous",
        "kind: named_collection, name: uploads",
        "kind: role, role_arn: 'arn:aws:iam::1:role/r'",
        "kind: keys, access_key_id: AKIA, secret_access_key: s3cr3t",
    ];
    for fields in good {
        assert!(load(&access(fields)).is_ok(), "{fields}");
    }
    check(
        &access("kind: keys, access_key_id: AKIA, secret_access_key: x, secret_access_key_file: y"),
        &["secret_access_key_file: s3.clickhouse_access.secret_access_key is also set"],
    );
    check(
        &access("kind: keys, access_key_id: AKIA, secret_access_key_file: /nowhere/secret"),
        &["secret_access_key_file: failed to read /nowhere/secret"],
    );
    check(
        &access("kind: named_collection"),
        &["name: is required for kind `named_collection`"],
    );
    check(
        &access("kind: keys"),
        &[
            "access_key_id: is required for kind `keys`",
            "SLUICE__S3__CLICKHOUSE_ACCESS__SECRET_ACCESS_KEY",
        ],
    );
    check(
        &access("kind: server, name: uploads"),
        &[
            "name: is not valid for kind `server` (remove it, or set s3.clickhouse_access.kind to `named_collection`",
        ],
    );
    check(
        &access("kind: role, access_key_id: AKIA, secret_access_key: x"),
        &[
            "access_key_id: is not valid",
            "secret_access_key: is not valid",
            "role_arn: is required for kind `role`",
        ],
    );
    check(
        &access("name: uploads"),
        &["is not valid for kind `server`"],
    );
    check(
        &access("kind: role, role_arn: reader"),
        &["role_arn: is not an ARN"],
    );
    check(
        &access("kind: keys, access_key_id: '', secret_access_key: ''"),
        &["is empty", "is empty"],
    );
    check(
        &access("kind: key, name: x"),
        &["s3.clickhouse_access.kind: unknown variant `key`"],
    );
    check(
        &access("kind: keys, access_key_id: 1, secret_access_key: x"),
        &["access_key_id: invalid type"],
    );
    check(
        &access("kind: keys, key: 1"),
        &["key: unknown key", "is required", "is required"],
    );
}

#[test]
fn every_problem_is_told_at_once_with_its_origin() {
    let yaml = "batch: {windw: 5s, max_objects: 0}\nlog: {format: xml}";
    let env = [("SLUICE__QUEUE__RECEIVERS", "many")];
    let flags = [("load.concurrency", "1000"), ("admin.listn", "x")];
    let file = file(yaml);
    let problems = Config::load(Sources {
        file: Some(file.path.clone()),
        env: owned(&env),
        flags: owned(&flags),
    })
    .unwrap_err();
    let shown = problems.to_string();
    let shown = shown.replace(&file.path.display().to_string(), "sluice.yaml");
    insta::assert_snapshot!(shown, @r##"
6 problems in the configuration

batch.windw: unknown key
  from: file sluice.yaml
  help: did you mean `batch.window`?

admin.listn: unknown key
  from: a flag on the command line
  help: did you mean `admin.listen`?

log.format: unknown variant `xml`, expected `text` or `json`
  from: file sluice.yaml
  help: set it to one of `text`, `json`; the default is `text`

queue.receivers: invalid value: string "many", expected a whole number
  from: environment variable SLUICE__QUEUE__RECEIVERS
  help: set it to a whole number, 1 to 16; the default is `2`

batch.max_objects: `0` is out of range
  from: file sluice.yaml
  help: set it to a whole number, 1 to 5000; the default is `1000`

load.concurrency: `1000` is out of range
  from: a flag on the command line
  help: set it to a whole number, 1 to 64; the default is `2`

`sluice config schema` lists every field with its type and default
"##);
}
