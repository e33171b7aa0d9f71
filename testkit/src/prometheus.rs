//! A Prometheus that watches workers on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::install::{install, install_prometheus};
use crate::launch::{Mode, Place, Process, tail};
use crate::ports::{free_port, get};

const START_BOUND: Duration = Duration::from_secs(180);
const TRIES: usize = 5;

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    _process: Process,
}

impl Prometheus {
    /// Scrapes `/metrics` of these every second.
    ///
    /// # Errors
    ///
    /// When it cannot be installed or started; the text has the end of its log.
    pub fn start(workers: &[SocketAddr]) -> Result<Self> {
        let program = install_prometheus()?.join("prometheus");
        let directory = tempfile::Builder::new()
            .prefix("sluice-prometheus-")
            .tempdir()?
            .keep();
        let log = directory.join("output.log");
        let file = directory.join("prometheus.yaml");
        // JSON is YAML.
        let config = json!({
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "sluice", "static_configs": [{"targets": workers}]}],
        });
        std::fs::write(&file, config.to_string())?;
        for _ in 0..TRIES {
            let port = free_port()?;
            let arguments = [
                format!("--config.file={}", file.display()),
                format!("--storage.tsdb.path={}", directory.join("data").display()),
                format!("--web.listen-address=127.0.0.1:{port}"),
            ];
            let place = Place {
                directory: Some(&directory),
                log: &log,
                environment: &[],
                grace: Duration::ZERO,
            };
            let mode = Mode::Command(&program, &arguments);
            let mut process = Process::start(&install()?, &mode, &place)?;
            let serves = process.wait_until("Prometheus", START_BOUND, || {
                get(port, "/-/ready").is_some_and(|answer| answer.contains(" 200 "))
            })?;
            if serves {
                return Ok(Self {
                    port,
                    _process: process,
                });
            }
        }
        let log = tail(&log);
        drop(std::fs::remove_dir_all(&directory));
        bail!("Prometheus did not start; its log ends with:\n{log}")
    }

    /// The series that an expression gives now.
    ///
    /// # Errors
    ///
    /// When it is no expression; the text is Prometheus' own.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let query = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let answer = get(self.port, &format!("/api/v1/query?query={query}"));
        let answer = answer.context("no answer from Prometheus")?;
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
