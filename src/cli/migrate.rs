//! `migrate`: brings the database up to date and ends.

use super::exit::Exit;
use crate::{config::Config, store::Store};

/// Shown below `migrate --help`.
pub const HELP: &str = "\
Safe to run at any time and from many places at once: it takes turns, and does nothing when there is nothing to do.

Examples:
  DATABASE_URL=postgres://queue@db/queue queue-service migrate";

pub async fn run(config: Config) -> anyhow::Result<Exit> {
    let store = Store::open(&config.database)?;
    store.migrate(&config.database.schema).await?;
    store.close().await;
    Ok(Exit::Done)
}
