//! Which objects are repaired.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use super::Arguments;
use crate::cli::app::App;
use crate::ledger::protocol::ClaimStatus;
use crate::object::{ObjectParts, ObjectRef, ObjectUrl};
use crate::s3::listing::{Lister, Selection};
use crate::s3::{Store, StoreError};
use crate::util::key_time::KeyTime;
use crate::verify::{VerifyScope, VerifySelection};

/// Requests to S3 in flight at a time.
const CONCURRENCY: usize = 16;

/// The objects to repair.
pub(super) struct Selected {
    /// Their keys, as what is verified.
    pub(super) scope: VerifyScope,
    /// What S3 has under these keys, except, for a prefix, what is loaded.
    pub(super) present: Vec<ObjectRef>,
}

/// A line of the output of `sluice verify`; the last one names no object.
#[derive(Deserialize)]
struct Line {
    object: Option<ObjectName>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct ObjectName(ObjectUrl);

impl TryFrom<String> for ObjectName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

pub(super) async fn selected(
    app: &App<'_>,
    arguments: &Arguments,
    store: &Store,
) -> anyhow::Result<Selected> {
    if let Some(prefix) = &arguments.prefix {
        return under(app, prefix, store).await;
    }
    let keys = match &arguments.from {
        Some(file) => read(file)?,
        None => arguments.objects.clone(),
    };
    let present: Vec<Option<ObjectRef>> = stream::iter(&keys)
        .map(|url| head(store, url))
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    Ok(Selected {
        scope: VerifyScope {
            selection: VerifySelection::Keys(keys),
            ..VerifyScope::default()
        },
        present: present.into_iter().flatten().collect(),
    })
}

/// Selects what `notifications` selects under the prefix, and what is loaded of it.
async fn under(app: &App<'_>, prefix: &ObjectUrl, store: &Store) -> anyhow::Result<Selected> {
    let listed = Selection {
        prefix: prefix.clone(),
        filters: vec![app.notification_filter()?],
        since: None,
        until: None,
        key_time: KeyTime::parse(&app.config.s3.key_time).map_err(anyhow::Error::msg)?,
    };
    let mut lister = Lister::new(store.clone(), listed, app.load_backoff(), app.env.clone());
    let ledger = app.ledger(app.warehouse()?);
    let mut present = Vec::new();
    while let Some(listed) = lister.next().await? {
        let ids: Vec<_> = listed.iter().map(|listed| listed.object.id()).collect();
        let statuses = ledger.claim_statuses(&ids, None, &[]).await;
        let statuses = statuses.with_context(|| {
            let url = &app.config.clickhouse.url;
            format!("failed to query ClickHouse at {url}")
        })?;
        // A prefix can have any number of objects that are loaded.
        let unloaded = listed.into_iter().zip(statuses);
        let unloaded = unloaded.filter(|(_, status)| *status != ClaimStatus::Loaded);
        present.extend(unloaded.map(|(listed, _)| listed.object));
    }
    Ok(Selected {
        scope: VerifyScope {
            selection: VerifySelection::Prefix(prefix.clone()),
            ..VerifyScope::default()
        },
        present,
    })
}

/// Returns the objects that the output of `sluice verify` names, each once.
fn read(file: &str) -> anyhow::Result<Vec<ObjectUrl>> {
    let reader: Box<dyn BufRead> = if file == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(file).with_context(|| format!("failed to read {file}"))?;
        Box::new(BufReader::new(file))
    };
    let mut named = BTreeSet::new();
    for (index, line) in reader.lines().enumerate() {
        let line = line.with_context(|| format!("failed to read {file}"))?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&line).with_context(|| {
            format!(
                "line {} of {file} is not a finding of `sluice verify --output json`",
                index + 1
            )
        })?;
        if let Some(ObjectName(url)) = line.object {
            named.insert((url.bucket, url.key));
        }
    }
    let named = named.into_iter();
    Ok(named
        .map(|(bucket, key)| ObjectUrl { bucket, key })
        .collect())
}

/// Returns what S3 has under this key; `None` if nothing, or if this process may not see it.
async fn head(store: &Store, url: &ObjectUrl) -> anyhow::Result<Option<ObjectRef>> {
    match content(store, url).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_transient() => {
            Err(error).with_context(|| format!("failed to query S3 for {url}"))
        }
        Err(_) => Ok(None),
    }
}

/// Returns what S3 has under this key.
pub(super) async fn content(store: &Store, url: &ObjectUrl) -> Result<ObjectRef, StoreError> {
    let parts = ObjectParts {
        bucket: url.bucket.clone(),
        key: url.key.clone(),
        ..ObjectParts::default()
    };
    let meta = store.head(&ObjectRef::from(parts.clone())).await?;
    Ok(ObjectRef::from(ObjectParts {
        etag: meta.etag,
        size: meta.size,
        ..parts
    }))
}
