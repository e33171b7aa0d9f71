//! Rejects of loaded batches, and what a replay of them does, step by step and as a whole.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::slice;
use std::time::Duration;

use sluice::batch::{BatchId, Layout, ReadBy, StatementShape};
use sluice::clickhouse::error_class::ErrorClass;
use sluice::clickhouse::{Statement, WarehouseError};
use sluice::ledger::protocol::ClaimStatus;
use sluice::ledger::{Claim, OBJECTS_TABLE};
use sluice::load::ports::{BatchTables, Insert, LedgerStore, Ports, Rows};
use sluice::object::{ObjectParts, ObjectRef};
use sluice::rejects::ports::{ReplayLedger, ReplayTables};
use sluice::rejects::replay::{Replayer, Tally};
use sluice::rejects::{RejectKind, RejectPage};
use sluice::statements::insert::Strategy;
use sluice_core::fixtures;

use crate::servers::{Configuration, INSERT_TIMEOUT, STATEMENT, Servers, TableRows, rows};
use crate::words::{
    COUNTS, LONG, PAGE, PAGES, REASON, REJECTED, REJECTS, ROUTED, ROUTED_TABLE, UNMATCHED, VIDEO,
    VIDEOS,
};
use crate::worker::{Answer, Worker, busy, eventually, failed};

const HOUR: Duration = Duration::from_secs(3_600);
const STRATEGIES: [Strategy; 2] = [Strategy::SinglePass, Strategy::PerType];

/// Lines of which three are rejected before the fix, and one is unmatched. Afterwards, one is
/// rejected.
const WORDS: [&str; 6] = [VIDEO, LONG, ROUTED, REJECTED, LONG, PAGE];

/// Returns the rows of [`WORDS`] before the fix.
fn of_words() -> TableRows {
    rows([
        (VIDEOS, 1),
        (PAGES, 1),
        (REJECTS, 3),
        (UNMATCHED, 1),
        (COUNTS, 6),
    ])
}

/// Returns a worker as workers were configured before the fix.
fn before_fix<S: Servers>(servers: &S, strategy: Strategy) -> Worker<S> {
    servers.connect_as("worker", 0, Configuration::before_fix(strategy))
}

/// Returns a worker as a replay is configured.
fn fixed<S: Servers>(servers: &S, strategy: Strategy) -> Worker<S> {
    servers.connect_as("replay", 0, Configuration::fixed(strategy))
}

/// Loads an object with [`WORDS`] before the fix. Returns it as a replay claims it, with the batch.
async fn load<S: Servers>(servers: &S, key: &str) -> (ObjectRef, BatchId) {
    let worker = before_fix(servers, Strategy::SinglePass);
    let object = servers.put(key, &WORDS).await;
    let batch = worker.load(slice::from_ref(&object)).await;
    let object = ObjectRef::from(ObjectParts {
        size: Some(0),
        ..object.into_parts()
    });
    (object, batch)
}

async fn page<S: Servers>(servers: &S, kind: RejectKind) -> RejectPage {
    let page = servers.reject_page(kind, None).await;
    page.expect("there are rejects")
}

/// A replay that has claimed an object.
struct Replay<'a, S: Servers> {
    worker: &'a Worker<S>,
    object: &'a ObjectRef,
    shape: StatementShape,
    batch: BatchId,
}

impl<'a, S: Servers> Replay<'a, S> {
    async fn claim(worker: &'a Worker<S>, object: &'a ObjectRef, kind: RejectKind) -> Self {
        let shape = worker.shape(slice::from_ref(object), kind.read_by());
        Self {
            batch: worker.claim_as(&[Claim::of(object)], shape).await,
            worker,
            object,
            shape,
        }
    }

    /// Returns the statements of an attempt.
    async fn statements(&self, attempt: u32, page: Option<&RejectPage>) -> Vec<Statement> {
        let Worker { ledger, tables, .. } = self.worker;
        let permit = ledger.permit(self.batch, attempt).await.unwrap();
        let insert = Insert {
            batch: self.batch,
            objects: &[self.object],
            shape: self.shape,
            layout: &Layout::default(),
            guard: &ledger.guard(&permit),
        };
        tables.replay_statements(&insert, page).await.unwrap()
    }

