//! `sluice health`

use anyhow::{Context, ensure};

use super::app::App;
use super::worker;

pub(super) async fn run(app: &App<'_>) -> anyhow::Result<()> {
    let address = worker::address_here(app.config);
    let address = address.context("`admin.listen` has port 0: the worker can be anywhere")?;
    let (status, body) = worker::get(&address, "/healthz").await?;
    let said = String::from_utf8_lossy(&body);
    ensure!(status.is_success(), "{}", said.trim());
    Ok(())
}
