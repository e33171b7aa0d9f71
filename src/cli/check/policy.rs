//! The minimal rights that this configuration needs: IAM policies and GRANTs.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::dedup_self_test::PREFIX;
use super::report::Check;
use crate::batch::Fallback;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::config::{Config, S3AccessConfig, TableEngine};
use crate::event_types::Catalog;
use crate::ledger::{BATCHES_TABLE, FAILURES_TABLE, OBJECTS_TABLE};
use crate::queue::QueueAttributes;
use crate::sql;
use crate::statements::ddl::{LANDING_PREFIX, REPLAYED, USAGE_TABLE};
use crate::statements::insert::Strategy;
use crate::statements::select::Target;

const RIGHTS: &str = "clickhouse rights";

/// The rights of the ClickHouse user. Every command also needs those of `run`.
#[derive(Debug, Serialize)]
pub(super) struct Grants {
    run: Vec<String>,
    /// For `sluice check`.
    check: Vec<String>,
    /// For the operator's other commands.
    operate: Vec<String>,
    migrate: Vec<String>,
}

/// Returns the rights, each as it is written after `GRANT`.
pub(super) fn grants(config: &Config, catalog: &Catalog, buckets: &[String]) -> Grants {
    let database = sql::ident(&config.clickhouse.database);
    let on = |rights: &str, name: &str| format!("{rights} ON {database}.{name}");
    let on_table = |rights: &str, table: &str| on(rights, &sql::ident(table));
    let on_cluster = || {
        config
            .clickhouse
            .cluster
            .iter()
            .map(|_| "CLUSTER ON *.*".to_owned())
    };
    let replicated = |engine: &str| match config.clickhouse.engine {
        TableEngine::Plain => engine.to_owned(),
        TableEngine::Replicated => format!("Replicated{engine}"),
    };
    let engines = [
        replicated("MergeTree"),
        replicated("ReplacingMergeTree"),
        "Null".to_owned(),
    ];
    let engines = || {
        engines
            .iter()
            .map(|engine| format!("TABLE ENGINE ON {engine}"))
    };

    let single_pass = config.load.strategy == Strategy::SinglePass;
    let of_target = if single_pass {
        "SELECT, ALTER DELETE"
    } else {
        "SELECT, INSERT, ALTER DELETE"
    };
    let mut run = vec![
        on("SHOW TABLES, SHOW COLUMNS", "*"),
        on_table("SELECT, INSERT", OBJECTS_TABLE),
        on_table("SELECT, INSERT", BATCHES_TABLE),
        on_table("INSERT", FAILURES_TABLE),
        // What the worker uses, for `sluice cost`. Nothing else depends on it.
        on_table("INSERT", USAGE_TABLE),
    ];
    if single_pass {
        // Views without a definer read it with the rights of the inserting user.
        run.push(on("SELECT, INSERT", &format!("{LANDING_PREFIX}*")));
    }
    let targets = Target::all(catalog);
    run.extend(
        targets
            .iter()
            .map(|target| on_table(of_target, target.table())),
    );
    // KILL QUERY reads it, even for the user's own queries.
    run.push("SELECT ON system.processes".to_owned());
    // Shows whether merges removed rows between an insert and its comparison, and which parts are
    // recent.
    run.push("SELECT ON system.parts".to_owned());
    // For the table functions s3() and input().
    run.push("CREATE TEMPORARY TABLE ON *.*".to_owned());
    if config.load.fallback != Fallback::Always {
        run.push("READ ON S3".to_owned());
        run.extend(
            collections(&config.s3.clickhouse_access, buckets)
                .iter()
                .map(|name| format!("NAMED COLLECTION ON {}", sql::ident(name))),
        );
    }
    let is_replicated = config.clickhouse.engine == TableEngine::Replicated;
    if is_replicated {
        // Shows which servers have all rows, and which there are; a kill must reach all of them.
        run.push("SELECT ON system.replicas".to_owned());
        run.push("SELECT ON system.clusters".to_owned());
        run.push("SELECT ON system.one".to_owned());
        run.push("REMOTE ON *.*".to_owned());
        run.push("KILL QUERY ON *.*".to_owned());
        run.push("CLUSTER ON *.*".to_owned());
    } else {
        run.extend(on_cluster());
    }

    let scratch = "CREATE TABLE, DROP TABLE, CREATE VIEW, DROP VIEW, SELECT, INSERT";
    let mut check = vec![on(scratch, &format!("{PREFIX}*"))];
    check.extend(engines());
    let mut migrate = vec![
        on(
            "CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP TABLE, DROP VIEW, SHOW TABLES, SHOW \
             COLUMNS, SELECT, INSERT, ALTER ADD COLUMN, ALTER MODIFY COLUMN, ALTER SETTINGS, ALTER \
             MODIFY TTL",
            "*",
        ),
        "CREATE TEMPORARY TABLE ON *.*".to_owned(),
    ];
    migrate.extend(engines());
    migrate.extend(on_cluster());
    if is_replicated {
        migrate.push(on("ALTER ADD CONSTRAINT, ALTER DROP CONSTRAINT", "*"));
        migrate.push("SELECT ON system.replicas".to_owned());
    }
    Grants {
        run,
        check,
        operate: vec![
            on_table("SELECT", FAILURES_TABLE),
            on_table("SELECT, INSERT", REPLAYED),
            // For `sluice cost`.
            on_table("SELECT", USAGE_TABLE),
            // Show which rows were deleted, and whether a table was truncated.
            "SELECT ON system.mutations".to_owned(),
            "SELECT ON system.query_log".to_owned(),
        ],
        migrate,
    }
}

