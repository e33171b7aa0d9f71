//! `sluice reconcile`

use std::fmt;

use anyhow::Context;
use serde::Serialize;

use super::Incomplete;
use super::app::App;
use super::backfill::announce::announce;
use super::listing_with_status::ListingWithStatus;
use super::output::{Output, first_words, table};
use super::selection::SelectionArguments;
use crate::ledger::history::{History, ObjectStatus};
use crate::ledger::protocol::ClaimStatus;
use crate::object::ObjectRef;
use crate::s3::{Listed, Store};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    selection: SelectionArguments,

    /// Announce to the queue the objects that are not loaded, except those in progress elsewhere
    #[arg(long)]
    enqueue: bool,

    /// List at most COUNT objects that are not loaded
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let aws = app.aws().await;
    let queue = if arguments.enqueue {
        Some(app.queue(&aws)?)
    } else {
        None
    };
    let history = app.history()?;
    let mut listing = ListingWithStatus::new(app, &arguments.selection, Store::new(&aws))?;
    let mut report = Report::default();
    while let Some(objects) = listing.next().await? {
        let missing = report.count(objects);
        let findings = classify(&history, missing).await;
        let findings = findings.with_context(|| {
            let url = &app.config.clickhouse.url;
            format!("failed to query ClickHouse at {url}")
        })?;
        if let Some(queue) = &queue {
            let due = findings.iter().filter(|it| it.state != State::InHand);
            let due: Vec<_> = due.map(|it| it.object.clone()).collect();
            announce(queue, &due).await?;
            report.announced += due.len() as u64;
        }
        report.add(findings, arguments.limit);
    }
    arguments.output.show(&report)?;
    if report.loaded < report.found {
        let text = "some objects are not loaded; see above";
        return Err(Incomplete(text.to_owned()).into());
    }
    Ok(())
}

/// Why an object is not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Never announced, or not received yet.
    NotOnRecord,
    /// The key was loaded with another etag.
    OtherContentLoaded,
    Failed,
    /// In progress elsewhere: a batch that has not ended claims it.
    InHand,
}

#[derive(Serialize)]
struct Finding {
    #[serde(serialize_with = "as_url")]
    object: ObjectRef,
    etag: String,
    size: Option<u64>,
    last_modified: String,
    state: State,
    /// The class of the last failure.
    class: String,
    reason: String,
}

#[derive(Default, Serialize)]
struct Report {
    found: u64,
    loaded: u64,
    not_on_record: u64,
    other_content_loaded: u64,
    failed: u64,
    in_hand: u64,
    announced: u64,
    /// Objects that are not loaded, at most `--limit`.
    objects: Vec<Finding>,
}

/// An object that is not loaded, and whether it is in progress elsewhere.
type Missing = (Listed, bool);

async fn classify(history: &History, missing: Vec<Missing>) -> anyhow::Result<Vec<Finding>> {
    let objects: Vec<_> = missing.iter().map(|(listed, _)| &listed.object).collect();
    let known = history.claim_statuses(&objects).await?;
    let loaded_keys = history.loaded_keys(&objects).await?;
    let findings = missing.into_iter().map(|(listed, in_hand)| {
        let Listed {
            object,
            last_modified,
        } = listed;
        let ObjectStatus {
            failures,
            class,
            reason,
            ..
        } = known.get(&object.id()).cloned().unwrap_or_default();
        let state = if in_hand {
            State::InHand
        } else if failures > 0 {
            State::Failed
        } else if loaded_keys.contains(&object.key) {
            State::OtherContentLoaded
        } else {
            State::NotOnRecord
        };
        Finding {
            etag: object.etag.clone(),
            size: object.size,
            last_modified: humantime::format_rfc3339_seconds(last_modified).to_string(),
            object,
            state,
            class,
            reason,
        }
    });
    Ok(findings.collect())
}

impl Report {
    /// Counts the objects, and returns those that are not loaded.
    fn count(&mut self, objects: Vec<(Listed, ClaimStatus)>) -> Vec<Missing> {
        self.found += objects.len() as u64;
        let missing = objects.into_iter().filter_map(|(listed, status)| {
            let in_hand = matches!(
                status,
                ClaimStatus::Busy {
                    lease_expired: false,
                    ..
                }
            );
            (status != ClaimStatus::Loaded).then_some((listed, in_hand))
        });
        let missing: Vec<_> = missing.collect();
        self.loaded = self.found - self.not_loaded() - missing.len() as u64;
        missing
    }

    fn not_loaded(&self) -> u64 {
        self.not_on_record + self.other_content_loaded + self.failed + self.in_hand
    }

    fn add(&mut self, findings: Vec<Finding>, limit: usize) {
        for finding in findings {
            *match finding.state {
                State::NotOnRecord => &mut self.not_on_record,
                State::OtherContentLoaded => &mut self.other_content_loaded,
                State::Failed => &mut self.failed,
                State::InHand => &mut self.in_hand,
            } += 1;
            if self.objects.len() < limit {
                self.objects.push(finding);
            }
        }
    }
}

fn as_url<S: serde::Serializer>(object: &ObjectRef, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(object)
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::NotOnRecord => "not recorded",
            Self::OtherContentLoaded => "other content loaded",
            Self::Failed => "failed",
            Self::InHand => "in progress elsewhere",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "found                  {}", self.found)?;
        writeln!(f, "loaded                 {}", self.loaded)?;
        for (state, count) in [
            (State::NotOnRecord, self.not_on_record),
            (State::OtherContentLoaded, self.other_content_loaded),
            (State::Failed, self.failed),
            (State::InHand, self.in_hand),
        ] {
            writeln!(f, "{:<21}  {count}", state.name())?;
        }
        writeln!(f, "announced              {}", self.announced)?;
        if self.objects.is_empty() {
            return Ok(());
        }
        let rows = self.objects.iter().map(|finding| {
            vec![
                finding.object.to_string(),
                finding.state.name().to_owned(),
                finding.last_modified.clone(),
                finding.class.clone(),
                first_words(&finding.reason),
            ]
        });
        let header = ["object", "state", "uploaded", "class", "reason"];
        writeln!(f, "\n{}", table(&header, rows))?;
        let more = self.not_loaded() - self.objects.len() as u64;
        if more > 0 {
            writeln!(f, "and {more} more; raise --limit to list them")?;
        }
        Ok(())
    }
}
