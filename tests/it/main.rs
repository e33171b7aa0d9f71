//! Tests on the embedded stack: the real engine, and S3 and SQS by their protocols.

mod access;
mod backfill;
mod check;
mod cli;
mod cost;
mod dlq;
mod end_to_end;
mod evolve;
mod harness;
mod injection;
mod json;
mod keys;
mod large;
mod logs;
mod mapping;
mod notifications;
mod outages;
mod queue_contract;
mod reconcile;
mod rejects;
mod replay;
mod status;
mod strategies;
mod streamed;
mod traces;
mod types;
