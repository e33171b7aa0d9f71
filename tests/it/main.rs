//! Tests on the embedded stack: the real engine, and S3 and SQS by their protocols.

mod cli;
mod end_to_end;
mod harness;
mod keys;
mod large;
mod mapping;
mod outages;
mod queue_contract;
mod streamed;
