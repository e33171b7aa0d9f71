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

/// A user of ClickHouse.
#[derive(Clone, Debug)]
pub struct User {
    pub name: String,
    pub password: String,
}

impl Default for User {
    /// Returns the user `default`, without a password.
    fn default() -> Self {
        Self {
            name: String::from("default"),
            password: String::new(),
        }
    }
}

#[derive(Default)]
pub(crate) struct Clients(Mutex<HashMap<Id, Client>>);

impl Clients {
    pub(crate) fn of_this_runtime(&self, url: &str, user: &User) -> Client {
        let fresh = || {
            let client = Client::default().with_url(url).with_user(&user.name);
            match user.password.as_str() {
                "" => client,
                password => client.with_password(password),
            }
        };
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
