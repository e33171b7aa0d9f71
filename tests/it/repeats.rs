//! An insert that is repeated under its token adds nothing. Every statement of Sluice must give
//! ClickHouse the same number of blocks each time, regardless of threads and merges.

use std::time::Duration;

use sluice::batch::{BatchId, Layout, ReadBy, StatementShape};
use sluice::config::Secret;
use sluice::event_types::Catalog;
use sluice::object::{ObjectParts, ObjectRef};
use sluice::statements::ddl::{Engine, REPLAYED, SchemaOptions, statements};
use sluice::statements::insert::{Planner, PlannerOptions, Strategy, TimeLimits};
use sluice::statements::s3_source::{S3Access, S3Source};
use sluice_testkit::{Site, Stack};
use uuid::Uuid;

/// Tables, and the planner of inserts into them.
struct Harness {
    stack: &'static Stack,
    site: Site,
    planner: Planner,
}

impl Harness {
    async fn new(strategy: Strategy) -> Harness {
        let stack = Stack::shared();
        let site = stack.site("repeats").await.unwrap();
        let catalog = Catalog::builtin();
        let options = SchemaOptions {
            views: strategy == Strategy::SinglePass,
            database: site.database.clone(),
            cluster: None,
            engine: Engine::Plain,
            dedup_window: 10_000,
            dedup_age: Duration::from_secs(3_600),
            reject_ttl: Duration::from_secs(86_400),
        };
        for statement in statements(&catalog, &options) {
            stack.clickhouse.execute(&statement.sql).await.unwrap();
        }
        let planner = Planner::new(PlannerOptions {
            catalog,
            source: S3Source {
                endpoint: Some(stack.aws.endpoint().to_owned()),
                default_region: "us-east-1".to_owned(),
                access: S3Access::Keys {
                    access_key_id: "test".to_owned(),
                    secret_access_key: Secret::new("test"),
                },
            },
            strategy,
            database: site.database.clone(),
            max_bytes: 1 << 27,
            max_line_bytes: 1 << 20,
            times: TimeLimits::ANY,
            insert_timeout: Duration::from_secs(600),
        });
        Harness {
            stack,
            site,
            planner,
        }
    }

    async fn insert(&self, batch: BatchId, objects: &[&ObjectRef], from: ReadBy, threads: usize) {
        let layout = Layout::default();
        let shape = StatementShape::of(from);
        let shape = self.planner.shape(objects, shape, &layout);
        for statement in self.planner.inserts(batch, objects, shape, &layout, "0") {
            let client = self.stack.clickhouse.client();
            let mut query = client.query_raw(&statement.sql);
            for (name, value) in statement.settings {
                query = query.with_setting(name, value);
            }
            let query = query.with_setting("max_threads", threads.to_string());
            query.execute().await.unwrap();
        }
    }

    /// Returns how often each line of the batch is counted in `object_rows`.
    async fn count_per_line(&self, batch: BatchId, lines: u64) -> f64 {
        let sql = format!(
            "SELECT sum(rows) FROM {}.object_rows WHERE batch_id = '{batch}'",
            self.site.database
        );
        let rows: u64 = self.stack.clickhouse.scalar(&sql).await.unwrap();
        rows as f64 / lines as f64
    }
}

fn batch() -> BatchId {
    BatchId(Uuid::now_v7())
}

/// The order in which threads read the objects decides how the lines are divided into blocks, both
/// for small objects, whose lines are coalesced, and for large ones.
#[tokio::test]
async fn a_repeated_insert_adds_nothing_however_many_threads_read_the_objects() {
    for (strategy, rounds) in [(Strategy::SinglePass, 3), (Strategy::PerType, 1)] {
        let harness = Harness::new(strategy).await;
        let mut small = Vec::new();
        for n in 0..5 {
            let key = format!("{n}.jsonl");
            let body = "{\"id\":\"1\"}\n".repeat(20);
            let etag = harness.site.put(&key, body).await.unwrap();
            small.push(ObjectRef::from(ObjectParts {
                bucket: harness.site.bucket.clone(),
                key,
                etag,
                size: Some(220),
                ..ObjectParts::default()
            }));
        }
        // The same objects are large according to their announced size.
        let large: Vec<_> = small
            .iter()
            .map(|object| {
                ObjectRef::from(ObjectParts {
                    size: Some(10 << 20),
                    ..object.clone().into_parts()
                })
            })
            .collect();
        for objects in [small, large] {
            let objects: Vec<_> = objects.iter().collect();
            for _ in 0..rounds {
                let batch = batch();
                for threads in [1, 2, 4, 8] {
                    harness.insert(batch, &objects, ReadBy::S3, threads).await;
                    assert_eq!(
                        harness.count_per_line(batch, 100).await,
                        1.0,
                        "{threads} threads"
                    );
                }
            }
        }
    }
}

/// The snapshot of the rejects is in a table, whose parts may merge at any time.
#[tokio::test]
async fn a_repeated_insert_of_rejects_adds_nothing_after_their_snapshot_was_merged() {
    let harness = Harness::new(Strategy::SinglePass).await;
    let table = format!("{}.{REPLAYED}", harness.site.database);
    let add_to_snapshot = async |batch: BatchId, from: usize, lines: usize| {
        let sql = format!(
            "INSERT INTO {table} (batch_id, source_path, source_etag, row_number, raw) \
             SELECT '{batch}', 'b/k', 'e', {from} + number, 'no JSON' FROM numbers({lines})"
        );
        harness.stack.clickhouse.execute(&sql).await.unwrap();
    };
    let batch = batch();
    add_to_snapshot(batch, 0, 100_000).await;
    harness.insert(batch, &[], ReadBy::RejectedLines, 4).await;
    for other in 0..3 {
        add_to_snapshot(BatchId(Uuid::from_u128(other)), 50_000, 90_000).await;
        let merge = format!("OPTIMIZE TABLE {table} FINAL");
        harness.stack.clickhouse.execute(&merge).await.unwrap();
        for threads in [1, 2, 8] {
            harness
                .insert(batch, &[], ReadBy::RejectedLines, threads)
                .await;
            assert_eq!(
                harness.count_per_line(batch, 100_000).await,
                1.0,
                "{threads} threads"
            );
        }
    }
}
