//! An AWS account of the user's, for tests that are asked to run there (docs/testing.md).
//!
//! Whatever is created has a name that begins with [`PREFIX`], and is removed when its
//! [`Resources`] are dropped, even if the test fails. What a killed test leaves behind is removed by
//! [`remove_leftovers`].

use std::collections::BTreeSet;
use std::thread;

use anyhow::{Context, Result};
use aws_config::{BehaviorVersion, SdkConfig};

/// The environment variable that, if it is `1`, makes tests use the AWS account of the environment.
pub const ACCOUNT_VARIABLE: &str = "SLUICE_TEST_AWS";
/// The environment variable with the access of that ClickHouse to S3, as `s3.clickhouse_access` in
/// JSON. By default, it has the keys of the environment.
pub const S3_ACCESS_VARIABLE: &str = "SLUICE_TEST_S3_ACCESS";
/// The beginning of the names of buckets and queues. Those of databases have underscores.
pub const PREFIX: &str = "sluice-test-";

/// The variables by which an AWS SDK finds account, region and endpoint.
const VARIABLES: [&str; 14] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
];

/// Returns whether tests are to use an AWS account.
pub fn is_requested() -> bool {
    std::env::var_os(ACCOUNT_VARIABLE).is_some_and(|value| value == "1")
}

/// Returns those of [`VARIABLES`] that are set, for a process that inherits none.
pub(crate) fn environment() -> Vec<(&'static str, String)> {
    let set = VARIABLES.iter();
    set.filter_map(|name| Some((*name, std::env::var(name).ok()?)))
        .collect()
}

/// Returns the configuration of the SDK's own chain: variables, profiles, and the rest.
pub(crate) fn configuration() -> SdkConfig {
    blocking(async { aws_config::defaults(BehaviorVersion::latest()).load().await })
}

/// Runs this on a runtime of its own, whether the caller is asynchronous or not.
pub(crate) fn blocking<T: Send>(work: impl Future<Output = T> + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime starts").block_on(work)
    };
    thread::scope(|scope| scope.spawn(run).join()).expect("it does not panic")
}

/// Returns `s3.clickhouse_access` of a ClickHouse that reads the account's buckets.
pub(crate) fn s3_access() -> Result<serde_json::Value> {
    let variable = |name| std::env::var(name).ok();
    if let Some(access) = variable(S3_ACCESS_VARIABLE) {
        return serde_json::from_str(&access)
            .with_context(|| format!("{S3_ACCESS_VARIABLE} is not valid JSON"));
    }
    let keys = variable("AWS_ACCESS_KEY_ID").zip(variable("AWS_SECRET_ACCESS_KEY"));
    let (id, secret) = keys.with_context(|| {
        format!(
            "ClickHouse cannot read the buckets: set {S3_ACCESS_VARIABLE}, or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY"
        )
    })?;
    Ok(serde_json::json!({
        "kind": "keys", "access_key_id": id, "secret_access_key": secret,
    }))
}

/// A bucket, and the queues whose names begin with its name. They are removed when this is dropped.
#[derive(Debug)]
pub struct Resources {
    pub(crate) name: String,
}

impl Drop for Resources {
    fn drop(&mut self) {
        let configuration = configuration();
        let removed = blocking(async {
            let queues = remove_queues(&configuration, &self.name).await;
            let bucket = remove_bucket(&s3(&configuration), &self.name).await;
            queues.and(bucket)
        });
        if let Err(error) = removed {
            warn(&format!("{} is not removed: {error:#}", self.name));
        }
    }
}

/// Removes the buckets and queues that earlier runs have left behind. No other run may be using
/// any.
///
/// # Errors
///
/// Fails with the first error that AWS returned.
pub async fn remove_leftovers() -> Result<()> {
    let configuration = configuration();
    remove_queues(&configuration, PREFIX).await?;
    let s3 = s3(&configuration);
    let listed = s3.list_buckets().send().await?;
    for bucket in listed.buckets() {
        let name = bucket.name().unwrap_or_default();
        if name.starts_with(PREFIX) {
            remove_bucket(&s3, name).await?;
        }
    }
    Ok(())
}

fn s3(configuration: &SdkConfig) -> aws_sdk_s3::Client {
    let configuration = aws_sdk_s3::config::Builder::from(configuration);
    aws_sdk_s3::Client::from_conf(configuration.force_path_style(true).build())
}

async fn remove_queues(configuration: &SdkConfig, prefix: &str) -> Result<()> {
    let sqs = aws_sdk_sqs::Client::new(configuration);
    let mut urls = BTreeSet::new();
    // A list can lack queues that have just been created.
    for name in [prefix.to_owned(), format!("{prefix}-dlq")] {
        let found = sqs.get_queue_url().queue_name(name).send().await;
        urls.extend(found.ok().and_then(|found| found.queue_url));
    }
    let mut pages = sqs
        .list_queues()
        .queue_name_prefix(prefix)
        .max_results(1000)
        .into_paginator()
        .send();
    while let Some(page) = pages.next().await {
        let listed = page?.queue_urls.unwrap_or_default();
        urls.extend(listed.into_iter().filter(|url| is_of(url, prefix)));
    }
    for url in urls {
        let request = sqs.delete_queue().queue_url(&url);
        request
            .send()
            .await
            .with_context(|| format!("cannot delete {url}"))?;
    }
    Ok(())
}

/// Returns whether the name of a queue is this name or continues it. Names end with a number, so
/// another one can begin with the same digits.
fn is_of(url: &str, name: &str) -> bool {
    let queue = url.rsplit('/').next().unwrap_or_default();
    let rest = queue.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-') || name.ends_with('-'))
}

/// Removes a bucket with its objects, if it exists.
async fn remove_bucket(s3: &aws_sdk_s3::Client, bucket: &str) -> Result<()> {
    if let Err(error) = s3.head_bucket().bucket(bucket).send().await {
        let error = error.into_service_error();
        if error.is_not_found() {
            return Ok(());
        }
        return Err(error).with_context(|| format!("cannot find {bucket}"));
    }
    let mut pages = s3.list_objects_v2().bucket(bucket).into_paginator().send();
    while let Some(page) = pages.next().await {
        for object in page?.contents() {
            let key = object.key().unwrap_or_default();
            s3.delete_object().bucket(bucket).key(key).send().await?;
        }
    }
    let request = s3.delete_bucket().bucket(bucket);
    request
        .send()
        .await
        .with_context(|| format!("cannot delete {bucket}"))?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a person reads it")]
pub(crate) fn warn(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_belongs_to_a_whole_name() {
        let url = |name: &str| format!("https://sqs.eu-central-1.amazonaws.com/1/{name}");
        for name in [
            "sluice-test-a-1",
            "sluice-test-a-1-dlq",
            "sluice-test-a-1-x.fifo",
        ] {
            assert!(is_of(&url(name), "sluice-test-a-1"), "{name}");
            assert!(is_of(&url(name), PREFIX), "{name}");
        }
        for name in ["sluice-test-a-10", "sluice-test-a-10-dlq", "uploads"] {
            assert!(!is_of(&url(name), "sluice-test-a-1"), "{name}");
        }
    }
}
