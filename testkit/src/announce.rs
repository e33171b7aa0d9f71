//! The routes by which notifications of a bucket reach a queue.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::{
    Event, EventBridgeConfiguration, NotificationConfiguration, QueueConfiguration,
    TopicConfiguration,
};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::{Aws, Site};

/// A route by which a bucket's notifications reach a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotificationRoute {
    /// Directly from S3.
    S3,
    /// Through SNS, in its envelope.
    Sns,
    /// Through SNS, with raw message delivery.
    SnsRaw,
    /// Through EventBridge.
    EventBridge,
    /// Through EventBridge and then SNS, in the envelope of SNS.
    EventBridgeSns,
}

impl NotificationRoute {
    /// All routes.
    pub const ALL: [Self; 5] = [
        Self::S3,
        Self::Sns,
        Self::SnsRaw,
        Self::EventBridge,
        Self::EventBridgeSns,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Sns => "sns",
            Self::SnsRaw => "sns-raw",
            Self::EventBridge => "event-bridge",
            Self::EventBridgeSns => "event-bridge-sns",
        }
    }
}

impl Aws {
    /// Announces the bucket's new objects to the site's queue by these routes only, from now on.
    ///
    /// # Errors
    ///
    /// Fails with the error that AWS returned.
    pub async fn announce_by(&self, site: &Site, routes: &[NotificationRoute]) -> Result<()> {
        let created = Event::from("s3:ObjectCreated:*");
        let mut targets = Vec::new();
        let mut configuration = NotificationConfiguration::builder();
        for route in routes {
            configuration = match route {
                NotificationRoute::S3 => configuration.queue_configurations(
                    QueueConfiguration::builder()
                        .queue_arn(&site.queue_arn)
                        .events(created.clone())
                        .build()?,
                ),
                NotificationRoute::Sns | NotificationRoute::SnsRaw => configuration
                    .topic_configurations(
                        TopicConfiguration::builder()
                            .topic_arn(self.topic_to_queue(site, *route).await?)
                            .events(created.clone())
                            .build()?,
                    ),
                NotificationRoute::EventBridge => {
                    targets.push(site.queue_arn.clone());
                    configuration.event_bridge_configuration(event_bridge())
                }
                NotificationRoute::EventBridgeSns => {
                    targets.push(self.topic_to_queue(site, *route).await?);
                    configuration.event_bridge_configuration(event_bridge())
                }
            };
        }
        self.put_rule(site, &targets).await?;
        site.s3
            .put_bucket_notification_configuration()
            .bucket(&site.bucket)
            .notification_configuration(configuration.build())
            .send()
            .await
            .with_context(|| format!("cannot set the notification of bucket {}", site.bucket))?;
        Ok(())
    }

    /// Creates a topic to which the site's queue is subscribed, and returns its ARN.
    async fn topic_to_queue(&self, site: &Site, route: NotificationRoute) -> Result<String> {
        let name = format!("{}-{}", site.bucket, route.name());
        let answer = self.sns(&format!("Action=CreateTopic&Name={name}")).await?;
        let topic = answer
            .split_once("<TopicArn>")
            .and_then(|(_, rest)| rest.split_once("</TopicArn>"))
            .with_context(|| format!("SNS returned no topic: {answer}"))?
            .0;
        let raw = match route {
            NotificationRoute::SnsRaw => {
                "&Attributes.entry.1.key=RawMessageDelivery&Attributes.entry.1.value=true"
            }
            _ => "",
        };
        let queue = &site.queue_arn;
        let subscription =
            format!("Action=Subscribe&TopicArn={topic}&Protocol=sqs&Endpoint={queue}{raw}");
        self.sns(&subscription).await?;
        Ok(topic.to_owned())
    }

    /// Sends the bucket's EventBridge events to these targets only.
    async fn put_rule(&self, site: &Site, targets: &[String]) -> Result<()> {
        let name = &site.bucket;
        let pattern = json!({
            "source": ["aws.s3"],
            "detail": {"bucket": {"name": [name]}},
        });
        let rule = json!({"Name": name, "EventPattern": pattern.to_string()});
        self.event_bridge("PutRule", &rule).await?;
        let previous = json!({"Rule": name, "Ids": ["0", "1"]});
        self.event_bridge("RemoveTargets", &previous).await?;
        let targets: Vec<_> = targets
            .iter()
            .enumerate()
            .map(|(id, arn)| json!({"Id": id.to_string(), "Arn": arn}))
            .collect();
        let targets = json!({"Rule": name, "Targets": targets});
        self.event_bridge("PutTargets", &targets).await
    }

    async fn sns(&self, form: &str) -> Result<String> {
        let kind = ("content-type", "application/x-www-form-urlencoded");
        self.post(&[kind], form).await
    }

    async fn event_bridge(&self, operation: &str, body: &serde_json::Value) -> Result<()> {
        let target = format!("AWSEvents.{operation}");
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", &target),
        ];
        self.post(&headers, &body.to_string()).await?;
        Ok(())
    }

    /// Two services with three operations in use do not justify an SDK for each.
    async fn post(&self, headers: &[(&str, &str)], body: &str) -> Result<String> {
        let mut request = Request::post(self.endpoint());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let answer = client
            .request(request.body(Full::from(body.to_owned()))?)
            .await?;
        let status = answer.status();
        let text = answer.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(
            status.is_success(),
            "{status}: {text}, in response to {body}"
        );
        Ok(text)
    }
}

fn event_bridge() -> EventBridgeConfiguration {
    EventBridgeConfiguration::builder().build()
}
