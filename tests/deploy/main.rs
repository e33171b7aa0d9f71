//! The deployment artifacts: the chart, the image and the CloudFormation template.

mod alerts;
mod chart;
mod compose;
mod ecs;
mod features;
mod image;
