//! The tables of a worker: each operation with the requests and the results that
//! `sluice::load::tables::ClickHouseTables` has.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use sluice::batch::{self, BatchId, ReadBy};
use sluice::clickhouse::WarehouseError;
use sluice::clickhouse::batch_rows::{
    Agreement, Contents, Counted, Rejected, RejectedRecord, tables_of,
};
use sluice::clickhouse::failing_view::Failing;
use sluice::clickhouse::replicas::Barrier;
use sluice::event_types::{Column, EventType};
use sluice::formats::FormatId;
use sluice::load::empty_columns::Seen;
use sluice::load::janitor::StrayRows;
use sluice::load::ports::{BatchTables, Insert, Rows};
use sluice::load::truncation::Truncation;
use sluice::object::{Compression, ObjectParts, ObjectRef};
use sluice::rejects::RejectKind;
use sluice::s3::{ObjectMeta, StoreError};
use sluice::statements::Statement;
use sluice::statements::insert::{Planner, Strategy};
use sluice::statements::select::Target;
use tokio::time::Instant;

use super::conditions::Condition;
use super::connection::{Connection, bounded, mark_of};
use super::errors;
use super::log::{Scope, View};
use super::parts::{Kind, Layout, TableId};
use super::plan::{Guard, Plan, Source};
use super::state::{Answer, Short, State};
use crate::s3::{Read, ReadError, Reader};

/// The text of a statement before the position of its plan.
const INSERT: &str = "INSERT ";

/// How long a result of a test of the server is cached.
const TEST_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// The bytes at the beginning of an object that show what it is.
const FIRST_BYTES: usize = 512;

/// The reason of every rejected line that is not too long.
pub(super) const REJECTED: &str = "not JSON";

/// The tables as a worker reaches them through one of the servers.
pub struct SimTables {
    pub(super) connection: Connection,
    pub(super) planner: Arc<Planner>,
    pub(super) layout: Arc<Layout>,
    truncations: Mutex<BTreeMap<Compression, (Truncation, Instant)>>,
}

impl SimTables {
    pub(super) fn new(connection: Connection, planner: Planner) -> Self {
        let layout = connection.server.with(|state| {
            let State { tables, rng, .. } = state;
            tables.layout(planner.catalog(), rng)
        });
        Self {
            connection,
            planner: Arc::new(planner),
            layout: Arc::new(layout),
            truncations: Mutex::default(),
        }
    }

    fn truncations(&self) -> MutexGuard<'_, BTreeMap<Compression, (Truncation, Instant)>> {
        let truncations = self.truncations.lock();
        truncations.unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the plans of an attempt: one for all tables, or one for each that an object of the
    /// batch can fill.
    pub(super) fn plans(&self, insert: &Insert<'_>, guard: Guard) -> Vec<Plan> {
        let is_replay = RejectKind::moved_by(insert.shape.read_by).is_some();
        let plan = |only: Option<TableId>, objects: &[&ObjectRef]| Plan {
            batch: insert.batch,
            guard,
            shape: insert.shape,
            objects: owned(objects),
            source: if is_replay {
                Source::Snapshot
            } else {
                Source::Objects
            },
            keeps_lines: self.connection.server.keeps_lines(),
            planner: self.planner.clone(),
            layout: self.layout.clone(),
            only,
        };
        if self.planner.options().strategy == Strategy::SinglePass {
            return vec![plan(None, insert.objects)];
        }
        let targets = Target::all(self.planner.catalog());
        let targets = targets.iter().zip(&self.layout.tables);
        let of_target = |(target, table): (&Target<'_>, &TableId)| {
            let mut on_route = insert.objects.to_vec();
            on_route.retain(|object| target.is_filled_from(&object.key));
            if on_route.is_empty() {
                return None;
            }
            // A body, or a snapshot, has the lines of all objects.
            let objects: &[&ObjectRef] = match insert.shape.read_by {
                ReadBy::S3 => &on_route,
                _ => insert.objects,
            };
            Some(plan(Some(*table), objects))
        };
        targets.filter_map(of_target).collect()
    }

    /// Returns the statements that execute these plans.
    pub(super) fn statements_of(&self, plans: Vec<Plan>) -> Vec<Statement> {
        self.connection.server.with(|state| {
            let first = state.plans.len();
            state.plans.extend(plans.into_iter().map(Arc::new));
            let positions = first..state.plans.len();
            let statements =
                positions.map(|position| Statement::new(format!("{INSERT}{position}")));
            statements.collect()
        })
    }

    fn table(&self, name: &str) -> Answer<TableId> {
        let table = self
            .connection
            .server
            .with(|state| state.tables.named(name));
        table.ok_or_else(|| errors::unknown_table(name))
    }

