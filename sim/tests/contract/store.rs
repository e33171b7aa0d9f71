//! S3 as a worker reads it.

use sluice::load::ports::ObjectStore;
use sluice::object::ObjectRef;
use sluice::s3::{Completeness, ObjectMeta, Plain, StoreError, broken};
use sluice_core::fixtures;
use sluice_sim::s3::Reader;
use tokio::io::AsyncReadExt;

use crate::servers::Servers;
use crate::words::{BLANK, PAGE, REJECTED, VIDEO, lines};
use crate::worker::Worker;

const WORDS: [&str; 40] = [VIDEO; 40];

/// Returns the error of every operation that reads this object.
async fn errors<S: Servers>(worker: &Worker<S>, object: &ObjectRef) -> Vec<StoreError> {
    let store = &worker.store;
    let mut errors = vec![
        store
            .is_misnamed(object, Plain::JsonLines)
            .await
            .unwrap_err(),
        store.is_empty(object, Plain::JsonLines).await.unwrap_err(),
        store.completeness(object).await.unwrap_err(),
    ];
    errors.extend(store.open(object, Plain::JsonLines).await.err());
    assert_eq!(errors.len(), 4, "{errors:?}");
    errors
}

/// Reads an object, and returns what precedes an error, and the error.
async fn content<S: Servers>(
    worker: &Worker<S>,
    object: &ObjectRef,
) -> (Vec<u8>, Option<StoreError>) {
    let mut content = worker.store.open(object, Plain::JsonLines).await.unwrap();
    let mut bytes = Vec::new();
    let read = content.read_to_end(&mut bytes).await;
    let error = read.err().map(|error| broken(object, &error));
    (bytes, error)
}

pub(crate) async fn the_worker_sees_what_a_key_has_now<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let first = servers.put("key.gz", &[VIDEO]).await;
    let second = servers.put("key.gz", &[VIDEO, PAGE]).await;
    assert_ne!(first.etag, second.etag);
    let meta = ObjectMeta {
        etag: second.etag.clone(),
        size: second.size,
    };
    assert_eq!(worker.store.head(&first).await, Ok(meta.clone()));
    assert_eq!(worker.store.head(&second).await, Ok(meta));
    // The same content is the same object.
    assert_eq!(servers.put("key.gz", &[VIDEO]).await, first);
    let meta = worker.store.head(&second).await.unwrap();
    assert_eq!(meta.etag, first.etag);
}

pub(crate) async fn an_object_that_is_gone_is_missing<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let gone = servers.put("gone.gz", &WORDS).await;
    servers.remove("gone.gz").await;
    let never = fixtures::object(servers.bucket(), "never-there.gz", "e");
    for object in [gone, never] {
        let mut errors = errors(&worker, &object).await;
        errors.push(worker.store.head(&object).await.unwrap_err());
        for error in errors {
            assert!(error.is_missing(), "{error:?}");
            assert!(!error.is_denied() && !error.is_transient(), "{error:?}");
            assert_eq!(error.path(), object.path());
        }
    }
}

pub(crate) async fn an_object_that_has_changed_is_not_read<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let before = servers.put("changed.gz", &WORDS).await;
    let after = servers.put("changed.gz", &WORDS[1..]).await;
    for error in errors(&worker, &before).await {
        assert!(error.is_changed(), "{error:?}");
        assert!(!error.is_missing() && !error.is_transient(), "{error:?}");
    }
    let (bytes, error) = content(&worker, &after).await;
    assert_eq!((bytes, error), (lines(&WORDS[1..]), None));
    // Without an etag, whatever is there is read.
    let unpinned = fixtures::object(servers.bucket(), "changed.gz", "");
    let (bytes, error) = content(&worker, &unpinned).await;
    assert_eq!((bytes, error), (lines(&WORDS[1..]), None));
}

