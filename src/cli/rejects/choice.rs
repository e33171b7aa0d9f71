//! Options that select rejects.

use clap::ValueEnum;

use crate::config::HumanDuration;
use crate::object::ObjectUrl;
use crate::rejects::{RejectKind, RejectSelector};

#[derive(clap::Args)]
pub(super) struct Filters {
    /// Only lines of objects under this prefix, such as s3://bucket/2026/
    #[arg(long, value_name = "S3-URL")]
    prefix: Option<ObjectUrl>,

    /// Only lines whose reason contains TEXT, such as timestamp
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only lines of this kind
    #[arg(long, value_enum)]
    kind: Option<Kind>,

    /// Only lines kept within the last DURATION, such as 2h
    #[arg(long, value_name = "DURATION")]
    since: Option<HumanDuration>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Lines that cannot become rows
    Rejected,
    /// Lines that no event type matches
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
