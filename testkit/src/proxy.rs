//! An HTTP proxy that injects faults, between Sluice and ClickHouse or ClickHouse and S3.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures_util::stream::{self, Iter};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::watch;

use crate::serve::Server;

/// A fault to inject into a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed before the server receives the request.
    CutBeforeRequest,
    /// The server gets half of the body, then both connections are closed.
    CutInRequest,
    /// The server executes the request, and the connection is closed before its answer.
    CutBeforeResponse,
    /// Half of the answer's body is sent, and then the connection is closed.
    CutInResponse,
    /// The request is forwarded after a delay.
    Delay(Duration),
    /// The request is forwarded once [`Proxy::heal`] is called.
    Hold,
    /// The connection is closed, but the server receives the request after a delay, as if it had
    /// been stuck in the network.
    Late(Duration),
    /// The client gets this status with a page that names it. Nothing is forwarded.
    Status(u16),
    /// The client gets status 500 with this text. Nothing is forwarded.
    Error(&'static str),
    /// The client gets status 200 with this content. Nothing is forwarded.
    Content(&'static [u8]),
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::CutBeforeRequest => "cut before the request",
            Self::CutInRequest => "cut in the request",
            Self::CutBeforeResponse => "cut before the response",
            Self::CutInResponse => "cut in the response",
            Self::Delay(_) => "delayed",
            Self::Hold => "held",
            Self::Late(_) => "late",
            Self::Status(_) => "failed with a status",
            Self::Error(_) => "failed with an error",
            Self::Content(_) => "answered with substitute content",
        }
    }
}

/// The number of requests that have hit each fault.
type HitsByFault = BTreeMap<&'static str, usize>;

type Matcher = Box<dyn Fn(&Parts, &[u8]) -> bool + Send>;

struct Rule {
    matches: Matcher,
    fault: Fault,
    /// The number of requests that will still hit the fault.
    remaining: usize,
}

/// A proxy on a free port, which stops when it is dropped.
pub struct Proxy {
    server: Server,
    rules: Arc<Mutex<Vec<Rule>>>,
    hits: Arc<Mutex<HitsByFault>>,
    late: Arc<AtomicUsize>,
    healed: watch::Sender<()>,
}

struct Shared {
    upstream: String,
    client: Client<HttpConnector, Full<Bytes>>,
    rules: Arc<Mutex<Vec<Rule>>>,
    hits: Arc<Mutex<HitsByFault>>,
    late: Arc<AtomicUsize>,
    healed: watch::Sender<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Starts a proxy that forwards requests to `upstream`, such as `http://127.0.0.1:8123`.
    pub async fn start(upstream: &str) -> Result<Self> {
        let upstream = upstream
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let rules = Arc::new(Mutex::new(Vec::new()));
        let hits = Arc::new(Mutex::new(HitsByFault::new()));
        let late = Arc::new(AtomicUsize::new(0));
        let healed = watch::Sender::new(());
        let shared = Arc::new(Shared {
            upstream,
            client: Client::builder(TokioExecutor::new()).build_http(),
            rules: rules.clone(),
            hits: hits.clone(),
            late: late.clone(),
            healed: healed.clone(),
        });
        // An error closes the connection, as an injected fault requires.
        let server = Server::start(move |request| shared.clone().pass(request)).await?;
        Ok(Self {
            server,
            rules,
            hits,
            late,
            healed,
        })
    }

    /// Returns `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Applies the fault to the next `times` requests that match. Earlier rules come first.
    pub fn inject(
        &self,
        fault: Fault,
        times: usize,
        matches: impl Fn(&Parts, &[u8]) -> bool + Send + 'static,
    ) {
        lock(&self.rules).push(Rule {
            matches: Box::new(matches),
            fault,
            remaining: times,
        });
    }

    /// Stops injecting faults and forwards the requests that are held.
    pub fn heal(&self) {
        lock(&self.rules).clear();
        self.healed.send_replace(());
    }

    /// Returns the number of requests that have hit a fault.
    pub fn hits(&self) -> usize {
        lock(&self.hits).values().sum()
    }

    /// Returns the number of requests that have hit each fault.
    pub fn hits_by_fault(&self) -> BTreeMap<&'static str, usize> {
        lock(&self.hits).clone()
    }

    /// Returns the number of requests that will still reach the server late.
    pub fn late(&self) -> usize {
        self.late.load(Ordering::SeqCst)
    }
}

