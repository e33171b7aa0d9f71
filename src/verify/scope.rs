//! Which objects are compared, as conditions on the ledger and on the tables.

use std::time::{Duration, SystemTime};

use crate::clickhouse::Warehouse;
use crate::ledger::OBJECTS_TABLE;
use crate::object::ObjectUrl;
use crate::sql;

/// The objects that are compared.
#[derive(Clone, Debug, Default)]
pub struct VerifyScope {
    pub selection: VerifySelection,
    /// Only objects that a batch has claimed since then.
    pub since: Option<SystemTime>,
    /// Only objects that a batch has claimed before then.
    pub until: Option<SystemTime>,
}

/// A selection of objects by their keys.
#[derive(Clone, Debug, Default)]
pub enum VerifySelection {
    #[default]
    All,
    Prefix(ObjectUrl),
    /// All versions of these keys.
    Keys(Vec<ObjectUrl>),
}

/// One of the parts into which a scope is divided, so that each takes a bounded part of the
/// server's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice<'a> {
    pub(super) scope: &'a VerifyScope,
    pub(super) index: u64,
    pub(super) count: u64,
}

impl<'a> Slice<'a> {
    pub(super) fn whole(scope: &'a VerifyScope) -> Self {
        Self {
            scope,
            index: 0,
            count: 1,
        }
    }

    /// Returns the condition for the claims of these objects in `ledger_objects`: all claims of an
    /// object, whenever they were made.
    pub(super) fn claims(&self, warehouse: &Warehouse) -> String {
        let mut conditions = self.conditions("concat(bucket, '/', key)");
        match &self.scope.selection {
            VerifySelection::All => {}
            VerifySelection::Prefix(prefix) => conditions.push(format!(
                "bucket = {} AND startsWith(key, {})",
                sql::string(&prefix.bucket),
                sql::string(&prefix.key)
            )),
            VerifySelection::Keys(keys) => {
                let keys = keys
                    .iter()
                    .map(|url| format!("({})", sql::strings([&url.bucket, &url.key])));
                let keys: Vec<String> = keys.collect();
                conditions.push(format!("(bucket, key) IN ({})", keys.join(", ")));
            }
        }
        if let Some(claimed) = self.claimed() {
            conditions.push(format!(
                "object_id IN (SELECT object_id FROM {} WHERE {claimed})",
                warehouse.table(OBJECTS_TABLE)
            ));
        }
        all(&conditions)
    }

    /// Returns the condition for the rows of these objects in a table with `source_path` and
    /// `source_etag`.
    pub(super) fn rows(&self, warehouse: &Warehouse) -> String {
        let mut conditions = self.conditions("source_path");
        match &self.scope.selection {
            VerifySelection::All => {}
            VerifySelection::Prefix(prefix) => conditions.push(format!(
                "startsWith(source_path, {})",
                sql::string(&prefix.path())
            )),
            VerifySelection::Keys(keys) => conditions.push(format!(
                "source_path IN ({})",
                sql::strings(keys.iter().map(ObjectUrl::path))
            )),
        }
        if let Some(claimed) = self.claimed() {
            conditions.push(format!(
                "(source_path, source_etag) IN (\
                   SELECT concat(bucket, '/', key), etag FROM {} WHERE {claimed})",
                warehouse.table(OBJECTS_TABLE)
            ));
        }
        all(&conditions)
    }

    /// Returns the condition that selects the slice, by this expression for `bucket/key`.
    fn conditions(&self, path: &str) -> Vec<String> {
        if self.count > 1 {
            let (count, index) = (self.count, self.index);
            vec![format!("cityHash64({path}) % {count} = {index}")]
        } else {
            Vec::new()
        }
    }

    fn claimed(&self) -> Option<String> {
        let bounds = [(">=", self.scope.since), ("<", self.scope.until)];
        let bounds = bounds.into_iter().filter_map(|(is, time)| {
            let since_1970 = time?.duration_since(SystemTime::UNIX_EPOCH);
            let since_1970: Duration = since_1970.unwrap_or_default();
            let millis = since_1970.as_millis();
            Some(format!("sealed_at {is} fromUnixTimestamp64Milli({millis})"))
        });
        let bounds: Vec<String> = bounds.collect();
        (!bounds.is_empty()).then(|| bounds.join(" AND "))
    }
}

fn all(conditions: &[String]) -> String {
    if conditions.is_empty() {
        "true".to_owned()
    } else {
        conditions.join(" AND ")
    }
}
