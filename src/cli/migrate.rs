//! `migrate`: brings the database up to date and ends.

use super::exit::Exit;
use crate::config::Config;

/// Shown below `migrate --help`.
pub const HELP: &str = "\
Safe to run at any time and from many places at once: it takes turns, and does nothing when there is nothing to do.

Examples:
  DATABASE_URL=postgres://queue@db/queue queue-service migrate";

pub async fn run(config: Config) -> anyhow::Result<Exit> {
    start(config).await?;
    Ok(Exit::Done)
}

/// PLACEHOLDER: becomes the call into `crate::store` that runs the migrations.
async fn start(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("`migrate` is not wired yet")
}