type Answer = Response<http_body_util::combinators::BoxBody<Bytes, io::Error>>;

fn full_response(status: StatusCode, body: Bytes) -> Answer {
    let mut response = Response::new(
        Full::new(body)
            .map_err(|never: Infallible| match never {})
            .boxed(),
    );
    *response.status_mut() = status;
    response
}

type Frames = Iter<std::vec::IntoIter<io::Result<Frame<Bytes>>>>;

/// Sends the first half of `bytes` under the full length, and then fails.
fn half(bytes: &Bytes) -> StreamBody<Frames> {
    let first = bytes.slice(..bytes.len() / 2);
    StreamBody::new(stream::iter(vec![
        Ok(Frame::data(first)),
        Err(io::Error::other("injected fault")),
    ]))
}

impl Shared {
    fn fault_for(&self, parts: &Parts, body: &[u8]) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let rule = rules
            .iter_mut()
            .find(|rule| rule.remaining > 0 && (rule.matches)(parts, body))?;
        rule.remaining -= 1;
        *lock(&self.hits).entry(rule.fault.name()).or_default() += 1;
        Some(rule.fault)
    }

    async fn pass(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        match self.fault_for(&parts, &body) {
            None => self.forward(parts, body).await,
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                self.forward(parts, body).await
            }
            Some(Fault::Status(status)) => {
                let status = StatusCode::from_u16(status)?;
                let page = format!("<html><title>{status}</title>injected</html>");
                Ok(full_response(status, page.into()))
            }
            Some(Fault::Hold) => {
                let mut healed = self.healed.subscribe();
                // The sender lives as long as `self`.
                healed.changed().await.ok();
                self.forward(parts, body).await
            }
            Some(Fault::Error(text)) => Ok(full_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                Bytes::from_static(text.as_bytes()),
            )),
            Some(Fault::Content(content)) => {
                Ok(full_response(StatusCode::OK, Bytes::from_static(content)))
            }
            Some(Fault::Late(delay)) => {
                // This needs a separate task, since the current one ends with the connection.
                self.late.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    // The result is not needed.
                    self.forward(parts, body).await.ok();
                    self.late.fetch_sub(1, Ordering::SeqCst);
                });
                anyhow::bail!("injected fault")
            }
            Some(Fault::CutBeforeRequest) => anyhow::bail!("injected fault"),
            Some(Fault::CutInRequest) => {
                self.forward_half(parts, &body).await;
                anyhow::bail!("injected fault")
            }
            Some(Fault::CutBeforeResponse) => {
                // The answer is read completely: by then the server has finished its work.
                self.forward(parts, body).await?;
                anyhow::bail!("injected fault")
            }
            Some(Fault::CutInResponse) => {
                let response = self.forward(parts, body).await?;
                let (parts, body) = response.into_parts();
                let body = body.collect().await?.to_bytes();
                Ok(Response::from_parts(parts, BodyExt::boxed(half(&body))))
            }
        }
    }

    async fn forward(&self, parts: Parts, body: Bytes) -> Result<Answer> {
        let response = self
            .client
            .request(self.upstream_request(parts, Full::new(body))?)
            .await?;
        let (parts, body) = response.into_parts();
        // The body is read completely, so that "before the response" means that all work is done.
        let head_length = parts.headers.get(CONTENT_LENGTH).cloned();
        let body = body.collect().await?.to_bytes();
        let mut answer = full_response(parts.status, body);
        *answer.headers_mut() = parts.headers;
        answer
            .headers_mut()
            .remove(hyper::header::TRANSFER_ENCODING);
        if let Some(length) = head_length {
            answer.headers_mut().insert(CONTENT_LENGTH, length);
        }
        Ok(answer)
    }

    async fn forward_half(&self, parts: Parts, body: &Bytes) {
        let client: Client<HttpConnector, _> = Client::builder(TokioExecutor::new()).build_http();
        if let Ok(request) = self.upstream_request(parts, half(body)) {
            client.request(request).await.ok();
        }
    }

    fn upstream_request<B>(&self, parts: Parts, body: B) -> Result<Request<B>> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(parts.method)
            .uri(format!("http://{}{path}", self.upstream))
            .body(body)?;
        *request.headers_mut() = parts.headers;
        // The signature of an S3 request covers the original host.
        if !request.headers().contains_key(HOST) {
            request.headers_mut().insert(HOST, self.upstream.parse()?);
        }
        Ok(request)
    }
}
