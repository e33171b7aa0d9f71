//! Tests of a loader on a paused clock, whose ledger and tables respond as a script says.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use futures_util::Stream;
use tokio::time::Instant;

use super::empty_columns::Seen;
use super::janitor::StrayRows;
use super::ports::{Insert, Rows};
use super::truncation::Truncation;
use super::*;
use crate::batch::CloseReason;
use crate::clickhouse::Statement;
use crate::clickhouse::batch_rows::{Contents, Counted, Rejected, RejectedRecord};
use crate::clickhouse::failing_view::Failing;
use crate::clickhouse::replicas::Barrier;
use crate::event_types::{Catalog, Column, EventType};
use crate::ledger::drive::{Fence, RunId};
use crate::ledger::{Claim, Claims, Manifest, ManifestEntry, Permit, Replacement, Stopped};
use crate::s3::{Completeness, Content, ObjectMeta, Plain, StoreError};
use crate::statements::insert::PlannerOptions;
use crate::statements::s3_source::S3Access;
use crate::statements::select::{BLANK, Target};
use sluice_core::fixtures;

const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const INSERT_TIMEOUT: Duration = Duration::from_secs(600);
const MAX_RETRY_AGE: Duration = Duration::from_secs(3_600);
const MAX_LATER_BATCHES: u64 = 5;

/// The outside of a loader, which responds to every step with success unless the script has an
/// error for it.
struct World {
    objects: Vec<ObjectRef>,
    breaker: Arc<Breaker>,
    /// How long ago a batch to be recovered was claimed.
    age: Duration,
    many_blocks: bool,
    /// The number of batches that were claimed after every batch.
    later_batches: u64,
    /// Whether the tables have rows of a batch whose insert did not succeed.
    has_rows: bool,
    is_complete: bool,
    /// The claim status of every object.
    status: ClaimStatus,
    /// The kind of the line that every object has.
    kind: &'static str,
    fallback: Fallback,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    steps: Vec<&'static str>,
    errors: HashMap<&'static str, VecDeque<WarehouseError>>,
    /// The layout of each claim, with the number of its objects.
    claims: Vec<(Layout, usize)>,
    /// The class and the sample of each failure.
    failures: Vec<(&'static str, Vec<String>)>,
    /// Whether intake was paused at any step.
    was_paused: bool,
    /// Whether the rows of the last insert were compared as those of a retry.
    was_retry: bool,
}

impl World {
    /// Creates a world with this many objects.
    fn new(objects: usize) -> Self {
        let keys: Vec<String> = (0..objects)
            .map(|number| format!("{number}.jsonl"))
            .collect();
        Self::of_keys(&keys)
    }

    /// Creates a world with an object of each key.
    fn of_keys<K: AsRef<str>>(keys: &[K]) -> Self {
        let object = |key: &K| fixtures::object("b", key.as_ref(), "e");
        let breaker = Breaker::new(PROBE_INTERVAL);
        breaker.succeeded(Scope::Everything);
        Self {
            objects: keys.iter().map(object).collect(),
            breaker: Arc::new(breaker),
            age: Duration::ZERO,
            many_blocks: false,
            later_batches: 0,
            has_rows: false,
            is_complete: true,
            status: ClaimStatus::Free,
            kind: BLANK,
            fallback: Fallback::Never,
            state: Mutex::default(),
        }
    }