    async fn insert(&self, attempt: u32, page: Option<&RejectPage>) -> Answer<()> {
        for statement in self.statements(attempt, page).await {
            self.worker.execute(self.batch, &statement).await?;
        }
        Ok(())
    }
}

pub(crate) async fn rejects_are_inserted_and_rolled_back_with_their_batch<S: Servers>(servers: &S) {
    for strategy in STRATEGIES {
        let worker = before_fix(servers, strategy);
        let object = servers.put(&format!("{strategy:?}"), &WORDS).await;
        let objects = slice::from_ref(&object);
        let batch = worker.claim(objects).await;
        for _ in 0..2 {
            worker.insert(batch, 1, objects).await.unwrap();
            assert_eq!(servers.rows_of(batch).await, of_words());
            assert!(worker.is_complete(batch, false).await);
        }
        let rejected = worker.tables.rejected(batch).await.unwrap();
        assert_eq!(rejected.iter().map(|it| it.lines).sum::<u64>(), 3);
        worker.delete_all(batch).await;
        worker.insert(batch, 1, objects).await.unwrap();
        assert_eq!(servers.rows_of(batch).await, TableRows::new());
    }
}

pub(crate) async fn the_rejects_of_loaded_batches_are_listed<S: Servers>(servers: &S) {
    let worker = before_fix(servers, Strategy::SinglePass);
    let object = servers.put("object", &WORDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    worker.insert(batch, 1, objects).await.unwrap();
    for kind in RejectKind::ALL {
        assert!(servers.reject_page(kind, None).await.is_none());
    }
    worker.record(batch, 1).await.unwrap();
    for (kind, lines, last) in [(RejectKind::Rejected, 3, 4), (RejectKind::Unmatched, 1, 2)] {
        let page = page(servers, kind).await;
        assert_eq!((page.lines, page.last.row_number), (lines, last));
        assert_eq!(page.last.source_path, object.path());
        assert_eq!(page.last.source_etag, object.etag);
        let next = servers.reject_page(kind, Some(&page.last)).await;
        assert!(next.is_none(), "{next:?}");
    }
}

/// Returns what a preview shows of the rejects of one kind: the kinds, reasons and numbers of lines.
async fn preview<S: Servers>(
    servers: &S,
    configuration: Configuration,
    kind: RejectKind,
) -> Vec<(String, String, u64)> {
    let worker = servers.connect_as("preview", 0, configuration);
    let (page, batch) = (page(servers, kind).await, worker.new_batch());
    let preview = worker.tables.preview(&page, batch, STATEMENT).await;
    let rows = preview.unwrap().into_iter();
    let mut rows: Vec<_> = rows.map(|it| (it.kind, it.reason, it.lines)).collect();
    rows.sort_unstable();
    rows
}

pub(crate) async fn a_preview_shows_what_rejects_would_become<S: Servers>(servers: &S) {
    let (_, batch) = load(servers, "object").await;
    let is = |rows: &[(&str, &str, u64)]| -> Vec<(String, String, u64)> {
        let rows = rows.iter();
        rows.map(|(kind, reason, lines)| ((*kind).to_owned(), (*reason).to_owned(), *lines))
            .collect()
    };
    for strategy in STRATEGIES {
        let (before, after) = (
            Configuration::before_fix(strategy),
            Configuration::fixed(strategy),
        );
        let rejected = preview(servers, before, RejectKind::Rejected).await;
        let expected = [("rejected", REASON, 1), ("rejected", "too large", 2)];
        assert_eq!(rejected, is(&expected));
        let rejected = preview(servers, after, RejectKind::Rejected).await;
        assert_eq!(rejected, is(&[("rejected", REASON, 1), (VIDEO, "", 2)]));
        let unmatched = preview(servers, before, RejectKind::Unmatched).await;
        assert_eq!(unmatched, is(&[("unmatched", "no event type", 1)]));
        let unmatched = preview(servers, after, RejectKind::Unmatched).await;
        assert_eq!(unmatched, is(&[(ROUTED, "", 1)]));
    }
    assert_eq!(servers.rows_of(batch).await, of_words());
}

pub(crate) async fn a_replay_inserts_the_rejects_that_have_become_valid<S: Servers>(servers: &S) {
    for strategy in STRATEGIES {
        let worker = fixed(servers, strategy);
        let (object, loaded) = load(servers, &format!("{strategy:?}")).await;
        // Nobody has claimed this one.
        load(servers, &format!("{strategy:?}-other")).await;
        for (kind, expected) in [
            (RejectKind::Rejected, rows([(VIDEOS, 2), (COUNTS, 2)])),
            (
                RejectKind::Unmatched,
                rows([(ROUTED_TABLE, 1), (COUNTS, 1)]),
            ),
        ] {
            let page = page(servers, kind).await;
            let replay = Replay::claim(&worker, &object, kind).await;
            replay.insert(1, Some(&page)).await.unwrap();
            assert_eq!(servers.rows_of(replay.batch).await, expected);
            assert!(worker.is_complete(replay.batch, false).await);
            let contents = worker.tables.contents(replay.batch, None).await.unwrap();
            assert!(contents.are_proof());
            let paths = contents.counted.iter().map(|it| it.source_path.clone());
            assert_eq!(paths.collect::<Vec<_>>(), [object.path()]);
            worker.record(replay.batch, 1).await.unwrap();
        }
        // They are still rejects, too.
        assert_eq!(servers.rows_of(loaded).await, of_words());
    }
}

pub(crate) async fn the_rejects_that_a_replay_has_moved_are_deleted_and_no_others<S: Servers>(
    servers: &S,
) {
    let worker = fixed(servers, Strategy::SinglePass);
    let (object, loaded) = load(servers, "object").await;
    let (_, other) = load(servers, "other").await;
    let page = page(servers, RejectKind::Rejected).await;
    let replay = Replay::claim(&worker, &object, RejectKind::Rejected).await;
    let moved = Rows::MovedBy(replay.batch);
    let has_rows = worker.tables.has_rows(REJECTS, moved, None).await;
    assert_eq!(has_rows, Ok(false));
    replay.insert(1, Some(&page)).await.unwrap();
    worker.record(replay.batch, 1).await.unwrap();
    for has_rejects in [true, false] {
        let has_rows = worker.tables.has_rows(REJECTS, moved, None).await;
        assert_eq!(has_rows, Ok(has_rejects));
        worker.delete(REJECTS, moved).await;
        assert!(!worker.tables.is_deleting(REJECTS, moved).await);
    }
    let mut left = of_words();
    left.insert(REJECTS.to_owned(), 1);
    assert_eq!(servers.rows_of(loaded).await, left);
    assert_eq!(servers.rows_of(other).await, of_words());
    let of_replay = rows([(VIDEOS, 2), (COUNTS, 2)]);
    assert_eq!(servers.rows_of(replay.batch).await, of_replay);
    let listed = servers.reject_page(RejectKind::Rejected, None).await;
    assert_eq!(listed.map(|page| page.lines), Some(4));
}

/// Whatever has become of the rejects since.
pub(crate) async fn a_replay_is_completed_from_its_snapshot<S: Servers>(servers: &S) {
    for strategy in STRATEGIES {
        let worker = fixed(servers, strategy);
        let (object, loaded) = load(servers, &format!("{strategy:?}")).await;
        let page = page(servers, RejectKind::Rejected).await;
        let replay = Replay::claim(&worker, &object, RejectKind::Rejected).await;
        let statements = replay.statements(1, Some(&page)).await;
        worker.execute(replay.batch, &statements[0]).await.unwrap();
        // The snapshot is none of the tables that batches fill.
        assert!(!worker.has_any(replay.batch).await);
        worker.delete(REJECTS, Rows::Of(loaded)).await;
        worker.fence(replay.batch, 1).await;
        let of_replay = rows([(VIDEOS, 2), (COUNTS, 2)]);
        for attempt in 2..=3 {
            replay.insert(attempt, None).await.unwrap();
            assert_eq!(servers.rows_of(replay.batch).await, of_replay);
            worker.fence(replay.batch, attempt).await;
        }
        assert!(worker.is_complete(replay.batch, false).await);
        let manifest = worker.ledger.manifest(replay.batch).await.unwrap().unwrap();
        assert_eq!((manifest.shape, manifest.fenced), (replay.shape, 3));
        worker.record(replay.batch, 4).await.unwrap();
    }
}

/// As it does if the tables still show rejects that another replay has moved.
pub(crate) async fn a_replay_that_repeats_another_is_noticed<S: Servers>(servers: &S) {
    let worker = fixed(servers, Strategy::SinglePass);
    let (object, _) = load(servers, "object").await;
    let page = page(servers, RejectKind::Rejected).await;
    let first = Replay::claim(&worker, &object, RejectKind::Rejected).await;
    first.insert(1, Some(&page)).await.unwrap();
    let second = Replay::claim(&worker, &object, RejectKind::Rejected).await;
    let repeats = async |replay: &Replay<'_, S>| {
        let barrier = worker.ledger.barrier().await?;
        worker
            .tables
            .repeats_a_replay(replay.batch, barrier.as_ref())
            .await
    };
    assert_eq!(repeats(&second).await, Ok(false));
    let statements = second.statements(1, Some(&page)).await;
    worker.execute(second.batch, &statements[0]).await.unwrap();
    assert_eq!(repeats(&second).await, Ok(false));
    worker.record(first.batch, 1).await.unwrap();
    assert_eq!(repeats(&second).await, Ok(true));
    assert_eq!(repeats(&first).await, Ok(false));
}

