//! Tests of ClickHouse with the Keeper.

use std::time::Duration;

use anyhow::Result;
use sluice_testkit::{
    Aws, ClickHouse, ClickHouseOptions, Keeper, Requirement, SiteOptions, wait_for,
};

#[tokio::test]
async fn clickhouse_keeps_the_state_of_a_queue_in_the_keeper() -> Result<()> {
    if !Requirement::ZooKeeper.is_met() {
        return Ok(());
    }
    let keeper = Keeper::start()?;
    let clickhouse = ClickHouse::start_with(ClickHouseOptions {
        configuration: keeper.clickhouse_configuration(),
        ..ClickHouseOptions::default()
    })?;
    let aws = Aws::start()?;
    let site = aws.site("keeper", SiteOptions::default()).await?;
    site.put("a/b.jsonl", "one\ntwo\n").await?;

    let queue = format!(
        "CREATE TABLE queue (line String) \
         ENGINE = S3Queue('{}/{}/**', 'test', 'test', 'LineAsString') \
         SETTINGS mode = 'unordered', keeper_path = '/queue'",
        aws.endpoint(),
        site.bucket
    );
    for sql in [
        queue.as_str(),
        "CREATE TABLE landing (line String) ENGINE = MergeTree ORDER BY line",
        "CREATE MATERIALIZED VIEW landed TO landing AS SELECT line FROM queue",
    ] {
        clickhouse.execute(sql).await?;
    }
    wait_for("two lines", Duration::from_secs(60), async || {
        let lines: u64 = clickhouse.scalar("SELECT count() FROM landing").await?;
        Ok((lines == 2).then_some(()))
    })
    .await;
    Ok(())
}
