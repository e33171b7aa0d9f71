//! `cargo xtask stack`: the servers, for as long as somebody wants them.

use std::process::ExitCode;

use anyhow::Result;
use sluice_testkit::{AWS_ENDPOINT_VARIABLE, CLICKHOUSE_URL_VARIABLE, Stack};

use crate::console::{note, print};
use crate::interrupt::Interrupt;

pub(crate) async fn run() -> Result<ExitCode> {
    // Listening begins only when all runs: a Ctrl-C before that ends us at once, and the servers
    // with us.
    let stack = Stack::given_or_started()?;
    let mut interrupt = Interrupt::new()?;
    describe(&stack);
    note("Ctrl-C ends it");
    interrupt.wait().await;
    Ok(ExitCode::SUCCESS)
}

/// Where everything is, ready to be pasted into a shell.
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
