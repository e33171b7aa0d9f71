//! `sluice migrate`

use anyhow::Context;
use clap::Args;

use super::{catalog, print, warehouse};
use crate::config::{Config, LoadStrategy, TableEngine};
use crate::schema::{Engine, SchemaOptions, statements};

#[derive(Args)]
pub(super) struct Arguments {
    /// Print the statements instead of running them
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<()> {
    let clickhouse = &config.clickhouse;
    let options = SchemaOptions {
        database: clickhouse.database.clone(),
        cluster: clickhouse.cluster.clone(),
        engine: match clickhouse.engine {
            TableEngine::Plain => Engine::Plain,
            TableEngine::Replicated => Engine::Replicated,
        },
        dedup_window: clickhouse.dedup_window,
        dedup_age: DEDUP_AGE,
        views: config.load.strategy == LoadStrategy::SinglePass,
        reject_ttl: clickhouse.reject_ttl.get(),
    };
    let statements = statements(&catalog(config)?, &options);
    if arguments.dry_run {
        for statement in &statements {
            print(&format!("-- {}\n{};\n", statement.what, statement.sql));
        }
        return Ok(());
    }
    let warehouse = warehouse(config)?;
    for statement in &statements {
        warehouse.run(&statement.sql).await.with_context(|| {
            format!("{} could not be made on {}", statement.what, clickhouse.url)
        })?;
    }
    print(&format!("{} statements, all there", statements.len()));
    Ok(())
}

/// How long replicated tables remember a token, beside the count: a week, since a worker can be
/// away for a weekend.
const DEDUP_AGE: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);