pub(crate) async fn a_fenced_replay_moves_nothing<S: Servers>(servers: &S) {
    let worker = fixed(servers, Strategy::SinglePass);
    let (object, loaded) = load(servers, "object").await;
    let page = page(servers, RejectKind::Rejected).await;
    let replay = Replay::claim(&worker, &object, RejectKind::Rejected).await;
    let statements = replay.statements(1, Some(&page)).await;
    assert_eq!(statements.len(), 2);
    worker.execute(replay.batch, &statements[0]).await.unwrap();
    worker.fence(replay.batch, 1).await;
    for statement in &statements {
        let answer = worker.execute(replay.batch, statement).await;
        failed(answer, ErrorClass::Fenced);
    }
    assert_eq!(servers.rows_of(replay.batch).await, TableRows::new());
    assert_eq!(servers.rows_of(loaded).await, of_words());
}

/// Returns the claim status of an object for a replay of its rejects.
async fn status<S: Servers>(
    worker: &Worker<S>,
    object: &ObjectRef,
    excluding: Option<BatchId>,
) -> Answer<ClaimStatus> {
    let ids = [object.id()];
    let statuses = worker.ledger.claim_statuses_of_rejects(&ids, excluding);
    Ok(statuses.await?[0])
}

pub(crate) async fn the_rejects_of_an_object_are_busy_until_their_replay_is_cleaned_up<
    S: Servers,