pub(crate) async fn an_object_can_be_refused_to_the_worker_alone<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("refused.gz", &WORDS).await;
    let other = servers.put("other.gz", &WORDS).await;
    servers.refuse("refused.gz", Reader::Worker, true);
    let mut found = errors(&worker, &object).await;
    found.push(worker.store.head(&object).await.unwrap_err());
    for error in found {
        assert!(error.is_denied(), "{error:?}");
        assert!(!error.is_missing() && !error.is_transient(), "{error:?}");
    }
    assert!(worker.store.head(&other).await.is_ok());
    let batch = worker.claim(std::slice::from_ref(&object)).await;
    let objects = std::slice::from_ref(&object);
    worker.insert(batch, 1, objects).await.unwrap();
    servers.refuse("refused.gz", Reader::Worker, false);
    assert!(worker.store.head(&object).await.is_ok());
}

pub(crate) async fn s3_can_be_unavailable_to_the_worker_alone<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("object", &WORDS).await;
    servers.set_unavailable(Reader::Worker, true);
    let open = worker
        .store
        .open(&object, Plain::JsonLines)
        .await
        .err()
        .unwrap();
    let head = worker.store.head(&object).await.unwrap_err();
    for error in [open, head] {
        assert!(error.is_transient(), "{error:?}");
        assert!(!error.is_missing() && !error.is_denied(), "{error:?}");
    }
    let objects = std::slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    worker.insert(batch, 1, objects).await.unwrap();
    servers.set_unavailable(Reader::Worker, false);
    assert!(worker.store.head(&object).await.is_ok());
}

pub(crate) async fn content_is_read_decompressed<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let words = [VIDEO, BLANK, REJECTED, PAGE, PAGE];
    for (key, completeness) in [
        ("plain", Completeness::Unknown),
        ("zipped.gz", Completeness::Whole),
        ("zipped.zst", Completeness::Whole),
    ] {
        let object = servers.put(key, &words).await;
        let (bytes, error) = content(&worker, &object).await;
        assert_eq!((bytes, error), (lines(&words), None), "{key}");
        let store = &worker.store;
        assert_eq!(store.completeness(&object).await, Ok(completeness));
        assert_eq!(store.is_empty(&object, Plain::JsonLines).await, Ok(false));
        assert_eq!(
            store.is_misnamed(&object, Plain::JsonLines).await,
            Ok(false)
        );
    }
}

pub(crate) async fn the_worker_notices_that_an_object_is_cut_short<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let whole = lines(&WORDS);
    for key in ["cut.gz", "cut.zst"] {
        let meta = servers.upload(key, &whole, true).await;
        let cut = servers.object(key, &meta);
        let completeness = worker.store.completeness(&cut).await;
        let is_cut = matches!(completeness, Ok(Completeness::Cut(_)));
        assert!(is_cut, "{key}: {completeness:?}");
        let (bytes, error) = content(&worker, &cut).await;
        assert!(whole.starts_with(&bytes) && bytes.len() < whole.len());
        let is_of_content = matches!(error, Some(StoreError::Content { .. }));
        assert!(is_of_content, "{key}: {error:?}");
    }
}

pub(crate) async fn an_object_without_content_is_empty<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    for key in ["empty", "empty.gz", "empty.zst"] {
        let empty = servers.put(key, &[]).await;
        assert_eq!(
            worker.store.is_empty(&empty, Plain::JsonLines).await,
            Ok(true),
            "{key}"
        );
        assert_eq!(content(&worker, &empty).await, (Vec::new(), None));
        // A blank line is content.
        let blank = servers.put(key, &[BLANK]).await;
        assert_eq!(
            worker.store.is_empty(&blank, Plain::JsonLines).await,
            Ok(false),
            "{key}"
        );
    }
}

pub(crate) async fn a_worker_has_no_decoder_for_most_compressions<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    for key in ["object.bz2", "object.lz4", "object.xz"] {
        let object = servers.put(key, &[REJECTED]).await;
        let error = worker
            .store
            .open(&object, Plain::JsonLines)
            .await
            .err()
            .unwrap();
        assert!(matches!(error, StoreError::Content { .. }), "{error:?}");
        let error = worker
            .store
            .is_empty(&object, Plain::JsonLines)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Content { .. }), "{error:?}");
    }
    let object = servers.put("object.xz", &[REJECTED]).await;
    let completeness = worker.store.completeness(&object).await;
    assert_eq!(completeness, Ok(Completeness::Unknown));
}
