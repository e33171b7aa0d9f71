//! An S3 that only lists: it generates any number of keys on request.

use std::convert::Infallible;
use std::fmt::Write;

use anyhow::Result;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};

use crate::serve::{Answer, Server};

/// The page size of AWS.
const PAGE: u64 = 1000;

/// The server, which stops when this is dropped.
#[derive(Debug)]
pub struct Listing {
    server: Server,
}

impl Listing {
    /// Lists `objects` objects in any bucket.
    ///
    /// # Errors
    ///
    /// Fails if no port is free.
    pub async fn start(objects: u64) -> Result<Self> {
        let server = Server::start(move |request| answer(request, objects)).await?;
        Ok(Self { server })
    }

    /// Returns `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns the key of an object.
    #[must_use]
    pub fn key(number: u64) -> String {
        format!(
            "section/{}/video/2026/07/14/{number:09}.jsonl.gz",
            number % 100
        )
    }

    /// Returns the etag of an object.
    #[must_use]
    pub fn etag(number: u64) -> String {
        format!("{number:032x}")
    }
}

async fn answer(request: Request<Incoming>, objects: u64) -> Result<Answer, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    let token = query
        .split('&')
        .find_map(|it| it.strip_prefix("continuation-token="));
    let first: u64 = token.and_then(|token| token.parse().ok()).unwrap_or(0);
    let end = (first + PAGE).min(objects);
    let mut page = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
    );
    for number in first..end {
        let (key, etag) = (Listing::key(number), Listing::etag(number));
        // Writing into a string cannot fail.
        write!(
            page,
            "<Contents><Key>{key}</Key><LastModified>2026-07-14T08:00:00.000Z</LastModified>\
             <ETag>&quot;{etag}&quot;</ETag><Size>20000</Size></Contents>"
        )
        .ok();
    }
    if end < objects {
        write!(page, "<NextContinuationToken>{end}</NextContinuationToken>").ok();
    }
    page.push_str("</ListBucketResult>");
    let response = Response::new(Bytes::from(page).into());
    Ok(response)
}
