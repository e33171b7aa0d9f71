//! `sluice backfill --dry-run`

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use serde::Serialize;

use super::{Arguments, note_views};
use crate::cli::app::App;
use crate::cli::listing_with_status::ListingWithStatus;
use crate::config::Config;
use crate::ledger::history::{History, Pace};
use crate::ledger::protocol::ClaimStatus;
use crate::s3::Store;

#[derive(Default, Serialize)]
struct Estimate {
    found: u64,
    bytes: u64,
    already_loaded: u64,
    in_other_hands: u64,
    to_load: u64,
    bytes_to_load: u64,
    /// Based on the batches that were loaded last; `None` if there are none.
    estimated_seconds: Option<u64>,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let config = app.config;
    let store = Store::new(&app.aws().await);
    let mut listing = ListingWithStatus::new(app, &arguments.selection, store)?;
    let mut estimate = Estimate::default();
    while let Some(objects) = listing.next().await? {
        for (listed, status) in objects {
            estimate.add(listed.object.size.unwrap_or_default(), status, arguments);
        }
    }
    let warehouse = app.warehouse()?;
    if arguments.force {
        note_views(&warehouse, &app.catalog()?).await?;
    }
    let history = History::new(warehouse);
    let pace = history.pace().await;
    let pace = pace.with_context(|| {
        let url = &config.clickhouse.url;
        format!("failed to query ClickHouse at {url}")
    })?;
    estimate.estimated_seconds = pace.map(|pace| estimate.seconds(&pace, config, arguments));
    arguments.output.show(&estimate)
}

impl Estimate {
    fn add(&mut self, bytes: u64, status: ClaimStatus, arguments: &Arguments) {
        self.found += 1;
        self.bytes += bytes;
        match status {
            ClaimStatus::Loaded => self.already_loaded += 1,
            ClaimStatus::Busy {
                lease_expired: false,
                ..
            } => self.in_other_hands += 1,
            ClaimStatus::Free
            | ClaimStatus::Busy {
                lease_expired: true,
                ..
            } => {}
        }
        let due = match status {
            ClaimStatus::Loaded => arguments.force,
            status => status == ClaimStatus::Free || status.has_expired_lease(),
        };
        if due && arguments.limit.is_none_or(|limit| self.to_load < limit) {
            self.to_load += 1;
            self.bytes_to_load += bytes;
        }
    }

    /// Returns the estimated time in seconds. The time of small objects depends on their number,
    /// that of large ones on their size.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate"
    )]
    fn seconds(&self, pace: &Pace, config: &Config, arguments: &Arguments) -> u64 {
        let by_number = self.to_load as f64 * pace.seconds_an_object;
        let by_size = self.bytes_to_load as f64 * pace.seconds_a_byte;
        let loading = by_number.max(by_size) / arguments.concurrency(config) as f64;
        let rate = arguments
            .max_rate
            .map_or(f64::INFINITY, |rate| f64::from(rate.get()));
        loading.max(self.to_load as f64 / rate).ceil() as u64
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "found                  {} ({})",
            self.found,
            ByteSize(self.bytes)
        )?;
        writeln!(f, "already loaded         {}", self.already_loaded)?;
        writeln!(f, "in progress elsewhere  {}", self.in_other_hands)?;
        let bytes = ByteSize(self.bytes_to_load);
        writeln!(f, "to load                {} ({bytes})", self.to_load)?;
        match self.estimated_seconds {
            Some(seconds) => {
                let time = humantime::format_duration(Duration::from_secs(seconds));
                writeln!(
                    f,
                    "estimated time         {time}, based on the batches that were loaded last"
                )
            }
            None => writeln!(
                f,
                "estimated time         unknown: no batch has been loaded yet"
            ),
        }
    }
}
