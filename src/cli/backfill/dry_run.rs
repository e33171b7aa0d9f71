//! `sluice backfill --dry-run`

use std::collections::BTreeMap;
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
    /// The objects to load by the name of their format, if formats are declared.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    to_load_by_format: BTreeMap<String, u64>,
    /// Based on the batches that were loaded last; `None` if there are none.
    estimated_seconds: Option<u64>,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let config = app.config;
    let store = Store::new(&app.aws().await);
    let mut listing = ListingWithStatus::new(app, &arguments.selection, store)?;
    let catalog = app.catalog()?;
    let formats = catalog.formats();
    let mut estimate = Estimate::default();
    while let Some(objects) = listing.next().await? {
        for (listed, status) in objects {
            let size = listed.object.size.unwrap_or_default();
            let is_due = estimate.add(size, status, arguments);
            if is_due && !formats.declared().is_empty() {
                let format = formats.get(formats.of(&listed.object.key));
                let count = estimate.to_load_by_format.entry(format.name.clone());
                *count.or_default() += 1;
            }
        }
    }
    let warehouse = app.warehouse()?;
    if arguments.force {
        note_views(&warehouse, &catalog).await?;
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
    /// Adds an object, and returns whether it is to be loaded.
    fn add(&mut self, bytes: u64, status: ClaimStatus, arguments: &Arguments) -> bool {
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
        let is_due = due && arguments.limit.is_none_or(|limit| self.to_load < limit);
        if is_due {
            self.to_load += 1;
            self.bytes_to_load += bytes;
        }
        is_due
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
        for (format, objects) in &self.to_load_by_format {
            writeln!(f, "  as {format:<17} {objects}")?;
        }
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
