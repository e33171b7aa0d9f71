//! Checks that this server drops a repeated insert, on which all recovery depends.
//!
//! The statements are those of a load, with their settings, views and engines; only the tables are
//! scratch tables, and the lines are sent with the statement, as those of a streamed object are.

use crate::Env;
use anyhow::{Context, anyhow};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::oneshot;

use super::report::Check;
use crate::batch::{BatchId, Layout, ReadBy, StatementShape};
use crate::clickhouse::{Statement, Warehouse, WarehouseError};
use crate::event_types::Catalog;
use crate::ledger::{Ledger, Permit};
use crate::object::{ObjectParts, ObjectRef};
use crate::sql;
use crate::statements::ddl::{SchemaOptions, tables, views};
use crate::statements::framing::Framer;
use crate::statements::insert::{Planner, PlannerOptions, TimeLimits};
use crate::statements::select::Target;

const NAME: &str = "repeated inserts";

/// The prefix of the names of all scratch tables.
pub(super) const PREFIX: &str = "sluice_check_";

/// Scratch tables older than this, in seconds, were left behind by a check that was killed.
const LEFT_BEHIND: u32 = 3600;

pub(super) fn skipped(why: &str) -> Check {
    Check::skip(NAME, why)
}

pub(super) async fn check(
    warehouse: &Warehouse,
    ledger: &Ledger,
    planner: Planner,
    options: SchemaOptions,
    env: &Env,
) -> Check {
    match SelfTest::new(warehouse, ledger, planner, options, env).await {
        Ok(test) => test.check().await,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> Check {
    Check::fail(
        NAME,
        format!("{error:#}"),
        "see the error from ClickHouse; `sluice check --print-policy` prints the rights that \
         `sluice check` needs",
    )
}

/// The number of rows that each load inserts, by table.
const ROWS: [(&str, u64); 4] = [
    ("canaries", 4),
    ("rejected_lines", 1),
    ("unmatched_statements", 1),
    // One for each kind of line.
    ("object_rows", 3),
];

/// Returns the lines of a load: rows in two partitions, one line that is rejected, and one that no
/// event type matches.
fn lines(load: u64) -> String {
    let canary = |number, month| {
        let at = format!("2026-{month}-01T00:00:00Z");
        format!("{{\"kind\":\"canary\",\"id\":\"{load}-{number}\",\"at\":\"{at}\"}}\n")
    };
    [
        canary(1, "01"),
        canary(2, "01"),
        canary(3, "02"),
        canary(4, "02"),
        "no JSON\n".to_owned(),
        "{\"kind\":\"other\"}\n".to_owned(),
    ]
    .concat()
}

fn body(load: u64) -> Vec<u8> {
    let mut framed = Vec::new();
    Framer::new(0).frame(lines(load).as_bytes(), &mut framed);
    framed
}

fn object(load: u64) -> ObjectRef {
    ObjectRef::from(ObjectParts {
        bucket: "sluice-check".to_owned(),
        key: format!("{load}.jsonl"),
        etag: "canary".to_owned(),
        ..ObjectParts::default()
    })
}

struct SelfTest<'a> {
    warehouse: &'a Warehouse,
    ledger: &'a Ledger,
    planner: Planner,
    options: SchemaOptions,
    env: &'a Env,
    /// Contains the server's time, which dates the tables.
    prefix: String,
}

/// A placeholder for the database in the names of scratch tables.
const SCRATCH: &str = "scratch";

impl<'a> SelfTest<'a> {
    #[expect(
        clippy::disallowed_methods,
        reason = "scratch tables of a command that runs once"
    )]
    async fn new(
        warehouse: &'a Warehouse,
        ledger: &'a Ledger,
        planner: Planner,
        options: SchemaOptions,
        env: &'a Env,
    ) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Row {
            now: u64,
        }
        let now: Vec<Row> = warehouse
            .rows("SELECT toUnixTimestamp(now()) AS now")
            .await?;
        let now = now.first().context("ClickHouse returned no time")?.now;
        let random = fastrand::u32(..);
        let files = [(
            "canary.yaml".to_owned(),
            include_str!("canary.yaml").to_owned(),
        )];
        let catalog = Catalog::from_files(files)
            .map_err(|problems| anyhow!("the self-test's event type is invalid: {problems:?}"))?;
        Ok(Self {
            warehouse,
            ledger,
            planner: Planner::new(PlannerOptions {
                catalog,
                database: SCRATCH.to_owned(),
                times: TimeLimits::ANY,
                ..planner.options().clone()
            }),
            options: SchemaOptions {
                database: SCRATCH.to_owned(),
                ..options
            },
            env,
            prefix: format!("{PREFIX}{now}_{random:08x}_"),
        })
    }

    async fn check(&self) -> Check {
        let outcome = self.run().await;
        match (outcome, self.drop_tables().await) {
            (Ok(Some(found)), _) => Check::fail(
                NAME,
                found,
                "do not start a worker: rows would be duplicated or lost; check the settings of \
                 the user's profile (deduplicate_insert, deduplicate_insert_select) and of the \
                 server",
            ),
            (Ok(None), Ok(())) => Check::pass(
                NAME,
                "dropped, both after an interrupted insert and after a successful one",
            ),
            (Ok(None), Err(error)) => Check::warn(
                NAME,
                format!("dropped, but scratch tables are left over: {error}"),
                format!("drop the tables whose names begin with {}", self.prefix),
            ),
            (Err(error), _) => failed(&error),
        }
    }

    /// Returns what is wrong, if anything.
    async fn run(&self) -> anyhow::Result<Option<String>> {
        self.create()
            .await
            .context("failed to create scratch tables")?;
        // The second load shows that an insert that is not a repetition is not dropped.
        for load in 1..=2 {
            self.load(load).await?;
            let differing = self.differing(load).await?;
            if !differing.is_empty() {
                return Ok(Some(differing.join(", ")));
            }
        }
        Ok(None)
    }

    /// Inserts like a worker whose insert is interrupted, and which then twice loses the response.
    async fn load(&self, load: u64) -> Result<(), WarehouseError> {
        let batch = BatchId::new(self.env);
        let object = object(load);
        let guard = self.ledger.guard(&Permit::unlimited(batch, 1));
        let inserts = self.planner.inserts(
            batch,
            &[&object],
            StatementShape::of(ReadBy::Stream),
            &Layout::default(),
            &guard,
        );
        for (index, insert) in inserts.iter().enumerate() {
            let insert = Statement {
                sql: self.scratch(&insert.sql),
                ..insert.clone()
            };
            let query_id = format!("{batch}-1-{index}");
            self.break_off(&insert, load, &query_id).await;
            for _ in 0..3 {
                self.warehouse.kill(&batch.to_string()).await?;
                self.insert(&insert, load, &query_id).await?;
            }
        }
        Ok(())
    }

    /// Replaces [`SCRATCH`] with the database, and the tables with scratch tables. All names are
    /// qualified.
    fn scratch(&self, sql: &str) -> String {
        let database = sql::ident(self.warehouse.database());
        sql.replace(
            &format!("{}.`", sql::ident(SCRATCH)),
            &format!("{database}.`{}", self.prefix),
        )
    }

    async fn create(&self) -> Result<(), WarehouseError> {
        let catalog = self.planner.catalog();
        let targets: Vec<&str> = Target::all(catalog).iter().map(Target::table).collect();
        let mut tables = tables(catalog, &self.options);
        tables.retain(|table| targets.contains(&&*table.name));
        let tables = tables.iter().map(|table| self.options.create(table));
        for statement in tables.chain(views(catalog, &self.options)) {
            self.warehouse.run(&self.scratch(&statement.sql)).await?;
        }
        Ok(())
    }

    /// Sends all lines, and disconnects before the body ends.
    async fn break_off(&self, insert: &Statement, load: u64, query_id: &str) {
        let (sent, all_are_sent) = oneshot::channel::<()>();
        let end = async move {
            drop(sent);
            std::future::pending().await
        };
        let data = stream::iter([Ok(body(load))]).chain(stream::once(end));
        let timeout = self.planner.options().insert_timeout;
        tokio::select! {
            _ = self.warehouse.stream(insert, data, query_id, timeout) => {}
            _ = all_are_sent => {}
        }
    }

    async fn insert(
        &self,
        insert: &Statement,
        load: u64,
        query_id: &str,
    ) -> Result<(), WarehouseError> {
        let data = stream::iter([Ok(body(load))]);
        let timeout = self.planner.options().insert_timeout;
        self.warehouse.stream(insert, data, query_id, timeout).await
    }

    /// Returns the tables whose number of rows is not that of `loads` loads.
    async fn differing(&self, loads: u64) -> Result<Vec<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            rows: u64,
        }
        let mut differing = Vec::new();
        for (table, rows) in ROWS {
            let name = self.warehouse.table(&format!("{}{table}", self.prefix));
            let found: Vec<Row> = self
                .warehouse
                .rows(&format!("SELECT count() AS rows FROM {name}"))
                .await?;
            let (found, expected) = (found.first().map_or(0, |row| row.rows), rows * loads);
            if found != expected {
                differing.push(format!("{table} has {found} rows instead of {expected}"));
            }
        }
        Ok(differing)
    }

    /// Drops this check's own tables, and those that an earlier check left behind.
    async fn drop_tables(&self) -> Result<(), WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            name: String,
        }
        let found: Vec<Row> = self
            .warehouse
            .rows(&format!(
                "SELECT name FROM system.tables WHERE database = {} AND (startsWith(name, {own}) \
                 OR (startsWith(name, '{PREFIX}') AND \
                 toUInt64OrZero(splitByChar('_', name)[3]) < toUnixTimestamp(now()) - {LEFT_BEHIND})) \
                 ORDER BY engine != 'MaterializedView', name",
                sql::string(self.warehouse.database()),
                own = sql::string(&self.prefix),
            ))
            .await?;
        for Row { name } in found {
            let table = self.warehouse.table(&name);
            let on_cluster = self.options.on_cluster();
            let drop = format!("DROP TABLE IF EXISTS {table}{on_cluster} SYNC");
            self.warehouse.run(&drop).await?;
        }
        Ok(())
    }
}
