//! What Sluice is deployed with: the chart, the image, the CloudFormation template.

mod alerts;
mod chart;
mod compose;
mod ecs;
mod features;
mod image;
