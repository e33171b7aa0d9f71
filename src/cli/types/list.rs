//! `sluice types list`: the declared event types and formats.

use std::fmt;

use serde::Serialize;

use crate::cli::output::table;
use crate::event_types::{Catalog, EventType};
use crate::formats::{Format, OnAllRejected};

/// The event types, and then the formats.
#[derive(Serialize)]
pub(super) struct List(Vec<Listed>);

#[derive(Serialize)]
#[serde(untagged)]
enum Listed {
    EventType {
        name: String,
        table: String,
        columns: usize,
        order_by: Vec<String>,
        /// Whether only objects with certain keys can contain it.
        routed: bool,
    },
    Format {
        format: String,
        kind: &'static str,
        /// `null` if `load.on_all_rejected` applies.
        on_all_rejected: Option<OnAllRejected>,
    },
}

impl List {
    pub(super) fn of(catalog: &Catalog) -> Self {
        let event_type = |event_type: &EventType| Listed::EventType {
            name: event_type.name.clone(),
            table: event_type.table.clone(),
            columns: event_type.columns.len(),
            order_by: event_type.order_by.clone(),
            routed: event_type.route.is_some(),
        };
        let format = |format: &Format| Listed::Format {
            format: format.name.clone(),
            kind: format.kind.title(),
            on_all_rejected: format.on_all_rejected,
        };
        let formats = catalog.formats().declared().iter().map(format);
        Self(
            catalog
                .types()
                .iter()
                .map(event_type)
                .chain(formats)
                .collect(),
        )
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut types, mut formats) = (Vec::new(), Vec::new());
        for listed in &self.0 {
            match listed {
                Listed::EventType {
                    name,
                    table,
                    columns,
                    order_by,
                    routed,
                } => types.push(vec![
                    name.clone(),
                    table.clone(),
                    columns.to_string(),
                    order_by.join(", "),
                    if *routed { "by keys" } else { "all" }.to_owned(),
                ]),
                Listed::Format {
                    format,
                    kind,
                    on_all_rejected,
                } => formats.push(vec![
                    format.clone(),
                    (*kind).to_owned(),
                    match on_all_rejected {
                        None => "",
                        Some(OnAllRejected::Keep) => "keep",
                        Some(OnAllRejected::Fail) => "fail",
                    }
                    .to_owned(),
                ]),
            }
        }
        let header = ["event type", "table", "columns", "sorted by", "objects"];
        writeln!(f, "{}", table(&header, types))?;
        if formats.is_empty() {
            return Ok(());
        }
        let header = ["format", "content", "if all is rejected"];
        writeln!(f, "\n{}", table(&header, formats))
    }
}