fn collections(access: &S3AccessConfig, buckets: &[String]) -> Vec<String> {
    match access {
        S3AccessConfig::NamedCollection { name } if name.contains("{bucket}") => buckets
            .iter()
            .map(|bucket| name.replace("{bucket}", bucket))
            .collect(),
        S3AccessConfig::NamedCollection { name } => vec![name.clone()],
        _ => Vec::new(),
    }
}

pub(super) fn skipped() -> Check {
    Check::skip(RIGHTS, super::clickhouse::NO_CLICKHOUSE)
}

/// Checks that the user has all rights that `run` needs.
pub(super) async fn check(warehouse: &Warehouse, user: &str, grants: &Grants) -> Check {
    let mut missing = Vec::new();
    for grant in &grants.run {
        match has(warehouse, grant).await {
            Ok(true) => {}
            Ok(false) => missing.push(grant.as_str()),
            Err(error) => {
                return Check::warn(
                    RIGHTS,
                    format!("failed to check {grant}: {error}"),
                    "compare the user's grants with `sluice check --print-policy`",
                );
            }
        }
    }
    if missing.is_empty() {
        return Check::pass(
            RIGHTS,
            format!("user {user} has all rights that `run` needs"),
        );
    }
    let missing = missing.iter().map(|grant| statement(grant, user));
    let missing: Vec<String> = missing.collect();
    Check::fail(
        RIGHTS,
        format!(
            "user {user} lacks {} rights that `run` needs",
            missing.len()
        ),
        missing.join(" "),
    )
}

async fn has(warehouse: &Warehouse, grant: &str) -> Result<bool, WarehouseError> {
    #[derive(serde::Deserialize)]
    struct Row {
        result: u8,
    }
    let rows: Vec<Row> = warehouse.rows(&format!("CHECK GRANT {grant}")).await?;
    Ok(rows.first().is_some_and(|row| row.result == 1))
}

fn statement(grant: &str, user: &str) -> String {
    format!("GRANT {grant} TO {};", sql::ident(user))
}

/// IAM policies.
#[derive(Debug, Serialize)]
struct Iam {
    /// For the role of `sluice run` and `sluice check`.
    worker: Value,
    /// The additional rights of an operator.
    operator: Value,
    /// For the credentials with which ClickHouse reads S3; `None` if it needs none.
    clickhouse: Option<Value>,
}

#[derive(Debug, Serialize)]
pub(super) struct Policies {
    #[serde(skip)]
    user: String,
    iam: Iam,
    clickhouse: Grants,
}