>(
    servers: &S,
) {
    let worker = fixed(servers, Strategy::SinglePass);
    let (object, _) = load(servers, "object").await;
    let none = worker.ledger.claim_statuses_of_rejects(&[], None).await;
    assert_eq!(none, Ok(Vec::new()));
    let free = ClaimStatus::Free;
    eventually(free, async || status(&worker, &object, None).await).await;
    let replay = Replay::claim(&worker, &object, RejectKind::Unmatched).await;
    let of_replay = busy(replay.batch, false);
    assert_eq!(status(&worker, &object, None).await, Ok(of_replay));
    let own = status(&worker, &object, Some(replay.batch)).await;
    assert_eq!(own, Ok(free));
    let second = Replay::claim(&worker, &object, RejectKind::Unmatched).await;
    let own = status(&worker, &object, Some(second.batch)).await;
    assert_eq!(own, Ok(of_replay));
    worker
        .ledger
        .release(second.batch, "a reason")
        .await
        .unwrap();

    worker.record(replay.batch, 1).await.unwrap();
    eventually(of_replay, async || status(&worker, &object, None).await).await;
    worker.sees(&object, ClaimStatus::Loaded).await;
    worker.ledger.cleaned(replay.batch).await.unwrap();
    eventually(free, async || status(&worker, &object, None).await).await;
    // A look-up for a load counts it as one that has loaded the object.
    worker.sees(&object, ClaimStatus::Loaded).await;
}

