//! A Prometheus that scrapes workers on loopback.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::install::{install, install_prometheus};
use crate::launch::{Mode, Place, Process, Started, start_on_free_port};
use crate::ports::get;

/// A Prometheus, which stops when it is dropped.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    _process: Process,
}

impl Prometheus {
    /// Starts a server that scrapes `/metrics` of these addresses every second.
    ///
    /// # Errors
    ///
    /// Fails if the server cannot be installed or started; the error includes the end of its log.
    pub fn start(workers: &[SocketAddr]) -> Result<Self> {
        let program = install_prometheus()?.join("prometheus");
        let installed = install()?;
        // JSON is YAML.
        let config = json!({
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "sluice", "static_configs": [{"targets": workers}]}],
        });
        let start = |place: &Place<'_>, directory: &Path, port: u16| {
            let file = directory.join("prometheus.yaml");
            std::fs::write(&file, config.to_string())?;
            let arguments = [
                format!("--config.file={}", file.display()),
                format!("--storage.tsdb.path={}", directory.join("data").display()),
                format!("--web.listen-address=127.0.0.1:{port}"),
            ];
            Process::start(&installed, &Mode::Command(&program, &arguments), place)
        };
        let Started { process, port, .. } = start_on_free_port("Prometheus", start, |_, port| {
            get(port, "/-/ready").is_some_and(|answer| answer.contains(" 200 "))
        })?;
        Ok(Self {
            port,
            _process: process,
        })
    }

    /// Returns the current series of an expression.
    ///
    /// # Errors
    ///
    /// Fails with Prometheus' error if the expression is not valid.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let query = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let answer = get(self.port, &format!("/api/v1/query?query={query}"));
        let answer = answer.context("no response from Prometheus")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        let mut body: Value = serde_json::from_str(body)?;
        ensure!(
            body["status"] == "success",
            "{expression}: {}",
            body["error"]
        );
        match body["data"]["result"].take() {
            Value::Array(series) => Ok(series),
            other => bail!("{expression}: {other}"),
        }
    }
}
