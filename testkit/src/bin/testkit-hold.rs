//! Starts a stack, prints the pids of its processes on one line, and holds it until it is killed or
//! its input ends. The test that nothing outlives its parent kills it.

use std::io::Read;

use anyhow::Result;
use sluice_testkit::Stack;

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn main() -> Result<()> {
    let stack = Stack::start()?;
    let pids = [stack.clickhouse.pids(), stack.aws.pids()].concat();
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    println!("{}", pids.join(" "));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
