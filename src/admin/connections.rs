//! Connections of the admin listener. Their number is limited, silent ones are closed, and requests
//! under a foreign host name are refused.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

/// A client that has not sent the head of a request within this time is disconnected.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The limit of open connections. Each takes a file descriptor, and the connections to SQS and
/// ClickHouse need some, too.
const MAX_CONNECTIONS: usize = 100;
/// The pause after a failure to accept a connection, such as for lack of file descriptors.
const PAUSE: Duration = Duration::from_secs(1);

struct Connection {
    task: AbortHandle,
    /// Whether it has not sent a request yet.
    is_silent: Arc<AtomicBool>,
}

/// Serves forever. The connections end when this future is dropped.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Router,
    allowed_hosts: Vec<String>,
) -> Infallible {
    let allowed_hosts: Arc<[String]> = allowed_hosts.into();
    let mut tasks = JoinSet::new();
    let mut open: Vec<Connection> = Vec::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "failed to accept a connection to the admin listener; retrying");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            let silent = |it: &Connection| it.is_silent.load(Ordering::Relaxed);
            // If none of them is silent, the new one is refused.
            let Some(oldest) = open.iter().position(silent) else {
                continue;
            };
            open.remove(oldest).task.abort();
        }
        let is_silent = Arc::new(AtomicBool::new(true));
        let connection = answer(
            stream,
            routes.clone(),
            allowed_hosts.clone(),
            is_silent.clone(),
        );
        let task = tasks.spawn(connection);
        open.push(Connection { task, is_silent });
    }
}

async fn answer(
    stream: TcpStream,
    routes: Router,
    allowed_hosts: Arc<[String]>,
    is_silent: Arc<AtomicBool>,
) {
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(|request: Request<Incoming>| {
        is_silent.store(false, Ordering::Relaxed);
        let host = request.headers().get(header::HOST);
        // A client that sends none is not a browser.
        let is_allowed = host.is_none_or(|host| {
            let host = host.to_str().unwrap_or_default();
            is_own(host, &allowed_hosts)
        });
        let routed = is_allowed.then(|| routes.call(request));
        async move {
            match routed {
                Some(response) => response.await,
                None => Ok(refusal()),
            }
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        debug!(%error, "a connection to the admin listener ended");
    }
}

/// Returns whether a page under this host can be the worker's own. Otherwise, the page of another
/// site could make a browser read the listener, under a name that resolves to it (DNS rebinding).
fn is_own(host: &str, allowed_hosts: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    let is_allowed = |allowed: &String| allowed.eq_ignore_ascii_case(name);
    literal.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || allowed_hosts.iter().any(is_allowed)
}

fn refusal() -> Response {
    let text = "this host name is not allowed: use the address of the listener, or add the name to \
                `admin.allowed_hosts`\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_what_is_allowed_are_own_hosts() {
        let allowed = ["sluice.internal".to_owned()];
        for host in [
            "127.0.0.1:9464",
            "10.1.2.3",
            "[::1]:9464",
            "[::1]",
            "localhost:9464",
            "LOCALHOST",
            "sluice.internal:80",
            "Sluice.Internal",
        ] {
            assert!(is_own(host, &allowed), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:9464",
            "127.0.0.1.evil.example",
            "sluice.internal.evil.example",
        ] {
            assert!(!is_own(host, &allowed), "{host}");
        }
    }
}
