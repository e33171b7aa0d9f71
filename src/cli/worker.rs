//! Requests to the admin listener of a worker.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, Bytes, to_bytes};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::config::Config;

/// A healthy worker answers at once.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BYTES: usize = 1 << 20;

/// Returns the address at which a worker with this configuration listens on this machine; `None`
/// with port 0, which selects any free port.
pub(super) fn address_here(config: &Config) -> Option<String> {
    let mut listen = config.admin.listen;
    if listen.ip().is_unspecified() {
        listen.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    (listen.port() != 0).then(|| listen.to_string())
}

pub(super) async fn get(address: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    // Every worker answers to this name. It may refuse the one under which it was found.
    let request = Request::get(format!("http://{address}{path}"))
        .header(HOST, "localhost")
        .body(Body::empty())
        .with_context(|| format!("{address} is not a valid HOST:PORT"))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let answer = async {
        let response = client.request(request).await?;
        let status = response.status();
        let body = to_bytes(Body::new(response.into_body()), MAX_BYTES).await?;
        anyhow::Ok((status, body))
    };
    let answer = tokio::time::timeout(TIMEOUT, answer).await;
    answer
        .context("timed out")
        .flatten()
        .with_context(|| format!("failed to query the worker at {address}"))
}