    fn plan(&self, statement: &Statement) -> Answer<Arc<Plan>> {
        let position = statement.sql.strip_prefix(INSERT);
        let position: Option<usize> = position.and_then(|position| position.parse().ok());
        let plan = self.connection.server.with(|state| {
            let plan = state.plans.get(position?)?;
            Some(plan.clone())
        });
        plan.ok_or_else(errors::syntax)
    }
}

impl BatchTables for SimTables {
    fn planner(&self) -> &Planner {
        &self.planner
    }

    async fn ping(&self) -> Answer<()> {
        self.connection.request("ping", |_, _| Ok(())).await
    }

    async fn statements(&self, insert: &Insert<'_>) -> Answer<Vec<Statement>> {
        let guard = Guard::parse(insert.guard).ok_or_else(errors::syntax)?;
        self.connection.server.with(|state| {
            for object in insert.objects {
                state.tables.learn(object);
            }
        });
        Ok(self.statements_of(self.plans(insert, guard)))
    }

    async fn execute(&self, statement: &Statement, _: &str, timeout: Duration) -> Answer<()> {
        let (server, plan) = (self.connection.server.clone(), self.plan(statement)?);
        let start = move |state: &mut State, view| state.start_insert(&server, view, plan, None);
        self.connection.run("insert", timeout, start).await
    }

    async fn stream(
        &self,
        statement: &Statement,
        body: impl Stream<Item = Result<Vec<u8>, StoreError>> + Send,
        _: &str,
        timeout: Duration,
    ) -> Answer<()> {
        let (server, plan) = (self.connection.server.clone(), self.plan(statement)?);
        let began = Instant::now();
        let body = bounded(timeout, collected(body)).await?;
        let start = move |state: &mut State, view| {
            let lines = plan.parse_framed(&body).ok_or_else(errors::syntax)?;
            state.start_insert(&server, view, plan, Some(lines))
        };
        let rest = timeout.saturating_sub(began.elapsed());
        self.connection.run("stream", rest, start).await
    }

    async fn kill(&self, batch: BatchId) -> Answer<()> {
        self.connection.kill(batch).await
    }

    async fn has_any(&self, batch: BatchId, after: Option<&Barrier>) -> Answer<bool> {
        let mark = mark_of(after)?;
        let read = move |state: &mut State, view| {
            let has_any = state
                .tables
                .of_batch(batch, &state.log, view)
                .next()
                .is_some();
            state.note(format_args!("{} has rows: {has_any}", Short(batch)));
            Ok(has_any)
        };
        let read = self
            .connection
            .read_after("any rows?", mark, Scope::AllRows, read);
        read.await
    }

    async fn contents(&self, batch: BatchId, after: Option<&Barrier>) -> Answer<Contents> {
        let mark = mark_of(after)?;
        let read = move |state: &mut State, view| Ok(contents(state, batch, view));
        let read = self
            .connection
            .read_after("contents", mark, Scope::AllRows, read);
        read.await
    }

    async fn are_complete(
        &self,
        _: BatchId,
        contents: &Contents,
        many_blocks: bool,
        since: Option<Instant>,
    ) -> Answer<bool> {
        let agreement = contents.agreement(many_blocks);
        if agreement == Agreement::Equal {
            return Ok(true);
        }
        // Looks for a missing view.
        self.connection.request("views", |_, _| Ok(())).await?;
        let (Agreement::Fewer(kinds), Some(since)) = (agreement, since) else {
            return Ok(false);
        };
        let tables = tables_of(self.planner.catalog(), &kinds).into_iter();
        let tables: Vec<String> = tables.map(str::to_owned).collect();
        let age = since.elapsed() + Duration::from_secs(2);
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let read = move |state: &mut State, view: View| {
            Ok(state
                .tables
                .are_mutated(&tables, view.now.saturating_sub(age)))
        };
        self.connection.request("rewritten?", read).await
    }

    async fn rejected(&self, batch: BatchId) -> Answer<Vec<Rejected>> {
        let table = self.layout.rejected;
        let read = move |state: &mut State, view| {
            let rows = state.tables.of_batch(batch, &state.log, view);
            let rejected = rows.filter(|(of, _)| *of == table).map(|(_, row)| row.rows);
            Ok(rejected.sum())
        };
        let lines: u64 = self.connection.request("rejected", read).await?;
        let rejected = Rejected {
            reason: REJECTED.to_owned(),
            lines,
        };
        Ok(Vec::from_iter((lines > 0).then_some(rejected)))
    }

