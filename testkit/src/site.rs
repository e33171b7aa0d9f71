//! The resources of one test or demo: a bucket that announces its objects to a queue, a dead-letter
//! queue, and the name of a database.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use aws_sdk_s3::types::{
    BucketLocationConstraint, CreateBucketConfiguration, Event, NotificationConfiguration,
    QueueConfiguration,
};
use aws_sdk_sqs::types::QueueAttributeName;

use crate::account::{self, Resources};
use crate::clients::User;
use crate::ports::post;
use crate::xapi::Bundle;
use crate::{Aws, ClickHouse, Stack};

/// Options of the queue.
#[derive(Debug, Clone)]
pub struct SiteOptions {
    /// The number of receives after which a message moves to the dead-letter queue.
    pub max_receive_count: u32,
    /// The visibility timeout of the queue.
    pub visibility_timeout: Duration,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            max_receive_count: 5,
            visibility_timeout: Duration::from_secs(30),
        }
    }
}

/// A bucket, its queue, its dead-letter queue, and a unique database name.
#[derive(Clone, Debug)]
pub struct Site {
    /// The bucket, which sends `s3:ObjectCreated:*` to the queue.
    pub bucket: String,
    /// The queue.
    pub queue_url: String,
    /// The ARN of the queue.
    pub queue_arn: String,
    /// The dead-letter queue.
    pub dlq_url: String,
    /// The ARN of the dead-letter queue.
    pub dlq_arn: String,
    /// A database name; the database is not created.
    pub database: String,
    /// Drops the database with the last clone of this site, if its server is known.
    pub cleanup: Option<Arc<Cleanup>>,
    /// Removes bucket and queues with the last clone of this site, if they are in an account.
    pub resources: Option<Arc<Resources>>,
    /// An S3 client of this site.
    pub s3: aws_sdk_s3::Client,
    /// An SQS client of this site.
    pub sqs: aws_sdk_sqs::Client,
}

impl Stack {
    /// Creates a site with default options. `name` makes logs readable; sites never collide.
    ///
    /// # Errors
    ///
    /// Fails with the error that AWS returned.
    pub async fn site(&self, name: &str) -> Result<Site> {
        self.site_with(name, SiteOptions::default()).await
    }

    /// Creates a site whose messages become dead letters after `max_receive_count` receives.
    ///
    /// # Errors
    ///
    /// Fails with the error that AWS returned.
    pub async fn site_with_max_receives(&self, name: &str, max_receive_count: u32) -> Result<Site> {
        let options = SiteOptions {
            max_receive_count,
            ..SiteOptions::default()
        };
        self.site_with(name, options).await
    }

    /// Creates a site. As on AWS, S3 sends its `s3:TestEvent` to the queue, which thus has one
    /// message before the first object.
    ///
    /// # Errors
    ///
    /// Fails with the error that AWS returned.
    pub async fn site_with(&self, name: &str, options: SiteOptions) -> Result<Site> {
        let mut site = self.aws.site(name, options).await?;
        site.cleanup = Some(Arc::new(Cleanup {
            server: self.clickhouse.url().to_owned(),
            user: self.clickhouse.user().clone(),
            database: site.database.clone(),
        }));
        Ok(site)
    }
}

/// Drops a database when it is dropped itself. A server spends time on every table, and the
/// databases of a whole test run would take a third of its time.
#[derive(Debug)]
pub struct Cleanup {
    server: String,
    user: User,
    database: String,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {}", self.database);
        if self.user.password.is_empty() && self.server.starts_with("http://127.0.0.1:") {
            // The server may have exited and removed its data.
            drop(post(&self.server, &sql));
            return;
        }
        let server = ClickHouse::at_as(&self.server, self.user.clone());
        if let Err(error) = account::blocking(server.execute(&sql)) {
            account::warn(&format!("{} is not dropped: {error:#}", self.database));
        }
    }
}

