//! S3 and SQS on loopback: ministack under the launcher.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::account;
use crate::install::install;
use crate::launch::{Mode, Place, Process, Started, start_on_free_port, tail};
use crate::ports::get;

/// S3 and SQS, which stop when this is dropped. They accept any credentials; the tests use
/// `test`/`test`.
#[derive(Debug)]
pub struct Aws {
    /// Empty for AWS itself.
    endpoint: String,
    process: Option<Process>,
    is_account: bool,
}

/// A user's credentials.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// The access key's ID.
    pub id: String,
    /// The secret access key.
    pub secret: String,
}

/// A policy that allows reading a bucket.
fn allow_read(bucket: &str) -> serde_json::Value {
    let bucket = format!("arn:aws:s3:::{bucket}");
    serde_json::json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [bucket, format!("{bucket}/*")],
    }]})
}

/// Returns the text of the first element of this name.
fn element(xml: &str, name: &str) -> Result<String> {
    let (_, rest) = xml
        .split_once(&format!("<{name}>"))
        .with_context(|| format!("no {name} in {xml}"))?;
    Ok(rest.split('<').next().unwrap_or_default().to_owned())
}

impl Aws {
    /// Starts the server on a free port, and waits until it answers.
    ///
    /// # Errors
    ///
    /// Fails if the server cannot be installed or started; the error includes the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(None)
    }

    /// Starts the same with access control: requests must be signed by a user with the permission,
    /// such as that of [`Aws::create_reader`]. `test` has all permissions.
    ///
    /// # Errors
    ///
    /// Fails as [`Aws::start`] does.
    pub fn start_strict() -> Result<Self> {
        Self::start_with(Some(("AUTH", String::from("true"))))
    }

    fn start_with(variable: Option<(&'static str, String)>) -> Result<Self> {
        let installed = install()?;
        let start = |place: &Place<'_>, directory: &Path, port: u16| {
            let inside = |name: &str| directory.join(name).display().to_string();
            let mut environment = vec![
                ("BIND_HOST", String::from("127.0.0.1")),
                ("GATEWAY_PORT", port.to_string()),
                // By default it would use fixed directories under /tmp and leave them there.
                ("TMPDIR", directory.display().to_string()),
                ("STATE_DIR", inside("state")),
                ("S3_DATA_DIR", inside("s3")),
                ("LOG_LEVEL", String::from("INFO")),
            ];
            environment.extend(variable.clone());
            let place = Place {
                environment: &environment,
                ..*place
            };
            Process::start(&installed, &Mode::Ministack, &place)
        };
        // The server logs its own port, so that another program on the port is not mistaken for it.
        let Started { process, port, .. } = start_on_free_port("ministack", start, |log, port| {
            tail(log).contains(&format!("Running on http://127.0.0.1:{port}"))
                && get(port, "/_ministack/health").is_some()
        })?;
        Ok(Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            process: Some(process),
            is_account: false,
        })
    }

    /// Uses a server that was started elsewhere.
    pub fn at(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            process: None,
            is_account: false,
        }
    }

    /// Uses the account of the environment, as every program with an AWS SDK does. `AWS_ENDPOINT_URL`
    /// can name a stand-in for it.
    pub fn account() -> Self {
        let endpoint = std::env::var("AWS_ENDPOINT_URL").unwrap_or_default();
        Self {
            is_account: true,
            ..Self::at(&endpoint)
        }
    }

    /// Returns whether this is an account whose buckets and queues must be removed.
    pub fn is_account(&self) -> bool {
        self.is_account
    }

    /// Returns the endpoint of S3 for ClickHouse, or `None` for AWS itself.
    pub fn s3_endpoint(&self) -> Option<&str> {
        (!self.endpoint.is_empty()).then_some(&*self.endpoint)
    }

    /// Returns `s3.clickhouse_access` for a ClickHouse that reads all buckets.
    ///
    /// # Errors
    ///
    /// Fails if the environment has no access for the account.
    pub fn s3_access(&self) -> Result<serde_json::Value> {
        if self.is_account {
            return account::s3_access();
        }
        Ok(serde_json::json!({
            "kind": "keys", "access_key_id": "test", "secret_access_key": "test",
        }))
    }

    /// Returns the address of every service, without a trailing slash.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns the pids of the launcher and of the server, or `None` if the server was started
    /// elsewhere.
    pub fn pids(&self) -> Vec<u32> {
        self.process
            .as_ref()
            .map(|process| process.pids().to_vec())
            .unwrap_or_default()
    }

    /// Creates an S3 client. Its connections belong to the runtime that uses it, so every test
    /// creates its own.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        let configuration = aws_sdk_s3::config::Builder::from(&self.configuration())
            .force_path_style(true)
            .build();
        aws_sdk_s3::Client::from_conf(configuration)
    }

    /// Creates an SQS client, which also belongs to one runtime.
    pub fn sqs(&self) -> aws_sdk_sqs::Client {
        aws_sdk_sqs::Client::new(&self.configuration())
    }

    /// Returns the environment that directs an AWS SDK in another process to this server. For an
    /// account, it is that of this process.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        if self.is_account {
            return account::environment();
        }
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", String::from("test")),
            ("AWS_SECRET_ACCESS_KEY", String::from("test")),
            ("AWS_REGION", String::from("us-east-1")),
        ]
    }

    /// Creates a user who may read this bucket and nothing else.
    ///
    /// # Errors
    ///
    /// Fails with the error that AWS returned.
    pub async fn create_reader(&self, bucket: &str) -> Result<AccessKey> {
        let policy = allow_read(bucket).to_string();
        self.iam(&[("Action", "CreateUser"), ("UserName", bucket)])
            .await?;
        self.iam(&[
            ("Action", "PutUserPolicy"),
            ("UserName", bucket),
            ("PolicyName", "read"),
            ("PolicyDocument", &policy),
        ])
        .await?;
        let answer = self
            .iam(&[("Action", "CreateAccessKey"), ("UserName", bucket)])
            .await?;
        Ok(AccessKey {
            id: element(&answer, "AccessKeyId")?,
            secret: element(&answer, "SecretAccessKey")?,
        })
    }

    /// Makes the bucket publicly readable.
    ///
    /// # Errors
    ///
    /// Fails with the error that AWS returned.
    pub async fn make_public(&self, bucket: &str) -> Result<()> {
        let s3 = self.s3();
        s3.delete_public_access_block()
            .bucket(bucket)
            .send()
            .await?;
        let mut policy = allow_read(bucket);
        policy["Statement"][0]["Principal"] = "*".into();
        s3.put_bucket_policy()
            .bucket(bucket)
            .policy(policy.to_string())
            .send()
            .await?;
        Ok(())
    }

    /// Sends one request to IAM as root, whose signature is not checked. The SDK for IAM is ten
    /// times the size of this crate.
    async fn iam(&self, form: &[(&str, &str)]) -> Result<String> {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let body: Vec<String> = form
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect();
        let request = Request::post(&self.endpoint)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header(
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/iam/aws4_request, \
                 SignedHeaders=host, Signature=0",
            )
            .body(Full::new(Bytes::from(body.join("&"))))?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await?;
        let status = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(status.is_success(), "IAM returned {status}: {text}");
        Ok(text)
    }

    /// Returns the configuration with which an AWS SDK in this process uses this server.
    pub fn configuration(&self) -> SdkConfig {
        if self.is_account {
            return account::configuration();
        }
        let credentials = Credentials::new("test", "test", None, None, "testkit");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(&self.endpoint)
            .build()
    }
}
