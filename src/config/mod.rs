//! Typed configuration, in layers: built-in defaults, a file, the environment,
//! flags. Later layers win.
//!
//! [`Config::load`] takes these steps, and collects every problem before it
//! fails:
//!
//! - `layers` reads the values of each layer, refuses unknown keys, and merges;
//! - `raw` turns the merged tree into typed values, one field's error at a time;
//! - `check` checks ranges, and relations between fields.
//!
//! The fields, with their documentation, are declared only in `types`. The JSON
//! schema is derived from there, and `fields` (which keys exist) and `reference`
//! (docs/configuration.md) from the schema.

mod access;
mod check;
mod fields;
mod layers;
mod problems;
mod raw;
mod reference;
mod secret;
mod types;
mod units;

pub use access::S3AccessConfig;
pub use fields::json_schema;
pub use layers::{Sources, process_environment};
pub use problems::{Problem, Problems};
pub use reference::{effective_yaml, reference_markdown};
pub use secret::{Secret, SecretSource};
pub use types::{
    AdminConfig, BatchConfig, ClickHouseConfig, Config, EventTypesConfig, LoadConfig, LogConfig,
    LogFormat, NotificationsConfig, OnMissing, QueueConfig, S3Config, ShutdownConfig, TableEngine,
    TelemetryConfig, Unproven,
};
pub use units::{HumanDuration, HumanSize, Ratio};

impl Config {
    /// Loads the configuration from all of its sources.
    ///
    /// # Errors
    ///
    /// Returns all problems of the configuration.
    pub fn load(sources: Sources) -> Result<Self, Problems> {
        let mut findings = problems::Findings::default();
        let fields = fields::Fields::new();
        let merged = layers::merge(sources, &fields, &mut findings);
        let raw = raw::decode(&merged, &fields, &mut findings);
        let config = raw.and_then(|raw| check::check(raw, &merged.origins, &fields, &mut findings));
        findings.into_result(config)
    }
}

#[cfg(test)]
mod tests;
