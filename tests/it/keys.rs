//! Keys of every kind that S3 allows: each object is loaded, and never another one in its place.

use std::collections::BTreeSet;

use fastrand::Rng;
use futures_util::{StreamExt, stream};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, wait_until_drained};

/// Keys that some component could misinterpret.
const HOSTILE: &[&str] = &[
    "{",
    "}",
    ",",
    "{a,b}",
    "{1..3}",
    "{}",
    "*",
    "**",
    "?",
    "#",
    "%",
    "%41",
    "%2F",
    "%00",
    "+",
    " ",
    "'",
    "\"",
    "`",
    "\\",
    "\\n",
    "\n",
    "\r",
    "\t",
    "\u{7f}",
    "/",
    "//",
    "[a-c]",
    "!",
    "&",
    "=",
    ";",
    ":",
    "@",
    "$",
    "|",
    "<",
    ">",
    "^",
    "~",
    "(",
    ")",
    "1..3",
    "...",
    "\u{1f600}",
    "e\u{301}",
    "é",
    "\u{202e}",
    "\u{5d0}",
    "\u{feff}",
    "::",
    "s3://",
    "?versionId=1",
    ".zip::a",
    "{_partition_id}",
];

/// Returns keys that a wrong interpretation of `key` would match.
fn decoys(key: &str) -> Vec<String> {
    let mut decoys = vec![
        percent_decode_str(key).decode_utf8_lossy().into_owned(),
        utf8_percent_encode(key, NON_ALPHANUMERIC).to_string(),
        key.replace('+', " "),
        key.replace(' ', "+"),
        key.replace("//", "/"),
        key.replace('\\', "/"),
        key.replace('\\', ""),
        key.replace(['*', '?'], "x"),
        key.replace(['*', '?'], ""),
        key.replace("{1..3}", "2"),
        key.replace("{a,b}", "a"),
        key.replace("{}", ""),
        key.replace(['{', '}'], ""),
        key.replace("[a-c]", "b"),
        key.replace("e\u{301}", "é"),
        key.trim().to_owned(),
    ];
    decoys.extend(key.split(['#', '?', ',', '\n']).map(str::to_owned));
    decoys
}

/// Returns whether the stand-in can store the key. It resolves `.` and `..` in paths; the tests of
/// core/src/statements/insert.rs show that these are never put into a URL. The SDK rejects keys of
/// white space.
fn can_store(key: &str) -> bool {
    !key.trim().is_empty()
        && key.len() <= 1024
        && !key.contains('\0')
        && !key
            .split('/')
            .any(|segment| segment == "." || segment == "..")
}

fn keys(seed: u64) -> BTreeSet<String> {
    let mut rng = Rng::with_seed(seed);
    let mut keys = BTreeSet::from(["é".repeat(512), "/".to_owned(), "a/".repeat(500)]);
    keys.extend(HOSTILE.iter().map(|piece| (*piece).to_owned()));
    for _ in 0..25 {
        let pieces = rng.usize(1..6);
        let mut key = String::new();
        for _ in 0..pieces {
            key.push_str(HOSTILE[rng.usize(..HOSTILE.len())]);
            if rng.bool() {
                key.push(rng.lowercase());
            }
        }
        keys.insert(key);
    }
    let decoys: Vec<String> = keys.iter().flat_map(|key| decoys(key)).collect();
    keys.extend(decoys);
    keys.retain(|key| can_store(key));
    keys
}

async fn put_each(site: &Site, keys: &BTreeSet<String>) {
    stream::iter(keys)
        .for_each_concurrent(16, async |key| {
            let line = serde_json::json!({"note": key}).to_string();
            site.put(key, line.clone()).await.unwrap();
            let request = site.s3.get_object().bucket(&site.bucket).key(key);
            let stored = request.send().await.unwrap().body.collect().await.unwrap();
            assert_eq!(
                stored.into_bytes(),
                line,
                "the stand-in does not store {key:?}"
            );
        })
        .await;
}

async fn assert_keys_are_read_literally(fallback: &str) {
    let stack = Stack::shared();
    let site = stack.site("hostile-keys").await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("load.fallback", fallback);
    sluice.migrate();
    // The selection differs every time. The comparison names the keys that fail.
    let keys = keys(fastrand::u64(..));
    put_each(&site, &keys).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_each_once(stack, &site, &keys).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

async fn assert_each_once(stack: &Stack, site: &Site, keys: &BTreeSet<String>) {
    let sql = format!(
        "SELECT JSONExtractString(raw, 'note') AS note, source_path \
         FROM {}.unmatched_statements ORDER BY note",
        site.database
    );
    let rows = stack.clickhouse.rows(&sql).await.unwrap();
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_owned();
    for row in &rows {
        let path = format!("{}/{}", site.bucket, text(row, "note"));
        assert_eq!(text(row, "source_path"), path);
    }
    let mut found: Vec<String> = rows.iter().map(|row| text(row, "note")).collect();
    found.sort_unstable();
    let expected: Vec<String> = keys.iter().cloned().collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn every_key_is_loaded_and_matches_no_other() {
    assert_keys_are_read_literally("auto").await;
}

#[tokio::test]
async fn every_key_is_streamed_and_matches_no_other() {
    assert_keys_are_read_literally("always").await;
}

/// An object has the same identity whether it is listed or announced.
#[tokio::test]
async fn every_key_is_the_same_whether_listed_or_announced() {
    let stack = Stack::shared();
    let site = stack.site("listed-keys").await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let keys = keys(fastrand::u64(..));
    put_each(&site, &keys).await;
    let output = sluice.command(&["backfill", &format!("s3://{}", site.bucket)]);
    assert!(output.status.success(), "{output:?}");
    assert_each_once(stack, &site, &keys).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_each_once(stack, &site, &keys).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}
