//! S3 and SQS on loopback: ministack under the launcher.

use std::time::Duration;

use anyhow::{Result, bail};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};

use crate::install::install;
use crate::launch::{Mode, Place, Process, tail};
use crate::ports::{free_port, get};

const START_BOUND: Duration = Duration::from_secs(60);
const TRIES: usize = 5;

/// S3 and SQS that end when this is dropped. Any credentials are good; `test`/`test` are used.
#[derive(Debug)]
pub struct Aws {
    endpoint: String,
    process: Option<Process>,
}

impl Aws {
    /// Starts it on a port of its own, and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it cannot be installed or started; the text has the end of its log.
    pub fn start() -> Result<Self> {
        let installed = install()?;
        let directory = tempfile::Builder::new()
            .prefix("sluice-aws-")
            .tempdir()?
            .keep();
        let log = directory.join("output.log");
        for _ in 0..TRIES {
            let port = free_port()?;
            let inside = |name: &str| directory.join(name).display().to_string();
            let environment = [
                ("BIND_HOST", String::from("127.0.0.1")),
                ("GATEWAY_PORT", port.to_string()),
                // It would use fixed directories under /tmp and leave them there.
                ("TMPDIR", directory.display().to_string()),
                ("STATE_DIR", inside("state")),
                ("S3_DATA_DIR", inside("s3")),
                ("LOG_LEVEL", String::from("INFO")),
            ];
            let place = Place {
                directory: Some(&directory),
                log: &log,
                environment: &environment,
                grace: Duration::ZERO,
            };
            let mut process = Process::start(&installed, &Mode::Ministack, &place)?;
            // It says in its log which port is its own; a stranger on the port cannot say that.
            let own = format!("Running on http://127.0.0.1:{port}");
            let serves = process.wait_until("ministack", START_BOUND, || {
                tail(&log).contains(&own) && get(port, "/_ministack/health").is_some()
            })?;
            if serves {
                return Ok(Self {
                    endpoint: format!("http://127.0.0.1:{port}"),
                    process: Some(process),
                });
            }
        }
        let log = tail(&log);
        drop(std::fs::remove_dir_all(&directory));
        bail!("ministack did not start; its log ends with:\n{log}")
    }

    /// One that somebody else runs.
    pub fn at(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            process: None,
        }
    }

    /// The address of every service, without a slash at the end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The pids of the launcher and of the server; none when it is not ours.
    pub fn pids(&self) -> Vec<u32> {
        self.process
            .as_ref()
            .map(|process| process.pids().to_vec())
            .unwrap_or_default()
    }

    /// A new S3 client. Its connections belong to the runtime that uses it, so every test makes
    /// its own.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        let configuration = aws_sdk_s3::config::Builder::from(&self.configuration())
            .force_path_style(true)
            .build();
        aws_sdk_s3::Client::from_conf(configuration)
    }

    /// A new SQS client, for one runtime as well.
    pub fn sqs(&self) -> aws_sdk_sqs::Client {
        aws_sdk_sqs::Client::new(&self.configuration())
    }

    /// The environment that makes an AWS SDK in another process use this.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", String::from("test")),
            ("AWS_SECRET_ACCESS_KEY", String::from("test")),
            ("AWS_REGION", String::from("us-east-1")),
        ]
    }

    fn configuration(&self) -> SdkConfig {
        let credentials = Credentials::new("test", "test", None, None, "testkit");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(&self.endpoint)
            .build()
    }
}
