//! Tests of how long an object waits for others in its batch.

use std::time::Duration;

use sluice_testkit::Stack;
use sluice_testkit::xapi::{ExpectedRows, Generator};

use crate::harness::{Sluice, assert_rows, upload, wait_until_drained};

#[tokio::test]
async fn a_single_object_does_not_wait_for_the_window() {
    let stack = Stack::shared();
    let site = stack.site("alone").await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("batch.window", "1h");
    sluice.migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    let bundles: Vec<_> = Generator::new(61).take(2).collect();
    let mut expected_rows = ExpectedRows::default();
    for (number, bundle) in bundles.iter().enumerate() {
        expected_rows += &upload(&site, std::slice::from_ref(bundle)).await;
        wait_until_drained(&site).await;
        let closed = sluice.metric("sluice_batches_closed_total").await.unwrap();
        assert_eq!(closed, number as f64 + 1.0);
    }
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}

/// The objects arrive one after the other, faster than they can be loaded one by one.
#[tokio::test]
async fn a_stream_of_objects_makes_few_batches() {
    const OBJECTS: usize = 60;
    let stack = Stack::shared();
    let site = stack.site("stream").await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("batch.window", "5s");
    sluice.migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    let mut put = tokio::time::interval(Duration::from_millis(150));
    let bundles: Vec<_> = Generator::new(62).take(OBJECTS).collect();
    let mut expected_rows = ExpectedRows::default();
    for bundle in &bundles {
        put.tick().await;
        expected_rows += &upload(&site, std::slice::from_ref(bundle)).await;
    }
    wait_until_drained(&site).await;
    let closed = sluice.metric("sluice_batches_closed_total").await.unwrap();
    assert!(closed < OBJECTS as f64 / 5.0, "{closed}");
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}
