//! `sluice health`

use anyhow::{Context, ensure};

use super::app::App;
use super::worker;

pub(super) async fn run(app: &App<'_>) -> anyhow::Result<()> {
    let address = worker::address_here(app.config);
    let address = address
        .context("`admin.listen` has port 0, so the worker's port is unknown; set a port")?;
    let (status, body) = worker::get(&address, "/healthz").await?;
    let text = String::from_utf8_lossy(&body);
    ensure!(status.is_success(), "{}", text.trim());
    Ok(())
}