/// Returns the policies. `queue` holds the queue's attributes, or defaults if they are unknown.
pub(super) fn policies(
    config: &Config,
    catalog: &Catalog,
    buckets: &[String],
    queue: &QueueAttributes,
) -> Policies {
    Policies {
        user: config.clickhouse.user.clone(),
        iam: iam(config, buckets, queue),
        clickhouse: grants(config, catalog, buckets),
    }
}

fn iam(config: &Config, buckets: &[String], queue: &QueueAttributes) -> Iam {
    let dead_letters = queue.redrive_policy.as_ref();
    let dead_letters = dead_letters.map_or("ARN-OF-THE-DEAD-LETTER-QUEUE", |policy| {
        policy.dead_letter_target_arn.as_str()
    });
    let queue_arn = match queue.arn.as_str() {
        "" => "ARN-OF-THE-QUEUE",
        arn => arn,
    };
    // arn:aws:sqs:…
    let partition = queue_arn.split(':').nth(1).unwrap_or("aws");
    let of_buckets = |suffix: &str| -> Vec<String> {
        let arn = |bucket: &String| format!("arn:{partition}:s3:::{bucket}{suffix}");
        buckets.iter().map(arn).collect()
    };
    let read = allow(&["s3:GetObject"], json!(of_buckets("/*")));
    let mut worker = vec![
        allow(
            &[
                "sqs:ReceiveMessage",
                "sqs:DeleteMessage",
                "sqs:ChangeMessageVisibility",
                "sqs:GetQueueAttributes",
            ],
            json!(queue_arn),
        ),
        // Only for a metric and for `sluice check`.
        allow(
            &["sqs:GetQueueUrl", "sqs:GetQueueAttributes"],
            json!(dead_letters),
        ),
    ];
    if config.load.fallback != Fallback::Never {
        worker.push(read.clone());
    }
    let list = allow(&["s3:ListBucket"], json!(of_buckets("")));
    let operator = vec![
        allow(
            &["sqs:GetQueueAttributes", "sqs:SendMessage"],
            json!(queue_arn),
        ),
        allow(
            &[
                "sqs:GetQueueUrl",
                "sqs:GetQueueAttributes",
                "sqs:ReceiveMessage",
                "sqs:ChangeMessageVisibility",
                "sqs:DeleteMessage",
                "sqs:ListDeadLetterSourceQueues",
                "sqs:StartMessageMoveTask",
                "sqs:ListMessageMoveTasks",
                "sqs:CancelMessageMoveTask",
            ],
            json!(dead_letters),
        ),
        list.clone(),
    ];
    let clickhouse_reads = config.load.fallback != Fallback::Always
        && config.s3.clickhouse_access != S3AccessConfig::Anonymous;
    Iam {
        worker: policy(worker),
        operator: policy(operator),
        clickhouse: clickhouse_reads.then(|| policy(vec![read, list])),
    }
}

fn allow(actions: &[&str], resource: Value) -> Value {
    json!({"Effect": "Allow", "Action": actions, "Resource": resource})
}

fn policy(statements: Vec<Value>) -> Value {
    json!({"Version": "2012-10-17", "Statement": statements})
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iam = [
            ("the worker's role (`sluice run`)", Some(&self.iam.worker)),
            (
                "in addition, for the operator's commands",
                Some(&self.iam.operator),
            ),
            (
                "the credentials with which ClickHouse reads S3",
                self.iam.clickhouse.as_ref(),
            ),
        ];
        for (whose, policy) in iam {
            if let Some(policy) = policy {
                writeln!(f, "-- IAM: {whose}\n{policy:#}\n")?;
            }
        }
        let grants = [
            ("`sluice run`", &self.clickhouse.run),
            ("in addition, for `sluice check`", &self.clickhouse.check),
            (
                "in addition, for the operator's commands",
                &self.clickhouse.operate,
            ),
            (
                "`sluice migrate`, which can run as another user",
                &self.clickhouse.migrate,
            ),
        ];
        for (what, grants) in grants {
            writeln!(f, "-- ClickHouse: {what}")?;
            for grant in grants {
                writeln!(f, "{}", statement(grant, &self.user))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