impl Aws {
    /// Creates a site as [`Stack::site_with`] does.
    ///
    /// # Errors
    ///
    /// Fails with the error that AWS returned.
    pub async fn site(&self, name: &str, options: SiteOptions) -> Result<Site> {
        let (s3, sqs) = (self.s3(), self.sqs());
        let name = unique_name(name);
        let bucket = match self.is_account() {
            true => format!("{}{name}", account::PREFIX),
            false => name,
        };
        let database = bucket.replace('-', "_");
        // It removes what was created, even if the next step fails.
        let resources = self.is_account().then(|| {
            Arc::new(Resources {
                name: bucket.clone(),
            })
        });

        let (dlq_url, dlq_arn) = create_queue(&sqs, &format!("{bucket}-dlq"), &[]).await?;
        let redrive = serde_json::json!({
            "deadLetterTargetArn": dlq_arn,
            "maxReceiveCount": options.max_receive_count,
        });
        let mut attributes = vec![
            (QueueAttributeName::RedrivePolicy, redrive.to_string()),
            (
                QueueAttributeName::VisibilityTimeout,
                options.visibility_timeout.as_secs().to_string(),
            ),
        ];
        if self.is_account() {
            let policy = allow_notifications(&bucket).to_string();
            attributes.push((QueueAttributeName::Policy, policy));
        }
        let (queue_url, queue_arn) = create_queue(&sqs, &bucket, &attributes).await?;

        s3.create_bucket()
            .bucket(&bucket)
            .set_create_bucket_configuration(self.location())
            .send()
            .await
            .with_context(|| format!("cannot create bucket {bucket}"))?;
        let queue = QueueConfiguration::builder()
            .queue_arn(&queue_arn)
            .events(Event::from("s3:ObjectCreated:*"))
            .build()?;
        s3.put_bucket_notification_configuration()
            .bucket(&bucket)
            .notification_configuration(
                NotificationConfiguration::builder()
                    .queue_configurations(queue)
                    .build(),
            )
            .send()
            .await
            .with_context(|| format!("cannot set the notification of bucket {bucket}"))?;

        Ok(Site {
            bucket,
            queue_url,
            queue_arn,
            dlq_url,
            dlq_arn,
            database,
            cleanup: None,
            resources,
            s3,
            sqs,
        })
    }
}

impl Aws {
    /// Returns where a bucket is created. AWS refuses to be told of us-east-1.
    fn location(&self) -> Option<CreateBucketConfiguration> {
        let region = self.is_account().then(|| self.configuration());
        let region = region.and_then(|it| it.region().map(ToString::to_string));
        let region = region.filter(|region| region != "us-east-1")?;
        let location = BucketLocationConstraint::from(region.as_str());
        let configuration = CreateBucketConfiguration::builder();
        Some(configuration.location_constraint(location).build())
    }
}

/// A policy of a queue that lets S3 send what a bucket announces.
fn allow_notifications(bucket: &str) -> serde_json::Value {
    serde_json::json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": "*",
        "Condition": {"ArnLike": {"aws:SourceArn": format!("arn:aws:s3:::{bucket}")}},
    }]})
}

impl Site {
    /// Returns `database.table` of the landing table of JSON, which `sluice migrate` has created.
    ///
    /// # Errors
    ///
    /// Fails if there is none, or with ClickHouse's error.
    pub async fn landing_table(&self, clickhouse: &ClickHouse) -> Result<String> {
        let database = &self.database;
        let sql = format!(
            "SELECT name FROM system.tables \
             WHERE database = '{database}' AND match(name, '^landing_[0-9a-f]{{8}}$') \
             AND engine = 'Null'"
        );
        let table: String = clickhouse.scalar(&sql).await?;
        Ok(format!("{database}.{table}"))
    }

