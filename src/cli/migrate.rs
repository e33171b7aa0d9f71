//! `sluice migrate`

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::app::{App, BadEventTypes};
use super::output::{Output, shown};
use super::print;
use crate::batch::{Layout, ReadBy};
use crate::clickhouse::dependents::{Dependent, Memory, adopt, dependents};
use crate::clickhouse::migrate::{Plan, Refusal};
use crate::clickhouse::{TABLE_IS_READ_ONLY, Warehouse, WarehouseError, migrate, validate};
use crate::ledger::history::{BatchesOfPlan, History};
use crate::statements::ddl::{Statement, statements};
use crate::statements::insert::Planner;

#[derive(Args)]
pub(super) struct Arguments {
    /// Print the SQL statements for this server instead of running them
    #[arg(long)]
    dry_run: bool,

    /// Print the SQL statements for an empty server, without connecting to a server
    #[arg(long, conflicts_with_all = ["dry_run", "prune"])]
    print: bool,

    /// Also drop the landing tables and views of other declarations, which contain no rows
    ///
    /// Refused while a worker with other declarations or another configuration has an open batch,
    /// or has claimed objects within the last ten minutes.
    #[arg(long)]
    prune: bool,

    /// Set the deduplication windows of the tables that your own views fill, so that a retry does
    /// not duplicate rows there
    #[arg(long, conflicts_with = "print")]
    adopt_views: bool,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let url = &app.config.clickhouse.url;
    let options = app.schema_options();
    let catalog = app.catalog()?;
    if arguments.print {
        return print(statements_text(&statements(&catalog, &options)).trim_end());
    }
    let warehouse = app.warehouse()?;
    let problems = validate::problems(&warehouse, &catalog, &options).await;
    let problems =
        problems.with_context(|| format!("failed to validate the declarations at {url}"))?;
    if !problems.is_empty() {
        return Err(BadEventTypes(problems).into());
    }
    let mut plan = migrate::plan(&warehouse, &catalog, &options)
        .await
        .with_context(|| format!("failed to compare the tables at {url}"))?;
    if arguments.prune {
        plan.kept.clear();
        let dropped = migrate::prune(&warehouse, &catalog, &options).await?;
        if let Some(first) = dropped.first() {
            let own = app.planner(catalog.clone(), "")?;
            plan.refusals
                .extend(users_of(&first.what, &warehouse, &own).await?);
        }
        plan.statements.extend(dropped);
    }
    let is_refused = !plan.refusals.is_empty();
    let mut views = dependents(&warehouse, &catalog)
        .await
        .with_context(|| format!("failed to list the views at {url}"))?;
    views.retain(|view| view.memory != Memory::Remembers);
    if arguments.adopt_views {
        plan.statements.extend(adopt(&views, &options));
        views.retain(|view| view.memory == Memory::Never);
    }
    if !arguments.dry_run && !is_refused {
        for Statement { what, sql } in &plan.statements {
            let done = run_once_writable(&warehouse, sql).await;
            done.with_context(|| format!("failed to create or alter {what} at {url}"))?;
        }
    }
    let report = Report {
        dry_run: arguments.dry_run,
        plan,
        forgetful_views: views,
    };
    arguments.output.show(&report)?;
    ensure!(!is_refused, "nothing was changed; see above");
    Ok(())
}

