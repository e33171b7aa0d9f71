//! Finds out what is wrong with the selected objects, and what repairs them.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context;
use futures_util::{StreamExt, stream};

use super::select::{self, Selected};
use crate::cli::app::App;
use crate::cli::dlq::{self, Announcing};
use crate::cli::note;
use crate::cli::retry::would_fail_again;
use crate::cli::verify::compare;
use crate::ledger::DISMISSED;
use crate::ledger::history::ObjectStatus;
use crate::ledger::protocol::ClaimStatus;
use crate::object::{ObjectId, ObjectParts, ObjectRef, ObjectUrl};
use crate::s3::Store;
use crate::s3::listing::CHUNK;
use crate::statements::insert::Planner;
use crate::verify::{Finding, VerifyOptions};
use sluice_core::verify::{
    CurrentContent, RepairPlan, TableVerdict, Unloaded, plan, plan_unloaded,
};

/// Requests to S3 in flight at a time.
const CONCURRENCY: usize = 16;

/// An object that is not as it should be, and what would be done about it.
pub(super) struct Assessed {
    pub(super) object: ObjectRef,
    pub(super) findings: Vec<Finding>,
    pub(super) plan: RepairPlan,
    /// The dead letters that announce it.
    pub(super) dead_letters: Vec<String>,
}

pub(super) async fn assess(
    app: &App<'_>,
    store: &Store,
    planner: &Planner,
    selected: Selected,
    options: VerifyOptions,
    with_unexplained: bool,
) -> anyhow::Result<Vec<Assessed>> {
    let mut assessed = unloaded(app, store, &selected.present).await?;
    let mut by_object: BTreeMap<(String, String), Vec<Finding>> = BTreeMap::new();
    let warehouse = app.warehouse()?;
    let add = |findings: Vec<Finding>| {
        for finding in findings {
            let object = (finding.object.clone(), finding.etag.clone());
            by_object.entry(object).or_default().push(finding);
        }
        Ok(())
    };
    compare(app, &warehouse, planner, options, selected.scope, add).await?;
    let loaded = stream::iter(by_object)
        .map(async |((url, etag), findings)| {
            let url: ObjectUrl = url.parse().map_err(anyhow::Error::msg)?;
            anyhow::Ok(of_loaded(store, url, etag, findings, with_unexplained).await)
        })
        .buffered(CONCURRENCY);
    let loaded: Vec<anyhow::Result<Assessed>> = loaded.collect().await;
    for object in loaded {
        assessed.push(object?);
    }
    Ok(assessed)
}

/// Assesses an object of which the tables do not have the rows that were loaded.
async fn of_loaded(
    store: &Store,
    url: ObjectUrl,
    etag: String,
    findings: Vec<Finding>,
    with_unexplained: bool,
) -> Assessed {
    let verdicts: Vec<(&str, TableVerdict)> = findings
        .iter()
        .map(|finding| (finding.table.as_str(), finding.judgement.verdict))
        .collect();
    let parts = ObjectParts {
        bucket: url.bucket.clone(),
        key: url.key.clone(),
        etag,
        ..ObjectParts::default()
    };
    let mut object = ObjectRef::from(parts);
    let content = match select::content(store, &url).await {
        Ok(present) if present.etag == object.etag => {
            object = present;
            CurrentContent::Same
        }
        Ok(_) => CurrentContent::Changed,
        Err(error) if error.is_missing() => CurrentContent::Gone,
        Err(error) => CurrentContent::Unreadable(error.to_string()),
    };
    let plan = plan(&verdicts, &content, with_unexplained);
    Assessed {
        object,
        plan,
        findings,
        dead_letters: Vec::new(),
    }
}

/// Assesses those of these objects that are not loaded.
async fn unloaded(
    app: &App<'_>,
    store: &Store,
    present: &[ObjectRef],
) -> anyhow::Result<Vec<Assessed>> {
    let url = &app.config.clickhouse.url;
    let unanswered = || format!("failed to query ClickHouse at {url}");
    let ledger = app.ledger(app.warehouse()?);
    let history = app.history()?;
    let (mut busy, mut free) = (HashSet::new(), Vec::new());
    let mut known: HashMap<ObjectId, ObjectStatus> = HashMap::new();
    for objects in present.chunks(CHUNK) {
        let ids: Vec<ObjectId> = objects.iter().map(ObjectRef::id).collect();
        let statuses = ledger.claim_statuses(&ids, None, &[]).await;
        let statuses = statuses.with_context(unanswered)?;
        let unloaded = objects.iter().zip(statuses);
        let unloaded = unloaded.filter(|(_, status)| *status != ClaimStatus::Loaded);
        let mut of_chunk = Vec::new();
        for (object, status) in unloaded {
            if matches!(status, ClaimStatus::Busy { .. }) && !status.has_expired_lease() {
                busy.insert(object.id());
            }
            of_chunk.push(object);
        }
        let statuses = history.claim_statuses(&of_chunk).await;
        known.extend(statuses.with_context(unanswered)?);
        free.extend(of_chunk);
    }
    let states: Vec<Option<Unloaded>> = stream::iter(&free)
        .map(async |object| match known.get(&object.id()) {
            _ if busy.contains(&object.id()) => Some(Unloaded::InProgress),
            // Nobody is going to fix it.
            Some(status) if status.class == DISMISSED => None,
            Some(status) if status.failures > 0 => Some(Unloaded::Failed {
                class: status.class.clone(),
                has_dead_letter: false,
                fails_again: would_fail_again(store, object, &status.class).await,
            }),
            Some(_) | None => Some(Unloaded::Unrecorded),
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    let are_retried = states.iter().flatten().any(|state| {
        matches!(
            state,
            Unloaded::Failed {
                fails_again: false,
                ..
            }
        )
    });
    let dead_letters = if are_retried {
        dead_letters(app).await
    } else {
        Announcing::new()
    };
    let assessed = free.into_iter().zip(states).filter_map(|(object, state)| {
        let name = (object.bucket.clone(), object.key.clone());
        let dead_letters = dead_letters.get(&name).cloned().unwrap_or_default();
        let state = match state? {
            Unloaded::Failed {
                class, fails_again, ..
            } => Unloaded::Failed {
                class,
                fails_again,
                has_dead_letter: !dead_letters.is_empty(),
            },
            other => other,
        };
        Some(Assessed {
            object: object.clone(),
            findings: Vec::new(),
            plan: plan_unloaded(&state),
            dead_letters,
        })
    });
    Ok(assessed.collect())
}

/// Returns which objects dead letters announce; none if the dead-letter queue cannot be read, since
/// a failed object can also be announced again.
async fn dead_letters(app: &App<'_>) -> Announcing {
    match dlq::announcing(app).await {
        Ok(announcing) => announcing,
        Err(error) => {
            note(&format!(
                "the dead-letter queue is not taken into account: {error:#}"
            ));
            Announcing::new()
        }
    }
}
