//! The table at the end, which compares the generated data with the rows in ClickHouse.

use std::time::Duration;

use anyhow::Result;
use sluice_testkit::latency::{Latencies, measure};
use sluice_testkit::xapi::EventType;
use sluice_testkit::{Site, Stack};

use super::tables::count;
use super::upload::Uploads;
use crate::console::print;

/// Prints the table, and returns whether all rows match.
pub(super) async fn print_report(
    stack: &Stack,
    site: &Site,
    uploads: &Uploads,
    elapsed: Duration,
) -> Result<bool> {
    let (generated, put_at, bytes) = {
        let totals = uploads.lock();
        (
            totals.expected_rows.clone(),
            totals.put_at.clone(),
            totals.bytes,
        )
    };
    let clickhouse = &stack.clickhouse;
    let loaded = count(clickhouse, site).await?;
    let rows_of = format!("{}.object_rows", site.database);
    let objects: u64 = clickhouse
        .scalar(&format!(
            "SELECT uniqExact(source_path, source_etag) FROM {rows_of}"
        ))
        .await?;
    let batches: u64 = clickhouse
        .scalar(&format!("SELECT uniqExact(batch_id) FROM {rows_of}"))
        .await?;
    let latencies = measure(clickhouse, &site.database, &put_at).await?;

    let mut lines: Vec<(&str, u64, u64)> = EventType::ALL
        .iter()
        .map(|kind| (kind.name(), generated.rows(*kind), loaded.rows(*kind)))
        .collect();
    lines.push(("rejected", generated.rejected, loaded.rejected));
    lines.push(("unmatched", generated.unmatched, loaded.unmatched));
    lines.push(("objects", generated.objects, objects));

    print("");
    print(&format!("{:<18}{:>12}{:>12}", "", "generated", "loaded"));
    for (name, generated, loaded) in &lines {
        let mark = if generated == loaded {
            ""
        } else {
            "  <- differs"
        };
        print(&format!("{name:<18}{generated:>12}{loaded:>12}{mark}"));
    }
    print("");
    print(&format!("batches           {batches}"));
    print(&format!(
        "PUT to queryable  {}",
        describe(&latencies, put_at.len())
    ));
    let seconds = elapsed.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "for a person to read")]
    let (per_second, megabytes) = (put_at.len() as f64 / seconds, bytes as f64 / 1e6);
    print(&format!(
        "total             {seconds:.1} s, {per_second:.0} objects/s, {megabytes:.1} MB uploaded"
    ));
    print("");

    let differing: Vec<String> = lines
        .iter()
        .filter(|(_, generated, loaded)| generated != loaded)
        .map(|(name, generated, loaded)| format!("{name}: generated {generated}, loaded {loaded}"))
        .collect();
    if differing.is_empty() {
        print(&format!("all {} rows match", generated.statements()));
    } else {
        print(&format!("the rows do not match: {}", differing.join("; ")));
    }
    Ok(differing.is_empty())
}

fn describe(latencies: &Latencies, objects: usize) -> String {
    let (Some(p50), Some(p99)) = (latencies.percentile(50), latencies.percentile(99)) else {
        return String::from("unknown: the query log has no insert with a batch's id");
    };
    let known = match latencies.objects() {
        all if all == objects => String::new(),
        some => format!(" (of {some} of {objects} objects)"),
    };
    format!(
        "p50 {:.2} s, p99 {:.2} s{known}",
        p50.as_secs_f64(),
        p99.as_secs_f64()
    )
}
