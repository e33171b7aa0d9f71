//! Headless Chromium with one page, controlled through the DevTools protocol.
//!
//! The protocol runs over a pipe: no port is needed, and the browser exits with this process.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::install;
use crate::launch::tail;

/// The protocol uses the descriptors 3 and 4.
const SCRIPT: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#;
const FLAGS: [&str; 11] = [
    "--headless",
    "--remote-debugging-pipe",
    // A container is a sufficient sandbox and often allows no other. Its /dev/shm can be small.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// A running browser and the events of its page.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    directory: TempDir,
    session: Option<String>,
    calls: u64,
    problems: Vec<String>,
    requests: Vec<String>,
}

impl Browser {
    /// Starts a browser, and installs it if necessary.
    ///
    /// # Errors
    ///
    /// Fails if there is no browser or it does not start.
    pub async fn start() -> Result<Self> {
        let chromium = tokio::task::spawn_blocking(install::chromium).await??;
        let directory = tempfile::Builder::new()
            .prefix("sluice-chromium-")
            .tempdir()?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let mut process = Command::new("sh")
            .args(["-c", SCRIPT])
            .arg(&chromium)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", directory.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", chromium.display()))?;
        let input = process
            .stdin
            .take()
            .context("its standard input is a pipe")?;
        let output = process
            .stdout
            .take()
            .context("its standard output is a pipe")?;
        let mut browser = Self {
            process,
            input,
            output: BufReader::new(output),
            directory,
            session: None,
            calls: 0,
            problems: Vec::new(),
            requests: Vec::new(),
        };
        browser.attach().await?;
        Ok(browser)
    }

    async fn attach(&mut self) -> Result<()> {
        let target = self
            .call("Target.createTarget", json!({"url": "about:blank"}))
            .await?;
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call("Target.attachToTarget", target).await?;
        let session = attached["sessionId"].as_str().context("no session")?;
        self.session = Some(session.to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), json!({})).await?;
        }
        Ok(())
    }

    /// Opens a page without waiting until it is loaded.
    ///
    /// # Errors
    ///
    /// Fails if nothing answers at the address.
    pub async fn open(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({"url": url})).await?;
        let error = &answer["errorText"];
        ensure!(error.is_null(), "cannot open {url}: {error}");
        Ok(())
    }

    /// Evaluates an expression in the page and returns its value.
    ///
    /// # Errors
    ///
    /// Fails if the expression throws.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", parameters).await?;
        let thrown = &answer["exceptionDetails"];
        ensure!(thrown.is_null(), "the page throws {thrown}");
        Ok(answer["result"]["value"].take())
    }

    /// Sets the page's width and the number of device pixels per CSS pixel.
    ///
    /// # Errors
    ///
    /// Fails if the browser returns an error.
    pub async fn resize(&mut self, width: u32, device_pixel_ratio: u32) -> Result<()> {
        let metrics = json!({
            "width": width, "height": 900, "deviceScaleFactor": device_pixel_ratio, "mobile": device_pixel_ratio > 1,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics)
            .await?;
        Ok(())
    }

    /// Sets the preferred color scheme: `dark` or `light`.
    ///
    /// # Errors
    ///
    /// Fails if the browser returns an error.
    pub async fn set_color_scheme(&mut self, scheme: &str) -> Result<()> {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let media = json!({"features": features});
        self.call("Emulation.setEmulatedMedia", media).await?;
        Ok(())
    }

    /// Writes a screenshot of the whole page as a PNG.
    ///
    /// # Errors
    ///
    /// Fails if the browser returns an error or the file cannot be written.
    pub async fn screenshot(&mut self, path: &Path) -> Result<()> {
        let size = "[document.documentElement.clientWidth, document.documentElement.scrollHeight]";
        let size = self.evaluate(size).await?;
        let clip = json!({"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1});
        let parameters = json!({"captureBeyondViewport": true, "clip": clip});
        let answer = self.call("Page.captureScreenshot", parameters).await?;
        let encoded = answer["data"].as_str().context("no screenshot")?;
        let image = BASE64_STANDARD.decode(encoded)?;
        std::fs::write(path, image).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns the errors and warnings of the page, and the dialogs that it opened.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Returns the URLs that the page requested.
    pub fn requests(&self) -> &[String] {
        &self.requests
    }

    /// Closes the browser and waits for it to exit.
    ///
    /// # Errors
    ///
    /// Fails if the browser does not exit.
    pub async fn close(mut self) -> Result<()> {
        self.session = None;
        self.call("Browser.close", json!({})).await?;
        self.process.wait().await?;
        Ok(self.directory.close()?)
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.calls += 1;
        let mut call = json!({"id": self.calls, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            call["sessionId"] = json!(session);
        }
        let mut message = call.to_string().into_bytes();
        message.push(0);
        self.input.write_all(&message).await?;
        loop {
            let mut message = self.next().await?;
            if message["id"] != self.calls {
                self.record_event(&message);
                continue;
            }
            let error = &message["error"];
            ensure!(error.is_null(), "{method}: {error}");
            return Ok(message["result"].take());
        }
    }

    async fn next(&mut self) -> Result<Value> {
        let mut message = Vec::new();
        self.output.read_until(0, &mut message).await?;
        if message.pop() != Some(0) {
            let log = tail(&self.directory.path().join("log"));
            bail!("the browser exited; its log ends with:\n{log}");
        }
        Ok(serde_json::from_slice(&message)?)
    }

    fn record_event(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => {
                let url = parameters["request"]["url"].as_str();
                self.requests.push(url.unwrap_or_default().to_owned());
            }
            "Log.entryAdded"
            | "Runtime.exceptionThrown"
            | "Runtime.consoleAPICalled"
            | "Page.javascriptDialogOpening" => self.problems.push(parameters.to_string()),
            _ => {}
        }
    }
}
