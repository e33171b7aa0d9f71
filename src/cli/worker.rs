//! Asking a worker by its admin listener.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, Bytes, to_bytes};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::config::Config;

/// A worker that is well answers at once.
const PATIENCE: Duration = Duration::from_secs(5);
const MOST_BYTES: usize = 1 << 20;

/// Where a worker of this configuration listens, on this machine. On port 0 it is wherever there
/// was room.
pub(super) fn address_here(config: &Config) -> Option<String> {
    let mut listen = config.admin.listen;
    if listen.ip().is_unspecified() {
        listen.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    (listen.port() != 0).then(|| listen.to_string())
}

pub(super) async fn get(address: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    // Under no name of its own: it need not know by which one it was found.
    let request = Request::get(format!("http://{address}{path}"))
        .header(HOST, "localhost")
        .body(Body::empty())
        .with_context(|| format!("{address} is no HOST:PORT"))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let answer = async {
        let response = client.request(request).await?;
        let status = response.status();
        let body = to_bytes(Body::new(response.into_body()), MOST_BYTES).await?;
        anyhow::Ok((status, body))
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    answer
        .context("no answer in time")
        .flatten()
        .with_context(|| format!("the worker at {address} does not answer"))
}
