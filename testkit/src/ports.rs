//! Free ports on loopback, and minimal HTTP requests.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

const PATIENCE: Duration = Duration::from_secs(2);

/// Returns a port of 127.0.0.1 that was free just now. Another program may take it before it is
/// used, so callers must be ready to try another one.
///
/// # Errors
///
/// Fails if no port can be bound.
pub fn free_port() -> Result<u16> {
    Ok(listen()?.local_addr()?.port())
}

/// Returns different ports, each as [`free_port`] does.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All are held until the last is found, so that none is found twice.
    let listeners: Vec<TcpListener> = (0..count).map(|_| listen()).collect::<Result<_>>()?;
    let ports = listeners.iter().map(|it| Ok(it.local_addr()?.port()));
    ports.collect()
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind a port on 127.0.0.1")
}

/// Returns the answer to `GET path`, head and body; `None` if there is no answer.
pub(crate) fn get(port: u16, path: &str) -> Option<String> {
    // HTTP/1.0, so that the answer is not chunked and ends with the connection.
    ask(
        port,
        &format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n"),
    )
}

/// Returns the answer to `POST /` with this body, head and body; `None` if there is no answer.
/// `url` is `http://127.0.0.1:PORT`.
pub(crate) fn post(url: &str, body: &str) -> Option<String> {
    let port = url.rsplit_once(':')?.1.parse().ok()?;
    let length = body.len();
    ask(
        port,
        &format!("POST / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"),
    )
}

/// Returns the whole answer to a request; `None` if there is no answer.
pub(crate) fn ask(port: u16, request: &str) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}