/// Runs a statement, and repeats it while its table is read-only, as a replicated table is for a
/// moment after it was created.
async fn run_once_writable(warehouse: &Warehouse, sql: &str) -> Result<(), WarehouseError> {
    const BOUND: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(200);
    let begun = Instant::now();
    loop {
        match warehouse.run(sql).await {
            Err(error) if error.code() == Some(TABLE_IS_READ_ONLY) && begun.elapsed() < BOUND => {
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// A worker that has claimed no objects for this long is considered stopped.
const RECENT: Duration = Duration::from_secs(600);

/// Returns a refusal for each worker that may still insert into the tables to be dropped, of which
/// `table` is the first.
async fn users_of(
    table: &str,
    warehouse: &Warehouse,
    own: &Planner,
) -> anyhow::Result<Vec<Refusal>> {
    let history = History::new(warehouse.clone());
    let lines = own.plan_id(ReadBy::S3, &Layout::default());
    let others = history
        .batches_of_other_plans(lines.unwrap_or_default(), RECENT)
        .await;
    let others = others.context(
        "failed to determine which workers use the tables to be dropped; if the ledger was created \
         by an earlier version, run `sluice migrate` without --prune first",
    )?;
    let refusal = |user: OtherUser| Refusal {
        table: table.to_owned(),
        problem: format!(
            "worker {} may still use it: its declarations or its configuration differ, its latest \
             batch claimed objects at {} (UTC), and it has {} open batches",
            user.worker, user.sealed_at, user.open_batches
        ),
        advice: format!(
            "stop that worker, and wait until its open batches are loaded or released and its \
             latest batch is {} old; if its declarations are the same, run this command with its \
             configuration instead; batches that a crashed worker left open are recovered once a \
             worker receives their objects again (`sluice reconcile --enqueue`)",
            humantime::format_duration(RECENT)
        ),
    };
    Ok(other_users(others, own).into_iter().map(refusal).collect())
}

/// A worker that has claimed batches under another plan.
#[derive(Debug, PartialEq, Eq)]
struct OtherUser {
    worker: String,
    /// The time of its latest claim.
    sealed_at: String,
    open_batches: u64,
}

/// Returns the workers of these batches, without batches that have a plan of this planner: each
/// format, and each structure of its objects, has its own.
fn other_users(batches: Vec<BatchesOfPlan>, own: &Planner) -> Vec<OtherUser> {
    let mut users: Vec<OtherUser> = Vec::new();
    for of_plan in batches {
        let layout = Layout::parse(&of_plan.layout);
        let plan = layout.and_then(|layout| own.plan_id(of_plan.read_by, &layout));
        if plan == Some(of_plan.plan) {
            continue;
        }
        let BatchesOfPlan {
            worker,
            sealed_at,
            open_batches,
            ..
        } = of_plan;
        match users.iter_mut().find(|user| user.worker == worker) {
            Some(user) => {
                user.open_batches += open_batches;
                user.sealed_at = sealed_at.max(std::mem::take(&mut user.sealed_at));
            }
            None => users.push(OtherUser {
                worker,
                sealed_at,
                open_batches,
            }),
        }
    }
    users
}

fn statements_text(statements: &[Statement]) -> String {
    statements
        .iter()
        .map(|statement| format!("-- {}\n{};\n\n", shown(&statement.what), statement.sql))
        .collect()
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    #[serde(flatten)]
    plan: Plan,
    forgetful_views: Vec<Dependent>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.dry_run {
            return self.remark(f);
        }
        let mut remarks = String::new();
        self.remark(&mut remarks)?;
        for line in remarks.lines() {
            writeln!(f, "-- {line}")?;
        }
        if self.plan.refusals.is_empty() {
            write!(f, "{}", statements_text(&self.plan.statements))?;
        }
        Ok(())
    }
}

impl Report {
    /// Writes everything but the statements. A dry run prints it as comments, so that its output
    /// can be run.
    fn remark(&self, f: &mut impl fmt::Write) -> fmt::Result {
        let Plan {
            statements,
            refusals,
            kept,
        } = &self.plan;
        for refusal in refusals {
            writeln!(
                f,
                "refused: table {}: {}\n  help: {}",
                shown(&refusal.table),
                shown(&refusal.problem),
                shown(&refusal.advice)
            )?;
        }
        if !refusals.is_empty() {
            return Ok(());
        }
        for kept in kept {
            writeln!(f, "kept: {}", shown(kept))?;
        }
        if !self.dry_run {
            for statement in statements {
                writeln!(f, "done: {}", shown(&statement.what))?;
            }
        }
        if statements.is_empty() {
            writeln!(f, "everything is as declared")?;
        }
        for view in &self.forgetful_views {
            writeln!(
                f,
                "warning: {}\n  help: {}",
                shown(&view.problem()),
                shown(view.advice())
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statements::s3_source::S3Access;
    use sluice_core::fixtures::planner;
    use uuid::Uuid;

    #[test]
    fn batches_of_other_plans_are_counted_by_worker() {
        let own = planner(S3Access::Server, None);
        let lines = own.plan_id(ReadBy::S3, &Layout::default()).unwrap();
        let batches = |worker: &str, plan, sealed_at: &str, layout: &str| BatchesOfPlan {
            worker: worker.to_owned(),
            plan,
            read_by: ReadBy::S3,
            layout: layout.to_owned(),
            sealed_at: sealed_at.to_owned(),
            open_batches: 2,
        };
        let of_format = "{\"format\":\"exports\"}";
        let found = vec![
            batches("a", lines, "2026-01-05", ""),
            batches("b", Uuid::from_u128(7), "2026-01-03", ""),
            batches("b", Uuid::from_u128(8), "2026-01-02", of_format),
            // A plan of JSON lines is not that of another format.
            batches("c", lines, "2026-01-04", of_format),
        ];
        let user = |worker: &str, sealed_at: &str, open_batches| OtherUser {
            worker: worker.to_owned(),
            sealed_at: sealed_at.to_owned(),
            open_batches,
        };
        let expected = [user("b", "2026-01-03", 4), user("c", "2026-01-04", 2)];
        assert_eq!(other_users(found, &own), expected);
    }
}
