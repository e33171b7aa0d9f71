//! ClickHouse clients, one for each runtime.
//!
//! A client's connections are driven by the runtime that opened them, and every `#[tokio::test]`
//! has its own: a client that outlives its runtime would return dead connections. A client for each
//! query would be simplest, but each costs 20 ms, since it reads the system's certificates.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clickhouse::Client;
use tokio::runtime::{Handle, Id};

#[derive(Default)]
pub(crate) struct Clients(Mutex<HashMap<Id, Client>>);

impl Clients {
    pub(crate) fn of_this_runtime(&self, url: &str) -> Client {
        let fresh = || Client::default().with_url(url).with_user("default");
        match Handle::try_current() {
            Ok(runtime) => self
                .lock()
                .entry(runtime.id())
                .or_insert_with(fresh)
                .clone(),
            Err(_) => fresh(),
        }
    }

    pub(crate) fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} clients", self.lock().len())
    }
}
