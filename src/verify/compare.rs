//! Counts the rows of each object in a table, and compares them with `object_rows` and the ledger.
//!
//! One query for each table and slice reads both, groups them by object on the server, and returns
//! only the objects that differ. It can read the ledger before a batch is recorded and the table
//! afterwards. So [`Verifier::compare`] reads the objects that differ once more: what differs both
//! times, under the same claims, and while no batch is in progress, is a difference.

use std::collections::HashMap;

use serde::Deserialize;
use uuid::Uuid;

use super::Verifier;
use super::scope::{Slice, VerifyScope, VerifySelection};
use crate::clickhouse::WarehouseError;
use crate::ledger::{BATCHES_TABLE, IS_REPLAY, OBJECTS_TABLE};
use crate::object::ObjectUrl;
use crate::sql;
use crate::statements::RejectKind;
use crate::statements::select::Target;

/// The number of objects that are read again at a time.
const CONFIRMED_AT_A_TIME: usize = 1_000;

/// An aggregation that takes more memory than this is continued on disk.
const MEMORY: &str = "SETTINGS max_bytes_before_external_group_by = 2000000000";

/// An object whose rows in a table are not those that were loaded.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Difference {
    /// `bucket/key`
    pub(super) path: String,
    pub(super) etag: String,
    /// The batches that have loaded the object and are not superseded.
    pub(super) in_force: Vec<Uuid>,
    /// Whether a batch is in progress on it, or its rows are being replaced or moved.
    is_busy: bool,
    expected: i64,
    found: i64,
    /// The rows of batches that are not in force.
    pub(super) others: Vec<(Uuid, u64)>,
}

impl Difference {
    pub(super) fn expected(&self) -> u64 {
        u64::try_from(self.expected).unwrap_or_default()
    }

    pub(super) fn found(&self) -> u64 {
        u64::try_from(self.found).unwrap_or_default()
    }

    pub(super) fn url(&self) -> ObjectUrl {
        let (bucket, key) = self.path.split_once('/').unwrap_or((&self.path, ""));
        ObjectUrl {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        }
    }
}

/// The differences of one table.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) differences: Vec<Difference>,
    /// The number of objects that differ because a batch is in progress on them.
    pub(super) in_progress: u64,
}

