//! `cargo xtask stack`: runs the servers until Ctrl-C.

use std::process::ExitCode;

use anyhow::Result;
use sluice_testkit::{AWS_ENDPOINT_VARIABLE, CLICKHOUSE_URL_VARIABLE, Stack};

use crate::console::{note, print};
use crate::interrupt::Interrupt;

pub(crate) async fn run() -> Result<ExitCode> {
    // Signals are handled only once everything runs: before that, Ctrl-C kills this process, and
    // the servers with it.
    let stack = Stack::connect_or_start()?;
    let mut interrupt = Interrupt::new()?;
    describe(&stack);
    note("press Ctrl-C to stop");
    interrupt.wait().await;
    Ok(ExitCode::SUCCESS)
}

/// Prints the addresses in a form that can be pasted into a shell.
pub(crate) fn describe(stack: &Stack) {
    print(&format!("# ClickHouse HTTP  {}", stack.clickhouse.url()));
    if let Some(port) = stack.clickhouse.tcp_port() {
        print(&format!("# ClickHouse TCP   127.0.0.1:{port}"));
    }
    print(&format!("# S3 and SQS       {}", stack.aws.endpoint()));
    print(&format!(
        "export {CLICKHOUSE_URL_VARIABLE}={}",
        stack.clickhouse.url()
    ));
    print(&format!(
        "export {AWS_ENDPOINT_VARIABLE}={}",
        stack.aws.endpoint()
    ));
    for (name, value) in stack.aws.environment() {
        print(&format!("export {name}={value}"));
    }
}
