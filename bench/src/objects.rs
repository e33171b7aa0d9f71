//! An S3 with negligible cost: objects in memory, with the part of the protocol that loading needs.
//!
//! The stand-in for AWS takes a third of a millisecond of processor time per request. With
//! objects of one or two lines, a benchmark would measure the stand-in.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LAST_MODIFIED, RANGE,
};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use sluice::object::ObjectRef;
use sluice_testkit::Aws;
use sluice_testkit::serve::{Answer, Server};
use sluice_testkit::xapi::Bundle;
use tokio::time::sleep;

use crate::workload::object;

/// The page size of AWS.
const PAGE: usize = 1_000;
const MODIFIED: &str = "Tue, 14 Jul 2026 12:00:00 GMT";

/// The server, which stops when it is dropped.
pub(crate) struct ObjectServer {
    shared: Arc<Shared>,
    _server: Server,
    /// Clients of the server.
    pub(crate) aws: Aws,
}

struct Shared {
    /// The delay of each response.
    latency: Duration,
    /// Objects by `bucket/key`.
    objects: RwLock<BTreeMap<String, Object>>,
    heads: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    etag: String,
}

/// The number of requests by kind.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Requests {
    pub(crate) heads: u64,
    pub(crate) gets: u64,
    pub(crate) lists: u64,
}

impl ObjectServer {
    pub(crate) async fn start(latency: Duration) -> Result<Self> {
        let shared = Arc::new(Shared {
            latency,
            objects: RwLock::default(),
            heads: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            lists: AtomicU64::new(0),
        });
        let served = shared.clone();
        let server = Server::start(move |request| served.clone().answer(request)).await?;
        Ok(Self {
            shared,
            aws: Aws::at(&server.url()),
            _server: server,
        })
    }

    pub(crate) fn endpoint(&self) -> &str {
        self.aws.endpoint()
    }

    /// Stores an object, and returns it as its notification announces it.
    pub(crate) fn put(&self, bucket: &str, bundle: Bundle) -> ObjectRef {
        let mut hasher = DefaultHasher::new();
        bundle.bytes.hash(&mut hasher);
        let etag = format!("{:032x}", hasher.finish());
        let size = bundle.bytes.len() as u64;
        let announced = object(bucket, bundle.key, etag.clone(), Some(size));
        let stored = Object {
            bytes: bundle.bytes.into(),
            etag,
        };
        let mut objects = self.shared.objects.write();
        let objects = objects.as_mut().unwrap_or_else(|it| it.get_mut());
        objects.insert(announced.path(), stored);
        announced
    }

    /// Returns the number of requests since the start.
    pub(crate) fn requests(&self) -> Requests {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Requests {
            heads: of(&self.shared.heads),
            gets: of(&self.shared.gets),
            lists: of(&self.shared.lists),
        }
    }
}

impl Requests {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            heads: self.heads - before.heads,
            gets: self.gets - before.gets,
            lists: self.lists - before.lists,
        }
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer> {
        if !self.latency.is_zero() {
            sleep(self.latency).await;
        }
        let path = percent_decode_str(request.uri().path()).decode_utf8()?;
        let path = path.trim_start_matches('/');
        let is_head = request.method() == Method::HEAD;
        let Some((_, key)) = path.split_once('/').filter(|(_, key)| !key.is_empty()) else {
            self.lists.fetch_add(1, Ordering::Relaxed);
            let query = request.uri().query().unwrap_or_default();
            return self.list(path.trim_end_matches('/'), query);
        };
        let kind = if is_head { &self.heads } else { &self.gets };
        kind.fetch_add(1, Ordering::Relaxed);
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = objects.get(path).cloned() else {
            let text = format!("<Error><Code>NoSuchKey</Code><Key>{key}</Key></Error>");
            let text = if is_head { String::new() } else { text };
            let mut answer = Response::new(Bytes::from(text).into());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return Ok(answer);
        };
        drop(objects);
        let size = object.bytes.len();
        let range = range(request.headers(), size)?;
        let bytes = match &range {
            _ if is_head => Bytes::new(),
            Some(range) => object.bytes.slice(range.clone()),
            None => object.bytes,
        };
        let mut answer = Response::new(bytes.into());
        let headers = answer.headers_mut();
        headers.insert(ETAG, format!("\"{}\"", object.etag).parse()?);
        headers.insert(LAST_MODIFIED, MODIFIED.parse()?);
        headers.insert(ACCEPT_RANGES, "bytes".parse()?);
        if is_head {
            headers.insert(CONTENT_LENGTH, size.into());
        } else if let Some(Range { start, end }) = range {
            let range = format!("bytes {start}-{}/{size}", end.saturating_sub(1));
            headers.insert(CONTENT_RANGE, range.parse()?);
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Ok(answer)
    }

    /// Returns a page of a listing. The continuation token is a key.
    fn list(&self, bucket: &str, query: &str) -> Result<Answer> {
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|it| it.split_once('='));
            let value = pairs.find_map(|(it, value)| (it == name).then_some(value));
            percent_decode_str(value.unwrap_or_default()).decode_utf8()
        };
        let first = format!("{bucket}/");
        let (prefix, after) = (value("prefix")?, value("continuation-token")?);
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let keys = objects.range(first.clone()..).map_while(|(path, object)| {
            let key = path.strip_prefix(&first)?;
            Some((key, object))
        });
        let mut keys = keys
            .filter(|(key, _)| key.starts_with(&*prefix) && **key > *after)
            .take(PAGE + 1);
        let mut page = String::from(
            "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>",
        );
        write!(page, "{bucket}</Name>")?;
        let mut last = None;
        for (key, object) in keys.by_ref().take(PAGE) {
            write!(
                page,
                "<Contents><Key>{key}</Key><LastModified>2026-07-14T12:00:00.000Z</LastModified>\
                 <ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>",
                object.etag,
                object.bytes.len()
            )?;
            last = Some(key);
        }
        let more = keys.next().is_some();
        write!(page, "<IsTruncated>{more}</IsTruncated>")?;
        if let Some(last) = last.filter(|_| more) {
            write!(
                page,
                "<NextContinuationToken>{last}</NextContinuationToken>"
            )?;
        }
        page += "</ListBucketResult>";
        Ok(Response::new(Bytes::from(page).into()))
    }
}

/// Returns the requested range, or `None` for the whole object.
fn range(headers: &HeaderMap, size: usize) -> Result<Option<Range<usize>>> {
    let Some(range) = headers.get(RANGE) else {
        return Ok(None);
    };
    let range = range.to_str()?.strip_prefix("bytes=");
    let (start, end) = range
        .and_then(|it| it.split_once('-'))
        .context("not a valid range")?;
    let start = start.parse::<usize>()?.min(size);
    let end = if end.is_empty() {
        size
    } else {
        size.min(end.parse::<usize>()? + 1)
    };
    Ok(Some(start..end.max(start)))
}