    /// Has the next steps of this name fail with these errors of ClickHouse.
    fn fail(&self, step: &'static str, codes: impl IntoIterator<Item = u32>) {
        let errors = codes.into_iter().map(|code| WarehouseError::Server {
            code,
            text: format!("Code: {code}"),
        });
        self.state().errors.entry(step).or_default().extend(errors);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn reach(&self, step: &'static str) -> Result<(), WarehouseError> {
        let mut state = self.state();
        state.steps.push(step);
        state.was_paused |= self.breaker.reason().is_some();
        let error = state.errors.get_mut(step).and_then(VecDeque::pop_front);
        error.map_or(Ok(()), Err)
    }

    fn count(&self, step: &str) -> usize {
        let state = self.state();
        state.steps.iter().filter(|it| **it == step).count()
    }

    fn shape(&self) -> StatementShape {
        let objects: Vec<&ObjectRef> = self.objects.iter().collect();
        let shape = StatementShape {
            many_blocks: self.many_blocks,
            ..StatementShape::of(ReadBy::S3)
        };
        planner().shape(&objects, shape, &Layout::default())
    }

    fn loader(self: &Arc<Self>) -> Loader<Scripted> {
        let config = LoadConfig {
            insert_timeout: INSERT_TIMEOUT,
            retry: Backoff {
                min: Duration::from_secs(1),
                max: Duration::from_secs(60),
            },
            max_rejected_ratio: 1.0,
            on_all_rejected: None,
            max_buffered_bytes: u64::MAX,
            fallback: self.fallback,
            stream_below: 0,
            acknowledge_missing: false,
            accept_unproven: Vec::new(),
            max_retry_age: Some(MAX_RETRY_AGE),
            max_later_batches: MAX_LATER_BATCHES,
        };
        let parts = LoadParts {
            ledger: ScriptedLedger(self.clone()),
            tables: ScriptedTables {
                world: self.clone(),
                planner: planner(),
            },
            store: NoObjects,
            breaker: self.breaker.clone(),
            activity: Arc::default(),
            env: Env::seeded(7, SystemTime::UNIX_EPOCH),
        };
        Loader::new(config, parts)
    }

    /// Loads the objects, and returns the outcome of each.
    async fn load(self: &Arc<Self>) -> Vec<Outcome> {
        let now = Instant::now();
        let batch = Batch {
            bucket: "b".to_owned(),
            objects: self.objects.clone(),
            reason: CloseReason::Window,
            opened_at: now,
            closed_at: now,
        };
        let outcomes = self.loader().load(batch, CancellationToken::new()).await;
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Recovers a batch with these objects, and returns the steps.
    async fn recover(self) -> Vec<&'static str> {
        let world = Arc::new(self);
        let loader = world.loader();
        let batch = BatchId::new(&loader.parts.env);
        let recovered = loader.recover(batch, &CancellationToken::new()).await;
        assert!(recovered.is_ok());
        std::mem::take(&mut world.state().steps)
    }
}

/// Formats by the first folder of a key. The header of a CSV file is its second folder.
const FORMATS: &str = "
formats:
  - name: documents
    keys: [documents/**]
    json: {}
  - name: exports
    keys: [exports/**]
    csv: {}
  - name: kept
    keys: [kept/**]
    json: {}
    on_all_rejected: keep
  - name: trips
    keys: [trips/**]
    orc: {}
";

fn planner() -> Planner {
    let click = include_str!("../cli/check/canary.yaml");
    let files = [("click.yaml", click), ("formats.yaml", FORMATS)];
    let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
    Planner::new(PlannerOptions {
        catalog: Catalog::from_files(files.to_vec()).unwrap(),
        ..fixtures::planner(S3Access::Server, None).options().clone()
    })
}

struct Scripted;

impl Ports for Scripted {
    type Ledger = ScriptedLedger;
    type Tables = ScriptedTables;
    type Objects = NoObjects;
}

struct ScriptedLedger(Arc<World>);

impl LedgerStore for ScriptedLedger {
    fn lease(&self) -> Duration {
        Duration::from_secs(120)
    }

    async fn claim_statuses(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
        _: &[(ObjectId, BatchId)],
    ) -> Result<Vec<ClaimStatus>, WarehouseError> {
        let step = match excluding {
            None => "look_up",
            Some(_) => "verify",
        };
        self.0.reach(step)?;
        Ok(vec![self.0.status; objects.len()])
    }

    async fn claim(
        &self,
        _: BatchId,
        claims: &[Claim<'_>],
        _: StatementShape,
        layout: &Layout,
    ) -> Result<(), WarehouseError> {
        let claim = (layout.clone(), claims.len());
        self.0.state().claims.push(claim);
        self.0.reach("claim")
    }

    async fn renew(&self, _: BatchId) -> Result<(), WarehouseError> {
        Ok(())
    }

    async fn leased<T: Send>(&self, _: BatchId, work: impl Future<Output = T> + Send) -> T {
        work.await
    }

    async fn permit(&self, batch: BatchId, attempt: u32) -> Result<Permit, WarehouseError> {
        Ok(Permit::unlimited(batch, attempt))
    }

    fn guard(&self, _: &Permit) -> String {
        String::new()
    }

    async fn barrier(&self) -> Result<Option<Barrier>, WarehouseError> {
        Ok(None)
    }

    async fn fence(&self, _: BatchId, _: u32, _: RunId) -> Result<Fence, WarehouseError> {
        self.0.reach("fence")?;
        Ok(Fence::Written)
    }

    async fn stop(&self, _: BatchId) -> Result<Stopped, WarehouseError> {
        self.0.reach("kill")?;
        Ok(Stopped::Yes)
    }

    async fn is_undisputed(&self, _: BatchId, _: RunId) -> Result<bool, WarehouseError> {
        Ok(true)
    }

    async fn has_ended(&self, _: BatchId) -> Result<bool, WarehouseError> {
        Ok(false)
    }

    async fn record(&self, _: &Permit, _: usize, _: u64, _: &str) -> Result<(), WarehouseError> {
        self.0.reach("record")
    }

    async fn release(&self, _: BatchId, _: &str) -> Result<(), WarehouseError> {
        self.0.reach("release")
    }

    async fn abandon(&self, _: BatchId) -> Result<(), WarehouseError> {
        Ok(())
    }

    async fn manifest(&self, _: BatchId) -> Result<Option<Manifest>, WarehouseError> {
        let entry = |object: &ObjectRef| ManifestEntry {
            object: object.clone(),
            supersedes: Vec::new(),
        };
        Ok(Some(Manifest {
            objects: self.0.objects.iter().map(entry).collect(),
            shape: self.0.shape(),
            layout: Some(Layout::default()),
            fenced: 0,
            age: self.0.age,
        }))
    }

    async fn claimed_after(&self, _: BatchId) -> Result<u64, WarehouseError> {
        Ok(self.0.later_batches)
    }

    async fn objects(&self, _: BatchId) -> Result<Vec<ManifestEntry>, WarehouseError> {
        unreachable!("no batch supersedes another")
    }

    async fn replacements(&self) -> Result<Vec<Replacement>, WarehouseError> {
        unreachable!("no batch supersedes another")
    }

    async fn cleaned(&self, _: BatchId) -> Result<(), WarehouseError> {
        unreachable!("no batch supersedes another")
    }

    async fn left_open(&self, _: Duration, _: usize) -> Result<Vec<BatchId>, WarehouseError> {
        unreachable!("no janitor runs")
    }

    async fn loaded_claims(&self, _: &[ObjectId], _: SystemTime) -> Result<Claims, WarehouseError> {
        unreachable!("no batch supersedes another")
    }

    async fn latest_loaded(
        &self,
        _: &ObjectRef,
        _: bool,
        _: usize,
    ) -> Result<Vec<ObjectRef>, WarehouseError> {
        Ok(Vec::new())
    }

    async fn record_failures(&self, failures: &[Failure<'_>]) -> Result<(), WarehouseError> {
        let failures = failures.iter().map(|it| (it.class, it.sample.to_vec()));
        self.0.state().failures.extend(failures);
        self.0.reach("failure")
    }
}

struct ScriptedTables {
    world: Arc<World>,
    planner: Planner,
}

impl BatchTables for ScriptedTables {
    fn planner(&self) -> &Planner {
        &self.planner
    }

    async fn ping(&self) -> Result<(), WarehouseError> {
        Ok(())
    }

    async fn statements(&self, _: &Insert<'_>) -> Result<Vec<Statement>, WarehouseError> {
        Ok(vec![Statement::new("INSERT")])
    }

    async fn execute(&self, _: &Statement, _: &str, _: Duration) -> Result<(), WarehouseError> {
        self.world.reach("insert")
    }

    async fn stream(
        &self,
        _: &Statement,
        _: impl Stream<Item = Result<Vec<u8>, StoreError>> + Send,
        _: &str,
        _: Duration,
    ) -> Result<(), WarehouseError> {
        self.world.reach("sample")
    }

    async fn kill(&self, _: BatchId) -> Result<(), WarehouseError> {
        self.world.reach("kill")
    }

    async fn has_any(&self, _: BatchId, _: Option<&Barrier>) -> Result<bool, WarehouseError> {
        Ok(self.world.has_rows)
    }

    async fn contents(&self, _: BatchId, _: Option<&Barrier>) -> Result<Contents, WarehouseError> {
        let counted = |object: &ObjectRef| Counted {
            source_path: object.path(),
            kind: self.world.kind.to_owned(),
            rows: 1,
            blocks: 1,
        };
        let mut contents = Contents::default();
        contents.counted = self.world.objects.iter().map(counted).collect();
        Ok(contents)
    }

    async fn are_complete(
        &self,
        _: BatchId,
        _: &Contents,
        _: bool,
        since: Option<Instant>,
    ) -> Result<bool, WarehouseError> {
        self.world.state().was_retry = since.is_none();
        Ok(self.world.is_complete)
    }

    async fn rejected(&self, _: BatchId) -> Result<Vec<Rejected>, WarehouseError> {
        Ok(Vec::new())
    }

    async fn compressed_line(&self, _: BatchId) -> Result<Option<String>, WarehouseError> {
        unreachable!("no line is rejected")
    }

    async fn sample(&self, _: BatchId, _: &str) -> Result<Vec<RejectedRecord>, WarehouseError> {
        Ok(vec![RejectedRecord {
            row_number: 7,
            reason: "not JSON".to_owned(),
            start: "<html>".to_owned(),
        }])
    }

    async fn structure(
        &self,
        format: FormatId,
        object: &ObjectRef,
    ) -> Result<Result<Layout, String>, WarehouseError> {
        self.world.reach("structure")?;
        let column = object.key.split('/').nth(1).unwrap_or_default();
        if column == "bad" {
            return Ok(Err("the header has two columns `a`".to_owned()));
        }
        let format = self.planner.catalog().formats().get(format);
        Ok(Ok(layout(&format.name, &[column])))
    }

    async fn structure_of_part(
        &self,
        _: FormatId,
        _: &[u8],
    ) -> Result<Result<Layout, String>, WarehouseError> {
        unreachable!("the worker reads nothing")
    }

    async fn first_bytes(&self, _: &ObjectRef) -> Result<Vec<u8>, WarehouseError> {
        Ok(b"<!doctype html>".to_vec())
    }

    async fn left_in_views(&self, _: BatchId) -> Result<Option<String>, WarehouseError> {
        Ok(None)
    }

    async fn has_rows(
        &self,
        _: &str,
        _: Rows<'_>,
        _: Option<&Barrier>,
    ) -> Result<bool, WarehouseError> {
        Ok(false)
    }

    async fn stray_batches(
        &self,
        _: &str,
        _: Duration,
        _: usize,
        _: Duration,
    ) -> Result<Vec<BatchId>, WarehouseError> {
        unreachable!("no janitor runs")
    }

    async fn stray_rows(
        &self,
        _: Target<'_>,
        _: BatchId,
        _: Duration,
    ) -> Result<Vec<StrayRows>, WarehouseError> {
        unreachable!("no janitor runs")
    }

    async fn is_deleting(&self, _: &str, _: Rows<'_>) -> bool {
        unreachable!("no rows are deleted")
    }

    async fn delete(&self, _: &str, _: Rows<'_>, _: Duration) -> Result<(), WarehouseError> {
        unreachable!("no rows are deleted")
    }

    async fn head(&self, _: &[&ObjectRef]) -> Result<Vec<(String, ObjectMeta)>, WarehouseError> {
        unreachable!("no object changes, and every object has lines")
    }

    async fn with_lines(&self, _: &[&ObjectRef]) -> Result<Vec<String>, WarehouseError> {
        unreachable!("every object has lines")
    }

    fn known_truncation(&self, _: Compression) -> Option<Truncation> {
        unreachable!("no object is compressed")
    }

    async fn truncation(&self, _: Compression) -> Result<Truncation, WarehouseError> {
        unreachable!("no object is compressed")
    }

    async fn has_passed(&self, _: &Failing) -> Result<bool, WarehouseError> {
        unreachable!("there are no views")
    }

    async fn look_at(
        &self,
        _: &EventType,
        _: &[&Column],
        _: BatchId,
    ) -> Result<Seen, WarehouseError> {
        unreachable!("every line is blank")
    }
}

/// S3 for a worker that reads nothing.
struct NoObjects;

impl ObjectStore for NoObjects {
    async fn head(&self, _: &ObjectRef) -> Result<ObjectMeta, StoreError> {
        unreachable!("the worker reads nothing")
    }

    async fn is_misnamed(&self, _: &ObjectRef, _: Plain) -> Result<bool, StoreError> {
        unreachable!("the worker reads nothing")
    }

    async fn is_empty(&self, _: &ObjectRef, _: Plain) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn completeness(&self, _: &ObjectRef) -> Result<Completeness, StoreError> {
        unreachable!("the worker reads nothing")
    }

    async fn open(&self, _: &ObjectRef, _: Plain) -> Result<Content, StoreError> {
        unreachable!("the worker reads nothing")
    }

    async fn end(&self, _: &ObjectRef, _: u64) -> Result<Vec<u8>, StoreError> {
        unreachable!("the worker reads nothing")
    }
}

fn layout(format: &str, columns: &[&str]) -> Layout {
    let column = |name: &&str| ((*name).to_owned(), "Nullable(String)".to_owned());
    Layout {
        format: format.to_owned(),
        structure: columns.iter().map(column).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn ledger_statements_wait_for_replicas_and_pause_nothing() {
    let world = Arc::new(World::new(1));
    let steps = ["look_up", "claim", "verify", "record"];
    for step in steps {
        world.fail(step, [286, 289, 286, 289, 286, 289, 286]);
    }
    assert_eq!(world.load().await, [Outcome::Loaded]);
    assert_eq!(steps.map(|step| world.count(step)), [8; 4]);
    assert!(!world.state().was_paused);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_statement_without_a_confirmed_result_pauses_intake_and_is_repeated() {
    let world = Arc::new(World::new(1));
    for step in ["claim", "record"] {
        world.fail(step, [319, 999]);
    }
    assert_eq!(world.load().await, [Outcome::Loaded]);
    assert_eq!((world.count("claim"), world.count("record")), (3, 3));
    assert!(world.state().was_paused);
}

#[tokio::test(start_paused = true)]
async fn an_insert_that_waits_for_a_quorum_is_not_a_failed_attempt() {
    let world = Arc::new(World::new(2));
    world.fail("insert", [286; 50]);
    assert_eq!(world.load().await, [Outcome::Loaded; 2]);
    assert_eq!((world.count("claim"), world.count("insert")), (1, 51));
    let state = world.state();
    assert!(!state.was_paused);
    // One of its tables can have the rows already.
    assert!(state.was_retry);
}

#[tokio::test(start_paused = true)]
async fn a_statement_that_waits_longer_than_an_insert_may_take_pauses_intake() {
    for step in ["look_up", "insert"] {
        let world = Arc::new(World::new(2));
        world.fail(step, [286; 500]);
        assert_eq!(world.load().await, [Outcome::Loaded; 2], "{step}");
        assert_eq!((world.count(step), world.count("claim")), (501, 1));
        assert!(world.state().was_paused, "{step}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_replicas_is_not_a_failed_attempt() {
    for code in [225, 242, 244, 254, 279, 285, 319, 415, 999] {
        let world = Arc::new(World::new(2));
        // Then come errors that may be those of an object, but fewer than split a batch.
        world.fail("insert", [[code; 20].as_slice(), &[1001; 5]].concat());
        assert_eq!(world.load().await, [Outcome::Loaded; 2], "{code}");
        assert_eq!((world.count("claim"), world.count("insert")), (1, 26));
        let steps = ["sample", "failure"].map(|step| world.count(step));
        assert_eq!(steps, [0, 0], "{code}");
        let state = world.state();
        assert!(state.was_paused && state.was_retry, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_rolled_forward_only_while_its_token_is_remembered() {
    let minute = Duration::from_secs(60);
    let recover = async |age, is_complete| {
        let world = World {
            age,
            has_rows: true,
            is_complete,
            ..World::new(2)
        };
        world.recover().await
    };
    assert_eq!(
        recover(59 * minute, true).await,
        ["fence", "kill", "insert", "record"]
    );
    assert_eq!(
        recover(60 * minute, true).await,
        ["fence", "kill", "record"]
    );
    assert_eq!(
        recover(60 * minute, false).await,
        ["fence", "kill", "fence", "kill", "release"]
    );
}

/// An insert of many blocks that is there twice cannot be recognised by its counts.
#[tokio::test(start_paused = true)]
async fn many_blocks_are_rolled_forward_only_if_few_batches_came_later() {
    let recover = async |many_blocks, later_batches| {
        let world = World {
            many_blocks,
            later_batches,
            has_rows: true,
            ..World::new(1)
        };
        world.recover().await
    };
    let forward = ["fence", "kill", "insert", "record"];
    assert_eq!(recover(true, MAX_LATER_BATCHES).await, forward);
    assert_eq!(recover(false, 1_000).await, forward);
    assert_eq!(
        recover(true, MAX_LATER_BATCHES + 1).await,
        ["fence", "kill", "fence", "kill", "fence", "kill", "release"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_token_expires_in_an_outage_is_loaded_under_another() {
    // One attempt at each probe, for as long as the token is remembered.
    let attempts = MAX_RETRY_AGE.as_secs() / PROBE_INTERVAL.as_secs();
    let attempts = usize::try_from(attempts).unwrap();
    for (has_rows, claims, inserts) in [
        (false, 2, attempts + 1),
        // An earlier attempt was committed although its result was unknown.
        (true, 1, attempts),
    ] {
        let world = Arc::new(World {
            has_rows,
            ..World::new(2)
        });
        world.fail("insert", vec![319; attempts]);
        assert_eq!(world.load().await, [Outcome::Loaded; 2]);
        let counts = ["claim", "insert", "record", "failure"].map(|step| world.count(step));
        assert_eq!(counts, [claims, inserts, 1, 0], "{has_rows}");
    }
}

#[tokio::test(start_paused = true)]
async fn objects_of_one_format_and_structure_are_loaded_together() {
    let keys = [
        "1.jsonl",
        "exports/a/1.csv",
        "documents/1.json",
        "exports/b/1.csv",
        "2.jsonl",
        "exports/a/2.csv",
        "documents/2.json",
    ];
    let world = Arc::new(World::of_keys(&keys));
    assert_eq!(world.load().await, [Outcome::Loaded; 7]);
    assert_eq!(world.count("structure"), 3);
    let mut claims = world.state().claims.clone();
    claims.sort_unstable();
    let expected = [
        (Layout::default(), 2),
        (layout("documents", &[]), 2),
        (layout("exports", &["a"]), 2),
        (layout("exports", &["b"]), 1),
    ];
    assert_eq!(claims, expected);
}

#[tokio::test(start_paused = true)]
async fn a_format_that_is_read_alone_has_a_batch_for_each_object() {
    let world = Arc::new(World::of_keys(&["trips/a/1.orc", "trips/a/2.orc"]));
    assert_eq!(world.load().await, [Outcome::Loaded; 2]);
    assert_eq!(
        world.state().claims,
        [(layout("trips", &["a"]), 1), (layout("trips", &["a"]), 1)]
    );
}

/// Nothing separates documents in a body.
#[tokio::test(start_paused = true)]
async fn objects_of_other_formats_are_streamed_one_at_a_time() {
    let keys = ["documents/1.json", "1.jsonl", "documents/2.json", "2.jsonl"];
    let world = Arc::new(World {
        fallback: Fallback::Always,
        ..World::of_keys(&keys)
    });
    assert_eq!(world.load().await, [Outcome::Loaded; 4]);
    let claims = world.state().claims.clone();
    let documents = layout("documents", &[]);
    let expected = [
        (Layout::default(), 2),
        (documents.clone(), 1),
        (documents, 1),
    ];
    assert_eq!(claims, expected);
}

/// The structure of an object is looked up once, however often its batch is split.
#[tokio::test(start_paused = true)]
async fn a_structure_is_looked_up_until_the_server_responds_and_then_known() {
    let world = Arc::new(World::of_keys(&["exports/a/1.csv", "exports/a/2.csv"]));
    world.fail("structure", [999, 210]);
    // The batch is split, and both parts are loaded.
    world.fail("insert", [117]);
    assert_eq!(world.load().await, [Outcome::Loaded; 2]);
    assert_eq!((world.count("structure"), world.count("claim")), (4, 3));
}

/// It may have been deleted since.
#[tokio::test(start_paused = true)]
async fn an_object_that_was_loaded_before_is_a_duplicate_whatever_its_structure_is() {
    let world = Arc::new(World {
        status: ClaimStatus::Loaded,
        ..World::of_keys(&["exports/bad/1.csv"])
    });
    assert_eq!(world.load().await, [Outcome::Duplicate]);
    assert!(world.state().failures.is_empty());
}

/// So small a query exceeds a limit only because of the object.
#[tokio::test(start_paused = true)]
async fn an_object_whose_structure_exceeds_a_limit_fails_alone() {
    let world = Arc::new(World::of_keys(&["exports/a/1.csv"]));
    world.fail("structure", [158; 6]);
    assert_eq!(world.load().await, [Outcome::Failed]);
    assert_eq!((world.count("structure"), world.count("sample")), (6, 1));
    assert!(!world.state().was_paused);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_s3_during_a_look_up_fails_no_object() {
    let world = Arc::new(World::of_keys(&["exports/a/1.csv"]));
    world.fail("structure", [499; 20]);
    assert_eq!(world.load().await, [Outcome::Loaded]);
    let counts = ["structure", "sample", "failure"].map(|step| world.count(step));
    assert_eq!(counts, [21, 0, 0]);
    assert!(world.state().was_paused);
}

#[tokio::test(start_paused = true)]
async fn an_object_with_a_wrong_header_fails_before_anything_is_inserted() {
    let world = Arc::new(World::of_keys(&["exports/bad/1.csv", "exports/a/2.csv"]));
    let outcomes = world.load().await;
    assert!(outcomes.contains(&Outcome::Failed) && outcomes.contains(&Outcome::Loaded));
    let state = world.state();
    assert_eq!(state.claims, [(layout("exports", &["a"]), 1)]);
    assert_eq!(state.failures, [("unloadable", Vec::new())]);
}

#[tokio::test(start_paused = true)]
async fn an_object_of_which_all_is_rejected_fails_unless_its_format_keeps_it() {
    let load = async |key: &str| {
        let world = Arc::new(World {
            kind: "rejected",
            ..World::of_keys(&[key])
        });
        let outcomes = world.load().await;
        let failures = world.state().failures.clone();
        (outcomes, failures)
    };
    let kept = (vec![Outcome::Loaded], Vec::new());
    assert_eq!(load("1.jsonl").await, kept);
    assert_eq!(load("kept/1.json").await, kept);
    let sample = vec!["record 7: not JSON: <html>".to_owned()];
    let failed = (vec![Outcome::Failed], vec![("rejected", sample)]);
    assert_eq!(load("documents/1.json").await, failed);
}
