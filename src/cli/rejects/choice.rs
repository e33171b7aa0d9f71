//! Which lines are meant.

use clap::ValueEnum;

use crate::config::HumanDuration;
use crate::object::ObjectUrl;
use crate::rejects::{RejectKind, RejectSelector};

#[derive(clap::Args)]
pub(super) struct Filters {
    /// Only lines of objects under this, such as s3://bucket/2026/
    #[arg(long, value_name = "S3-URL")]
    prefix: Option<ObjectUrl>,

    /// Only lines whose reason contains this, such as timestamp
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only lines of this kind
    #[arg(long, value_enum)]
    kind: Option<Kind>,

    /// Only lines kept within this time, such as 2h
    #[arg(long, value_name = "DURATION")]
    since: Option<HumanDuration>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// They cannot become rows
    Rejected,
    /// No event type takes them
    Unmatched,
}

impl From<&Filters> for RejectSelector {
    fn from(filters: &Filters) -> Self {
        Self {
            kind: filters.kind.map(|kind| match kind {
                Kind::Rejected => RejectKind::Rejected,
                Kind::Unmatched => RejectKind::Unmatched,
            }),
            prefix: filters.prefix.clone(),
            reason: filters.reason.clone(),
            since: filters.since.map(HumanDuration::get),
        }
    }
}
