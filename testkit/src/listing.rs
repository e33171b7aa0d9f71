//! An S3 that has nothing but a listing: any number of keys, made up as they are asked for.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// As on AWS.
const PAGE: u64 = 1000;

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct Listing {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Listing {
    /// Lists so many objects, in whatever bucket it is asked.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn start(objects: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port")?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request| answer(request, objects));
                tokio::spawn(async move {
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Ok(Self { address, task })
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The key of an object.
    #[must_use]
    pub fn key(number: u64) -> String {
        format!(
            "section/{}/video/2026/07/14/{number:09}.jsonl.gz",
            number % 100
        )
    }

    /// The etag of an object.
    #[must_use]
    pub fn etag(number: u64) -> String {
        format!("{number:032x}")
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    objects: u64,
) -> Result<Response<Full<Bytes>>, Infallible> {
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
    let response = Response::new(Full::new(Bytes::from(page)));
    Ok(response)
}