    async fn compressed_line(&self, batch: BatchId) -> Answer<Option<String>> {
        let table = self.layout.rejected;
        let read = move |state: &mut State, view| {
            let mut rows = state.tables.of_batch(batch, &state.log, view);
            let first = rows.find(|(of, row)| *of == table && row.looks_compressed);
            Ok(first.map(|(_, row)| state.tables.path(row.object).to_owned()))
        };
        self.connection.request("compressed?", read).await
    }

    async fn sample(&self, _: BatchId, _: &str) -> Answer<Vec<RejectedRecord>> {
        self.connection
            .request("sample", |_, _| Ok(Vec::new()))
            .await
    }

    /// Returns the layout of JSON lines: the worlds have no other format.
    async fn structure(&self, _: FormatId, _: &ObjectRef) -> Answer<Result<batch::Layout, String>> {
        let read = |_: &mut State, _| Ok(Ok(batch::Layout::default()));
        self.connection.request("structure", read).await
    }

    async fn structure_of_part(
        &self,
        _: FormatId,
        _: &[u8],
    ) -> Answer<Result<batch::Layout, String>> {
        let read = |_: &mut State, _| Ok(Ok(batch::Layout::default()));
        self.connection.request("structure", read).await
    }

    async fn first_bytes(&self, object: &ObjectRef) -> Answer<Vec<u8>> {
        let object = object.clone();
        let s3 = self.connection.server.s3().clone();
        let read = move |_: &mut State, _| {
            let read = s3.read(&object, Reader::Server);
            let Read { body, .. } = read.map_err(|error| errors::of_read(error, &object))?;
            Ok(body.iter().copied().take(FIRST_BYTES).collect())
        };
        self.connection.request("first bytes", read).await
    }

    async fn left_in_views(&self, _: BatchId) -> Answer<Option<String>> {
        self.connection.request("views", |_, _| Ok(None)).await
    }

    async fn has_rows(&self, table: &str, rows: Rows<'_>, after: Option<&Barrier>) -> Answer<bool> {
        let (table, condition) = (self.table(table)?, condition(rows));
        let scope = match rows {
            Rows::MovedBy(_) => Scope::RejectsAndSnapshots(table, self.layout.snapshots),
            _ => Scope::Table(table),
        };
        let mark = mark_of(after)?;
        let read = move |state: &mut State, view| {
            let condition = state.resolved(condition, view);
            Ok(state.tables.has_rows(table, &condition, &state.log, view))
        };
        self.connection.read_after("rows?", mark, scope, read).await
    }

    async fn is_deleting(&self, table: &str, rows: Rows<'_>) -> bool {
        let Ok(table) = self.table(table) else {
            return false;
        };
        let condition = condition(rows);
        let read = move |state: &mut State, _| Ok(state.is_deleting(table, &condition));
        let read = self.connection.request("deleting?", read);
        read.await.unwrap_or(false)
    }

    async fn delete(&self, table: &str, rows: Rows<'_>, timeout: Duration) -> Answer<()> {
        let (table, condition) = (self.table(table)?, condition(rows));
        let server = self.connection.server.clone();
        let start = move |state: &mut State, view| {
            Ok(state.begin_mutation(&server, view, table, condition))
        };
        self.connection.run("delete", timeout, start).await
    }

    async fn stray_batches(
        &self,
        table: &str,
        since: Duration,
        limit: usize,
        timeout: Duration,
    ) -> Answer<Vec<BatchId>> {
        let table = self.table(table)?;
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let read = move |state: &mut State, view: View| {
            let mut strays = state.strays(table, view.now.saturating_sub(since), view);
            state.rng.shuffle(&mut strays);
            strays.truncate(limit);
            Ok(strays)
        };
        bounded(timeout, self.connection.request("strays", read)).await
    }

    async fn stray_rows(
        &self,
        target: Target<'_>,
        batch: BatchId,
        timeout: Duration,
    ) -> Answer<Vec<StrayRows>> {
        let table = self.table(target.table())?;
        let read = move |state: &mut State, view| Ok(state.stray_rows(table, batch, view));
        bounded(timeout, self.connection.request("stray rows", read)).await
    }

    async fn head(&self, objects: &[&ObjectRef]) -> Answer<Vec<(String, ObjectMeta)>> {
        let objects = owned(objects);
        let s3 = self.connection.server.s3().clone();
        let read = move |_: &mut State, _| {
            let head = |object: &ObjectRef| match s3.read(object, Reader::Server) {
                Ok(read) => Ok((object.path(), read.meta)),
                Err(ReadError::Changed) => {
                    let present = s3.present(&object.key).ok_or(ReadError::Missing);
                    let present = present.map_err(|error| errors::of_read(error, object))?;
                    Ok((object.path(), present))
                }
                Err(error) => Err(errors::of_read(error, object)),
            };
            objects.iter().map(head).collect()
        };
        self.connection.request("head", read).await
    }

