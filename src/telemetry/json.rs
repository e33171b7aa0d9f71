//! Log lines as flat JSON objects: the fields of the spans around an event are merged with its own,
//! and the number of rows of each event type is a field of its own.

use std::fmt::{self, Debug};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) struct FlatJson;

impl<S> FormatEvent<S, JsonFields> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let metadata = event.metadata();
        let mut line = Fields::default();
        line.put("timestamp", timestamp);
        line.put("level", metadata.level().as_str());
        line.put("target", metadata.target());
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|it| it.from_root())
        {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>();
            let fields = fields.map(|fields| serde_json::from_str::<Map<_, _>>(fields));
            line.0
                .extend(fields.and_then(Result::ok).unwrap_or_default());
        }
        event.record(&mut line);
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

/// A field whose text is a JSON object, each entry of which becomes a field: `rows_by_type.video`.
const ROWS_BY_TYPE: &str = "rows_by_type";

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let (name, text) = (field.name(), format!("{value:?}"));
        let entries = (name == ROWS_BY_TYPE)
            .then(|| serde_json::from_str::<Map<String, Value>>(&text).ok())
            .flatten();
        let Some(entries) = entries else {
            return self.put(name, text);
        };
        for (key, value) in entries {
            self.put(&format!("{name}.{key}"), value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }
}
