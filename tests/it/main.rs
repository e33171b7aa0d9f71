//! Tests on the embedded stack: the real engine, and S3 and SQS through their protocols.

#![expect(
    clippy::disallowed_methods,
    reason = "tests are not part of a simulation"
)]

mod access;
mod backfill;
mod blame;
mod bounds;
mod check;
mod cli;
mod compared;
mod cost;
mod dlq;
mod empty_columns;
mod end_to_end;
mod evolve;
mod formats;
mod harness;
mod hidden;
mod infer;
mod injection;
mod janitor;
mod json;
mod keys;
mod large;
mod logs;
mod mapping;
mod metrics;
mod notifications;
mod operations;
mod outages;
mod page;
mod profiles;
mod pushed_metrics;
mod queue_contract;
mod real_services;
mod reconcile;
mod rejects;
mod repeats;
mod replay;
mod soak;
mod status;
mod strategies;
mod streamed;
mod traces;
mod truncated;
mod types;
mod unproven;
mod usage;
mod verify;
mod views;
mod window;
