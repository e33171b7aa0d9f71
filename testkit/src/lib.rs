//! The embedded stack for Sluice's tests and developer commands: a real ClickHouse engine, S3 and
//! SQS, all on loopback and all ending with the process that started them, however that ends.
//!
//! A test begins with [`Stack::shared`] and [`Stack::site`].

pub mod account;
mod announce;
mod aws;
pub mod balancer;
pub mod browser;
mod clickhouse;
mod clients;
mod cluster;
mod engine;
pub mod exact;
pub mod flat;
pub mod install;
mod keeper;
pub mod latency;
pub mod launch;
pub mod listing;
mod ports;
pub mod project;
mod prometheus;
pub mod proxy;
pub mod requirement;
mod restartable;
pub mod serve;
mod site;
mod stack;
pub mod tls;
mod wait;
pub mod xapi;

pub use announce::NotificationRoute;
pub use aws::{AccessKey, Aws};
pub use clickhouse::ClickHouse;
pub use clients::User;
pub use cluster::{CLUSTER_VARIABLE, Cluster};
pub use engine::Options as ClickHouseOptions;
pub use keeper::Keeper;
pub use ports::free_port;
pub use prometheus::Prometheus;
pub use requirement::Requirement;
pub use site::{Cleanup, Site, SiteOptions};
pub use stack::{
    AWS_ENDPOINT_VARIABLE, CLICKHOUSE_PASSWORD_VARIABLE, CLICKHOUSE_URL_VARIABLE,
    CLICKHOUSE_USER_VARIABLE, REPLICAS_VARIABLE, Stack,
};
pub use wait::wait_for;
