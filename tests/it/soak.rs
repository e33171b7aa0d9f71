//! Memory over a short time. `cargo xtask bench steady --minutes 60` is the long version.

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use sluice_testkit::xapi::{Bundle, ExpectedRows, Generator};
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, assert_rows, wait_until_drained};

const OBJECTS: usize = 100;
const MESSAGES: usize = 300;
const SENDERS: usize = 8;
/// The rounds until the worker has allocated all that it needs.
const WARM_UP: usize = 3;
const ROUNDS: usize = 3;
/// Memory in bytes that the allocator may need for itself.
const SLACK: u64 = 4 << 20;

/// No metrics are requested, and the data behind them must not accumulate either.
#[tokio::test]
async fn memory_does_not_grow_with_the_number_of_messages() {
    let stack = Stack::shared();
    let site = stack.site("soak").await.unwrap();
    site.stop_notifications().await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("batch.window", "200ms");
    sluice.migrate();
    let bundles: Vec<Bundle> = Generator::new(63).take(OBJECTS).collect();
    let mut expected_rows = ExpectedRows::default();
    let mut records = Vec::new();
    for bundle in &bundles {
        let etag = site.put(&bundle.key, bundle.bytes.clone()).await.unwrap();
        let body: Value = serde_json::from_str(&site.announcement(bundle, &etag)).unwrap();
        records.push(body["Records"][0].clone());
        expected_rows += &bundle.expected_rows;
    }
    let body = json!({"Records": records}).to_string();
    sluice.start();
    sluice.wait_until_ready().await;
    let mut resident = Vec::new();
    for _ in 0..WARM_UP + ROUNDS {
        announce(&site, &body).await;
        wait_until_drained(&site).await;
        resident.push(sluice.memory().0);
    }
    let (warm, last) = (resident[WARM_UP - 1], resident[WARM_UP + ROUNDS - 1]);
    assert!(last <= warm + SLACK, "{resident:?}");
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}

async fn announce(site: &Site, body: &str) {
    let sent = stream::iter(0..MESSAGES).map(|_| site.send(body));
    let sent = sent.buffer_unordered(SENDERS).try_collect::<Vec<_>>();
    sent.await.unwrap();
}
