//! Turns the merged tree into typed values.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::access::RawAccess;
use super::fields::Fields;
use super::layers::{Merged, default_tree};
use super::problems::{Findings, Problem};
use super::types::{
    AdminConfig, BatchConfig, ClickHouseConfig, EventTypesConfig, LoadConfig, LogConfig,
    NotificationsConfig, QueueConfig, ShutdownConfig, TelemetryConfig,
};

/// A configuration whose fields have the right types, but may still have invalid values. It differs
/// from `Config` where several fields make up one value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) queue: QueueConfig,
    pub(super) notifications: NotificationsConfig,
    pub(super) clickhouse: ClickHouseConfig,
    pub(super) s3: RawS3,
    pub(super) batch: BatchConfig,
    pub(super) load: LoadConfig,
    pub(super) event_types: EventTypesConfig,
    pub(super) shutdown: ShutdownConfig,
    pub(super) admin: AdminConfig,
    pub(super) log: LogConfig,
    pub(super) telemetry: TelemetryConfig,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawS3 {
    pub(super) region: Option<String>,
    pub(super) clickhouse_endpoint: Option<String>,
    pub(super) clickhouse_access: RawAccess,
    pub(super) key_time: String,
}

/// Reads the tree. Serde stops at the first error: to report all of them, the invalid value is
/// reset to its default, and the tree is read again.
pub(super) fn decode(
    merged: &Merged,
    fields: &Fields,
    findings: &mut Findings,
) -> Option<RawConfig> {
    let defaults = default_tree();
    let mut tree = merged.tree.clone();
    let mut reset = BTreeSet::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, RawConfig>(&tree) {
            Ok(raw) => return Some(raw),
            Err(error) => error,
        };
        // A list is one value.
        let path = error.path().to_string();
        let path = path.split('[').next().unwrap_or_default().to_owned();
        let mut problem = Problem::new(&path, error.inner().to_string());
        if let Some(field) = fields.field(&path) {
            problem = problem.advice(field.advice());
        }
        findings.add(problem.origin(merged.origins.of(&path)));
        // An invalid default is a bug in Sluice, which a test rules out. It must not cause an
        // endless loop here.
        if !reset.insert(path.clone()) {
            return None;
        }
        let pointer = format!("/{}", path.replace('.', "/"));
        reset_to_default(&mut tree, &pointer, &defaults);
    }
}

fn reset_to_default(tree: &mut Value, pointer: &str, defaults: &Value) {
    let Some(value) = tree.pointer_mut(pointer) else {
        return;
    };
    // A field without a default is optional, and null means that it is unset.
    *value = defaults.pointer(pointer).cloned().unwrap_or_default();
}