    /// Uploads an object and returns its etag without quotes.
    ///
    /// # Errors
    ///
    /// Fails with the error that S3 returned.
    pub async fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) -> Result<String> {
        let output = self
            .s3
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .body(bytes.into().into())
            .send()
            .await
            .with_context(|| format!("cannot put {key}"))?;
        Ok(output
            .e_tag()
            .unwrap_or_default()
            .trim_matches('"')
            .to_owned())
    }

    /// Stops announcing uploads.
    ///
    /// # Errors
    ///
    /// Fails with the error that S3 returned.
    pub async fn stop_notifications(&self) -> Result<()> {
        self.s3
            .put_bucket_notification_configuration()
            .bucket(&self.bucket)
            .notification_configuration(NotificationConfiguration::builder().build())
            .send()
            .await
            .context("cannot remove the bucket's notifications")?;
        Ok(())
    }

    /// Deletes an object.
    ///
    /// # Errors
    ///
    /// Fails with the error that S3 returned.
    pub async fn delete(&self, key: &str) -> Result<()> {
        let request = self.s3.delete_object().bucket(&self.bucket).key(key);
        request
            .send()
            .await
            .with_context(|| format!("cannot delete {key}"))?;
        Ok(())
    }

    /// Sends a message to the queue, as S3 would.
    ///
    /// # Errors
    ///
    /// Fails with the error that SQS returned.
    pub async fn send(&self, body: &str) -> Result<()> {
        let request = self
            .sqs
            .send_message()
            .queue_url(&self.queue_url)
            .message_body(body);
        request.send().await.context("cannot send a message")?;
        Ok(())
    }

    /// Returns the body of the message with which S3 announces this object; `etag` has no quotes.
    pub fn announcement(&self, bundle: &Bundle, etag: &str) -> String {
        serde_json::json!({"Records": [{
            "eventName": "ObjectCreated:Put",
            "s3": {
                "bucket": { "name": self.bucket },
                "object": { "key": bundle.key, "eTag": etag, "size": bundle.bytes.len() },
            },
        }]})
        .to_string()
    }

    /// Returns the numbers of visible and in-flight messages.
    ///
    /// # Errors
    ///
    /// Fails with the error that SQS returned.
    pub async fn queue_depth(&self) -> Result<(u64, u64)> {
        depth(&self.sqs, &self.queue_url).await
    }

    /// Returns the number of messages in the dead-letter queue, visible or in flight.
    ///
    /// # Errors
    ///
    /// Fails with the error that SQS returned.
    pub async fn dlq_depth(&self) -> Result<u64> {
        let (visible, in_flight) = depth(&self.sqs, &self.dlq_url).await?;
        Ok(visible + in_flight)
    }
}

async fn create_queue(
    sqs: &aws_sdk_sqs::Client,
    name: &str,
    attributes: &[(QueueAttributeName, String)],
) -> Result<(String, String)> {
    let mut request = sqs.create_queue().queue_name(name);
    for (attribute, value) in attributes {
        request = request.attributes(attribute.clone(), value);
    }
    let output = request
        .send()
        .await
        .with_context(|| format!("cannot create queue {name}"))?;
    let url = output
        .queue_url()
        .context("SQS returned no queue URL")?
        .to_owned();
    let arn = attribute(sqs, &url, QueueAttributeName::QueueArn).await?;
    Ok((url, arn))
}

/// Reads both counts in one request: a message that becomes visible between two requests would be
/// in neither.
async fn depth(sqs: &aws_sdk_sqs::Client, url: &str) -> Result<(u64, u64)> {
    let names = [
        QueueAttributeName::ApproximateNumberOfMessages,
        QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
    ];
    let output = sqs
        .get_queue_attributes()
        .queue_url(url)
        .set_attribute_names(Some(names.to_vec()))
        .send()
        .await
        .with_context(|| format!("cannot read the depth of {url}"))?;
    let attributes = output.attributes().context("SQS returned no attributes")?;
    let [visible, in_flight] = names.map(|name| attributes.get(&name));
    let count = |value: Option<&String>| -> Result<u64> {
        Ok(value.context("SQS returned no count")?.parse()?)
    };
    Ok((count(visible)?, count(in_flight)?))
}

async fn attribute(
    sqs: &aws_sdk_sqs::Client,
    url: &str,
    name: QueueAttributeName,
) -> Result<String> {
    let request = sqs
        .get_queue_attributes()
        .queue_url(url)
        .attribute_names(name.clone());
    let output = request
        .send()
        .await
        .with_context(|| format!("cannot read {name} of {url}"))?;
    let value = output
        .attributes()
        .and_then(|attributes| attributes.get(&name));
    Ok(value
        .with_context(|| format!("SQS returned no {name} for {url}"))?
        .clone())
}

/// Returns a name of lower-case letters, digits and dashes, short enough for a bucket. Several
/// processes may share the servers, so time and pid are part of it.
fn unique_name(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut stem: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    stem.truncate(30);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    format!(
        "{}-{:x}-{pid:x}-{count:x}",
        stem.trim_matches('-'),
        now.as_millis() & 0xffff_ffff
    )
}