pub(crate) async fn the_rejects_of_an_object_are_busy_while_a_batch_loads_it<S: Servers>(
    servers: &S,
) {
    let worker = fixed(servers, Strategy::SinglePass);
    let (object, loaded) = load(servers, "object").await;
    let objects = slice::from_ref(&object);
    let free = ClaimStatus::Free;
    let open = worker.claim(objects).await;
    let of_open = status(&worker, &object, None).await;
    assert_eq!(of_open, Ok(busy(open, false)));
    worker.ledger.release(open, "a reason").await.unwrap();
    eventually(free, async || status(&worker, &object, None).await).await;
    let replacement = worker.supersede(objects, &[loaded]).await;
    worker.record(replacement, 1).await.unwrap();
    let of_replacement = busy(replacement, false);
    eventually(of_replacement, async || {
        status(&worker, &object, None).await
    })
    .await;
    worker.ledger.cleaned(replacement).await.unwrap();
    eventually(free, async || status(&worker, &object, None).await).await;
}

pub(crate) async fn a_ledger_that_hides_the_claim_of_a_replay_is_an_error<S: Servers>(servers: &S) {
    let worker = fixed(servers, Strategy::SinglePass);
    let [claimed, unclaimed] =
        ["claimed", "unclaimed"].map(|key| fixtures::object(servers.bucket(), key, "e"));
    let replay = Replay::claim(&worker, &claimed, RejectKind::Rejected).await;
    let ids = [claimed.id(), unclaimed.id()];
    let ledger = &worker.ledger;
    let statuses = ledger.claim_statuses_of_rejects(&ids, Some(replay.batch));
    let hidden = WarehouseError::Hidden {
        table: OBJECTS_TABLE,
        shown: 1,
        written: 2,
    };
    assert_eq!(statuses.await, Err(hidden));
}

/// Returns how a replay is listed among the unfinished ones: what it moves, and whether it is loaded.
async fn listed<S: Servers>(worker: &Worker<S>, batch: BatchId) -> Answer<Option<(ReadBy, bool)>> {
    let mut unfinished = worker.ledger.unfinished_replays().await?;
    unfinished.retain(|it| it.batch_id == batch.0);
    assert!(unfinished.len() <= 1, "{unfinished:?}");
    Ok(unfinished.first().map(|it| (it.read_by, it.loaded)))
}

pub(crate) async fn an_unfinished_replay_is_listed_until_it_is_cleaned_up<S: Servers>(servers: &S) {
    let worker = fixed(servers, Strategy::SinglePass);
    let (object, loaded) = load(servers, "object").await;
    for kind in RejectKind::ALL {
        let [released, replay] = [
            Replay::claim(&worker, &object, kind).await.batch,
            Replay::claim(&worker, &object, kind).await.batch,
        ];
        assert_eq!(listed(&worker, replay).await, Ok(None));
        servers.tick().await;
        for batch in [released, replay] {
            worker.ledger.abandon(batch).await.unwrap();
            let open = Some((kind.read_by(), false));
            eventually(open, async || listed(&worker, batch).await).await;
        }
        worker.ledger.release(released, "a reason").await.unwrap();
        eventually(None, async || listed(&worker, released).await).await;
        worker.record(replay, 1).await.unwrap();
        let recorded = Some((kind.read_by(), true));
        eventually(recorded, async || listed(&worker, replay).await).await;
        worker.ledger.cleaned(replay).await.unwrap();
        eventually(None, async || listed(&worker, replay).await).await;
    }
    // A batch of objects is never listed.
    assert_eq!(listed(&worker, loaded).await, Ok(None));
}

/// The systems of a replayer.
#[allow(dead_code, reason = "there is only the type")]
struct Systems<S>(PhantomData<fn() -> S>);

impl<S: Servers + 'static> Ports for Systems<S> {
    type Ledger = S::Ledger;
    type Tables = S::Tables;
    type Objects = S::Objects;
}

/// Returns the production replayer.
fn replayer<S: Servers + 'static>(servers: &S, strategy: Strategy) -> Replayer<Systems<S>> {
    let worker = fixed(servers, strategy);
    Replayer {
        ledger: worker.ledger,
        tables: worker.tables,
        env: servers.env().clone(),
        timeout: INSERT_TIMEOUT,
        max_retry_age: None,
    }
}

fn lines(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let counts = counts.iter();
    counts
        .map(|(name, lines)| ((*name).to_owned(), *lines))
        .collect()
}

