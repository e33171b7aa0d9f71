//! Starts a stack, or a cluster with a paused server if it is called with `cluster`. Prints the pids
//! of the processes on one line, and holds them until it is killed or its input ends. The tests that
//! nothing outlives its parent kill it.

use std::env;
use std::io::Read;

use anyhow::Result;
use sluice_testkit::{Cluster, Stack};

fn main() -> Result<()> {
    if env::args().any(|argument| argument == "cluster") {
        let cluster = Cluster::start(1, 1)?;
        cluster.server(1, 1).pause()?;
        hold(&cluster.pids())
    } else {
        let stack = Stack::start()?;
        hold(&[stack.clickhouse.pids(), stack.aws.pids()].concat())
    }
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn hold(pids: &[u32]) -> Result<()> {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    println!("{}", pids.join(" "));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
