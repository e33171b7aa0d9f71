//! `sluice rejects list`

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use super::choice::Filters;
use crate::cli::output::{Output, table};
use crate::rejects::{Group, GroupBy, RejectSelector, Rejects};

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Group the lines by reason, or by object and reason
    #[arg(long, value_enum, default_value = "reason")]
    by: By,

    #[command(flatten)]
    filters: Filters,

    /// Show at most COUNT groups, the largest first
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u64,

    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    Reason,
    /// By object and reason
    Object,
}

pub(super) async fn run(rejects: &Rejects, arguments: &Arguments) -> anyhow::Result<()> {
    let by = match arguments.by {
        By::Reason => GroupBy::Reason,
        By::Object => GroupBy::ObjectAndReason,
    };
    let selector = RejectSelector::from(&arguments.filters);
    let groups = rejects.groups(&selector, by, arguments.limit).await?;
    arguments.output.show(&List(groups))
}

#[derive(Serialize)]
struct List(Vec<Group>);

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else {
            return writeln!(f, "no matching rejects");
        };
        let which = match first.object {
            Some(_) => "object",
            None => "objects",
        };
        let rows = self.0.iter().map(|group| {
            vec![
                group.lines.to_string(),
                group.kind.clone(),
                group.reason.clone(),
                group
                    .object
                    .clone()
                    .unwrap_or_else(|| group.objects.to_string()),
                group.first_kept_at.clone(),
                group.last_kept_at.clone(),
            ]
        });
        let header = [
            "lines",
            "kind",
            "reason",
            which,
            "first (UTC)",
            "last (UTC)",
        ];
        writeln!(f, "{}", table(&header, rows))
    }
}
