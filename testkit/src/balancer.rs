//! A TCP load balancer that forwards each new connection to the next server (round robin).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A balancer, which accepts no more connections once it is dropped.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    servers: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Balancer {
    /// Forwards connections to these servers, such as `http://127.0.0.1:8123`, in turn.
    ///
    /// # Errors
    ///
    /// Fails if no port is free.
    pub async fn start(urls: &[&str]) -> Result<Self> {
        Self::start_at("127.0.0.1:0", urls).await
    }

    /// Listens at the given address instead of a free port.
    ///
    /// # Errors
    ///
    /// Fails if the address cannot be bound.
    pub async fn start_at(address: &str, urls: &[&str]) -> Result<Self> {
        let listener = TcpListener::bind(address).await.context("no free port")?;
        let address = listener.local_addr()?;
        let servers = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(forward(listener, servers.clone()));
        let balancer = Self {
            address,
            servers,
            task,
        };
        balancer.set_servers(urls);
        Ok(balancer)
    }

    /// Forwards new connections to these servers from now on.
    pub fn set_servers(&self, urls: &[&str]) {
        let hosts = urls.iter().map(|url| url.trim_start_matches("http://"));
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) =
            hosts.map(str::to_owned).collect();
    }

    /// Returns `http://ADDRESS:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(listener: TcpListener, servers: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let server = {
            let mut servers = servers.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(next) = servers.first().cloned() else {
                continue;
            };
            servers.rotate_left(1);
            next
        };
        tokio::spawn(async move {
            // Connections end with whichever side closes them.
            if let Ok(mut server) = TcpStream::connect(server).await {
                tokio::io::copy_bidirectional(&mut client, &mut server)
                    .await
                    .ok();
            }
        });
    }
}