impl Verifier<'_> {
    /// Returns the objects of the slice whose rows in this table differ from what was loaded.
    pub(super) async fn compare(
        &self,
        target: Target<'_>,
        slice: Slice<'_>,
    ) -> Result<Compared, WarehouseError> {
        let mut compared = Compared::default();
        let found = self.differences(target, slice, true).await?;
        let found: Vec<Difference> = found
            .into_iter()
            .filter(|difference| {
                compared.in_progress += u64::from(difference.is_busy);
                !difference.is_busy
            })
            .collect();
        for found in found.chunks(CONFIRMED_AT_A_TIME) {
            self.confirm(target, found, &mut compared).await?;
        }
        Ok(compared)
    }

    /// Reads these objects once more, from all parts of the table.
    async fn confirm(
        &self,
        target: Target<'_>,
        found: &[Difference],
        compared: &mut Compared,
    ) -> Result<(), WarehouseError> {
        let mut keys: Vec<ObjectUrl> = found.iter().map(Difference::url).collect();
        keys.dedup();
        let scope = VerifyScope {
            selection: VerifySelection::Keys(keys),
            ..VerifyScope::default()
        };
        let slice = Slice::whole(&scope);
        let again = self.differences(target, slice, false).await?;
        let again = again.into_iter();
        let mut again: HashMap<(String, String), Difference> = again
            .map(|it| ((it.path.clone(), it.etag.clone()), it))
            .collect();
        for before in found {
            let name = (before.path.clone(), before.etag.clone());
            match again.remove(&name) {
                None => {}
                Some(now) if now.is_busy || now.in_force != before.in_force => {
                    compared.in_progress += 1;
                }
                Some(now) => compared.differences.push(now),
            }
        }
        Ok(())
    }

    async fn differences(
        &self,
        target: Target<'_>,
        slice: Slice<'_>,
        in_recent_parts: bool,
    ) -> Result<Vec<Difference>, WarehouseError> {
        let sql = self.difference_query(target, slice, in_recent_parts);
        let counts = Target::ObjectRows.table();
        let tables = [target.table(), counts, OBJECTS_TABLE, BATCHES_TABLE];
        self.rows(&tables, &sql).await
    }

    fn difference_query(
        &self,
        target: Target<'_>,
        slice: Slice<'_>,
        in_recent_parts: bool,
    ) -> String {
        let of_rows = slice.rows(self.warehouse);
        let stored = match self.age().filter(|_| in_recent_parts) {
            Some(age) => format!(
                "{of_rows} AND {}",
                self.warehouse.in_recent_parts(target.table(), age)
            ),
            None => of_rows.clone(),
        };
        let of_no_object = "CAST([], 'Array(UUID)') AS force, false AS busy";
        let moved = RejectKind::ALL
            .into_iter()
            .find(|kind| kind.table() == target.table());
        let moved = moved.map_or(String::new(), |kind| {
            format!(
                "UNION ALL SELECT source_path, source_etag, {of_no_object}, batch_id, \
                   toInt64(sum(rows)), 3 FROM {counts} WHERE {of_rows} AND batch_id IN (\
                     SELECT batch_id FROM {objects} WHERE read_by = {reader}) \
                 GROUP BY source_path, source_etag, batch_id ",
                counts = self.warehouse.table(Target::ObjectRows.table()),
                objects = self.warehouse.table(OBJECTS_TABLE),
                reader = sql::string(kind.table()),
            )
        });
        format!(
            "SELECT path, etag, arraySort(groupArrayArray(force)) AS in_force, \
               toBool(max(busy)) AS is_busy, \
               groupArrayIf((batch, n), what = 1) AS counted, \
               groupArrayIf((batch, n), what = 2) AS stored, \
               groupArrayIf((batch, n), what = 3) AS moved, \
               arraySum(x -> if(has(in_force, x.1), x.2, 0), counted) \
                 - arraySum(x -> if(has(in_force, x.1), x.2, 0), moved) AS expected, \
               arraySum(x -> if(has(in_force, x.1), x.2, 0), stored) AS found, \
               arrayFilter(x -> NOT has(in_force, x.1), stored) AS others \
             FROM (\
               SELECT path, etag, force, busy, toUUID({no_batch}) AS batch, toInt64(0) AS n, 0 AS what \
               FROM ({objects}) \
               UNION ALL \
               SELECT source_path, source_etag, {of_no_object}, batch_id, toInt64(sum(rows)), 1 \
               FROM {counts} WHERE {of_rows} AND kind = {kind} \
               GROUP BY source_path, source_etag, batch_id \
               UNION ALL \
               SELECT source_path, source_etag, {of_no_object}, batch_id, toInt64(count()), 2 \
               FROM {table} WHERE {stored} GROUP BY source_path, source_etag, batch_id \
               {moved}\
             ) GROUP BY path, etag \
             HAVING expected != found OR notEmpty(others) ORDER BY path, etag {MEMORY}",
            no_batch = sql::id(Uuid::nil()),
            objects = self.objects_query(slice),
            counts = self.warehouse.table(Target::ObjectRows.table()),
            kind = sql::string(target.kind().unwrap_or_default()),
            table = self.warehouse.table(target.table()),
        )
    }

    /// Returns the query for the claimed objects with the batches in force.
    fn objects_query(&self, slice: Slice<'_>) -> String {
        format!(
            "SELECT any(path) AS path, any(etag) AS etag, \
               groupUniqArrayArrayIf(superseding, loaded) AS superseded, \
               arrayFilter(x -> NOT has(superseded, x), groupUniqArrayIf(batch_id, loaded)) AS force, \
               toBool(max(open)) AS busy \
             FROM (\
               SELECT claims.object_id AS object_id, claims.batch_id AS batch_id, path, etag, \
                 superseding, events.loaded AS loaded, \
                 NOT events.released AND (NOT events.loaded \
                   OR (NOT events.cleaned AND (is_replay OR notEmpty(superseding)))) AS open \
               FROM (\
                 SELECT object_id, batch_id, any(concat(bucket, '/', key)) AS path, \
                   any(etag) AS etag, max({IS_REPLAY}) AS is_replay, \
                   groupUniqArrayArray(supersedes) AS superseding \
                 FROM {claims} WHERE {condition} GROUP BY object_id, batch_id\
               ) AS claims LEFT JOIN (\
                 SELECT batch_id, max(event = 'loaded') AS loaded, \
                   max(event = 'released') AS released, max(event = 'cleaned') AS cleaned \
                 FROM {batches} \
                 WHERE batch_id IN (SELECT batch_id FROM {claims} WHERE {condition}) \
                 GROUP BY batch_id\
               ) AS events ON claims.batch_id = events.batch_id\
             ) GROUP BY object_id",
            claims = self.warehouse.table(OBJECTS_TABLE),
            condition = slice.claims(self.warehouse),
            batches = self.warehouse.table(BATCHES_TABLE),
        )
    }

    /// Returns the number of objects in the scope, approximately.
    pub(super) async fn count(&self, scope: &VerifyScope) -> Result<u64, WarehouseError> {
        #[derive(Deserialize)]
        struct Count {
            objects: u64,
        }
        let slice = Slice::whole(scope);
        let sql = format!(
            "SELECT uniq(object_id) AS objects FROM {} WHERE {}",
            self.warehouse.table(OBJECTS_TABLE),
            slice.claims(self.warehouse)
        );
        let counts: Vec<Count> = self.rows(&[OBJECTS_TABLE], &sql).await?;
        Ok(counts.first().map_or(0, |it| it.objects))
    }

    /// Returns the batches whose lines in `object_rows` are not as many as the ledger recorded.
    /// Batches that another supersedes in part, and those of event types that are not declared, are
    /// left out: their counts are deleted, or are of no table.
    pub(super) async fn miscounted(
        &self,
        scope: &VerifyScope,
    ) -> Result<Vec<Miscounted>, WarehouseError> {
        let slice = Slice::whole(scope);
        let sql = format!(
            "SELECT records.batch_id AS batch_id, recorded, counted FROM (\
               SELECT batch_id, max(rows) AS recorded FROM {batches} WHERE event = 'loaded' \
                 AND batch_id IN (SELECT batch_id FROM {claims} WHERE {condition}) \
               GROUP BY batch_id\
             ) AS records LEFT JOIN (\
               SELECT batch_id, sum(rows) AS counted FROM {counts} GROUP BY batch_id\
             ) AS counts ON records.batch_id = counts.batch_id \
             WHERE recorded != counted AND recorded > 0 \
             AND records.batch_id NOT IN (SELECT arrayJoin(supersedes) FROM {claims}) \
             ORDER BY batch_id {MEMORY}",
            batches = self.warehouse.table(BATCHES_TABLE),
            claims = self.warehouse.table(OBJECTS_TABLE),
            condition = slice.claims(self.warehouse),
            counts = self.warehouse.table(Target::ObjectRows.table()),
        );
        let tables = [BATCHES_TABLE, OBJECTS_TABLE, Target::ObjectRows.table()];
        self.rows(&tables, &sql).await
    }

    /// Returns the objects of the scope that a batch lists.
    pub(super) async fn objects_of(
        &self,
        batch: Uuid,
    ) -> Result<Vec<(String, String)>, WarehouseError> {
        #[derive(Deserialize)]
        struct Object {
            path: String,
            etag: String,
        }
        let slice = Slice::whole(&self.scope);
        let sql = format!(
            "SELECT DISTINCT concat(bucket, '/', key) AS path, etag FROM {} \
             WHERE batch_id = {} AND {} ORDER BY path",
            self.warehouse.table(OBJECTS_TABLE),
            sql::id(batch),
            slice.claims(self.warehouse)
        );
        let objects: Vec<Object> = self.rows(&[OBJECTS_TABLE], &sql).await?;
        Ok(objects.into_iter().map(|it| (it.path, it.etag)).collect())
    }
}

/// A batch that `object_rows` does not count as the ledger does.
#[derive(Debug, Deserialize)]
pub(super) struct Miscounted {
    pub(super) batch_id: Uuid,
    /// The lines that the ledger recorded.
    pub(super) recorded: u64,
    /// The lines that `object_rows` counts.
    pub(super) counted: u64,
}