    async fn with_lines(&self, objects: &[&ObjectRef]) -> Answer<Vec<String>> {
        let objects = owned(objects);
        let s3 = self.connection.server.s3().clone();
        let read = move |_: &mut State, _| {
            let mut paths = Vec::new();
            for object in objects {
                // Whatever the key has now.
                let any = ObjectRef::from(ObjectParts {
                    etag: String::new(),
                    ..object.into_parts()
                });
                let read = s3.read(&any, Reader::Server);
                let Read { body, is_cut, .. } = read.map_err(|it| errors::of_read(it, &any))?;
                if let Some(error) = is_cut.then(|| errors::of_cut(&any)).flatten() {
                    return Err(error);
                }
                if !body.is_empty() {
                    paths.push(any.path());
                }
            }
            Ok(paths)
        };
        self.connection.request("lines?", read).await
    }

    fn known_truncation(&self, compression: Compression) -> Option<Truncation> {
        let truncations = self.truncations();
        let (truncation, tested) = truncations.get(&compression)?;
        (tested.elapsed() < TEST_AGAIN_AFTER).then_some(*truncation)
    }

    async fn truncation(&self, compression: Compression) -> Answer<Truncation> {
        // The whole stream, its first half, and all but its last byte.
        let (truncation, tests) = match errors::notices_cut(compression) {
            true => (Truncation::Noticed, 3),
            false => (Truncation::Silent, 2),
        };
        for _ in 0..tests {
            self.connection.request("truncation", |_, _| Ok(())).await?;
        }
        let result = (truncation, Instant::now());
        self.truncations().insert(compression, result);
        Ok(truncation)
    }

    async fn has_passed(&self, failing: &Failing) -> Answer<bool> {
        let table = failing.table.as_deref().map(|name| self.table(name));
        let Some(Ok(table)) = table else {
            return Ok(false);
        };
        let read = move |state: &mut State, view| Ok(state.has_passed(table, view));
        self.connection.request("passed?", read).await
    }

    async fn look_at(&self, _: &EventType, _: &[&Column], _: BatchId) -> Answer<Seen> {
        // Every column has a value.
        let seen = Seen {
            rows: 1,
            empty: Vec::new(),
        };
        self.connection.request("columns", |_, _| Ok(seen)).await
    }
}

/// Returns the whole of a body.
async fn collected(
    body: impl Stream<Item = Result<Vec<u8>, StoreError>> + Send,
) -> Result<Vec<u8>, WarehouseError> {
    let mut body = pin!(body);
    let mut whole = Vec::new();
    while let Some(piece) = body.next().await {
        whole.extend(piece?);
    }
    Ok(whole)
}

pub(super) fn owned(objects: &[&ObjectRef]) -> Vec<ObjectRef> {
    objects.iter().copied().cloned().collect()
}

/// Returns a selection of rows as the servers know it.
fn condition(rows: Rows<'_>) -> Condition {
    match rows {
        Rows::Of(batch) => Condition::Of(batch),
        Rows::InParts(batch, parts) => {
            let parts = parts.iter().map(|part| (*part).to_owned());
            Condition::InParts(batch, parts.collect())
        }
        Rows::SupersededBy(entries) => {
            let superseding = entries.iter().filter(|entry| !entry.supersedes.is_empty());
            let objects = superseding.clone().map(|entry| entry.object.id());
            let batches = superseding.flat_map(|entry| entry.supersedes.iter().copied());
            Condition::From(batches.collect(), objects.collect())
        }
        Rows::MovedBy(batch) => Condition::MovedBy(batch),
    }
}

fn contents(state: &State, batch: BatchId, view: View) -> Contents {
    let tables = &state.tables;
    let mut counted: BTreeMap<(&str, &str, &str), (u64, u64)> = BTreeMap::new();
    let none = tables.kinds().map(|kind| (kind, 0));
    let mut stored: BTreeMap<Kind, u64> = none.collect();
    for (table, row) in tables.of_batch(batch, &state.log, view) {
        if row.kind == Kind::Of(table) {
            *stored.entry(row.kind).or_default() += row.rows;
        } else {
            let (path, etag) = tables.source(row.object);
            let counts = counted.entry((path, etag, tables.kind(row.kind)));
            let (rows, blocks) = counts.or_default();
            *rows += row.rows;
            *blocks += 1;
        }
    }
    let counted = counted
        .into_iter()
        .map(|((path, _, kind), (rows, blocks))| Counted {
            source_path: path.to_owned(),
            kind: kind.to_owned(),
            rows,
            blocks,
        });
    let stored = stored.into_iter();
    let stored = stored.map(|(kind, rows)| (tables.kind(kind).to_owned(), rows));
    Contents::new(counted.collect(), stored)
}