/// Returns the rows of all batches that have loaded an object or moved rejects of it.
async fn rows_of_all<S: Servers>(
    servers: &S,
    worker: &Worker<S>,
    object: &ObjectRef,
) -> (usize, TableRows) {
    let later = servers.env().wall_clock() + HOUR;
    let claims = worker.ledger.loaded_claims(&[object.id()], later).await;
    let claims = claims.unwrap();
    let batches = claims.get(&object.id()).cloned().unwrap_or_default();
    let mut all = TableRows::new();
    for batch in &batches {
        for (table, rows) in servers.rows_of(*batch).await {
            *all.entry(table).or_default() += rows;
        }
    }
    (batches.len(), all)
}

pub(crate) async fn a_replayer_moves_each_reject_once<S: Servers + 'static>(servers: &S) {
    for strategy in STRATEGIES {
        let replayer = replayer(servers, strategy);
        let (object, loaded) = load(servers, &format!("{strategy:?}")).await;
        let rejected = |moved: &[(&str, u64)]| Tally {
            moved: lines(moved),
            left: lines(&[(REASON, 1)]),
            in_hand: 0,
        };
        let first = page(servers, RejectKind::Rejected).await;
        for moved in [&[(VIDEO, 2)][..], &[]] {
            let tally = replayer.replay(&first).await;
            assert_eq!(tally, Ok(rejected(moved)));
        }
        let unmatched = page(servers, RejectKind::Unmatched).await;
        let expected = Tally {
            moved: lines(&[(ROUTED, 1)]),
            ..Tally::default()
        };
        assert_eq!(replayer.replay(&unmatched).await, Ok(expected));
        assert!(
            servers
                .reject_page(RejectKind::Unmatched, None)
                .await
                .is_none()
        );
        let left = page(servers, RejectKind::Rejected).await;
        assert_eq!(left.lines, 1);
        let worker = fixed(servers, strategy);
        let expected = rows([
            (VIDEOS, 3),
            (PAGES, 1),
            (ROUTED_TABLE, 1),
            (REJECTS, 1),
            (COUNTS, 9),
        ]);
        assert_eq!(rows_of_all(servers, &worker, &object).await, (3, expected));
        // The next strategy finds no rejects of this one.
        worker.delete(REJECTS, Rows::Of(loaded)).await;
    }
}

/// Both versions of a key can have been loaded, one after the other.
pub(crate) async fn a_replayer_moves_the_rejects_of_two_versions_of_a_key<S: Servers + 'static>(
    servers: &S,
) {
    let worker = before_fix(servers, Strategy::SinglePass);
    for words in [&WORDS[..], &[LONG]] {
        let version = servers.put("object", words).await;
        worker.load(slice::from_ref(&version)).await;
    }
    let page = page(servers, RejectKind::Rejected).await;
    assert_eq!(page.lines, 4);
    let tally = replayer(servers, Strategy::SinglePass).replay(&page).await;
    let expected = Tally {
        moved: lines(&[(VIDEO, 3)]),
        left: lines(&[(REASON, 1)]),
        in_hand: 0,
    };
    assert_eq!(tally, Ok(expected));
}

pub(crate) async fn a_replay_that_was_left_open_is_finished_by_the_next<S: Servers + 'static>(
    servers: &S,
) {
    let worker = fixed(servers, Strategy::SinglePass);
    let (object, loaded) = load(servers, "object").await;
    let page = page(servers, RejectKind::Rejected).await;
    let replay = Replay::claim(&worker, &object, RejectKind::Rejected).await;
    replay.insert(1, Some(&page)).await.unwrap();
    servers.tick().await;
    worker.ledger.abandon(replay.batch).await.unwrap();
    let replayer = replayer(servers, Strategy::SinglePass);
    eventually(true, async || {
        replayer.finish_others().await?;
        worker.ledger.has_ended(replay.batch).await
    })
    .await;
    let of_replay = rows([(VIDEOS, 2), (COUNTS, 2)]);
    assert_eq!(servers.rows_of(replay.batch).await, of_replay);
    let mut left = of_words();
    left.insert(REJECTS.to_owned(), 1);
    assert_eq!(servers.rows_of(loaded).await, left);
    let free = ClaimStatus::Free;
    eventually(free, async || status(&worker, &object, None).await).await;
}
