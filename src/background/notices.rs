//! Rings the relay when a transaction outside has written to the outbox: Postgres tells at the commit (`NOTIFY`).
//!
//! A notice that gets lost costs one period of the relay.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio_util::sync::CancellationToken;

use super::Deps;

/// Pause after a connection that was lost.
const TRY_AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    // A connection of its own: it is held for as long as the process lives.
    let channel = format!("{}_outbox", deps.config.database.schema);
    let listening = async {
        loop {
            let connector = deps.store.connector();
            // Made anew each time: the server may be another one now.
            let pool = connector.on(PgPoolOptions::new().max_connections(1)).connect_lazy_with(connector.server());
            if let Err(e) = listen(&deps, &pool, &channel).await {
                tracing::debug!("not listening for notices of the database: {e}");
            }
            pool.close().await;
            tokio::time::sleep(TRY_AGAIN).await;
        }
    };
    stop.run_until_cancelled(listening).await;
}

async fn listen(deps: &Deps, pool: &sqlx::PgPool, channel: &str) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(channel).await?;
    // What was written before.
    deps.relay.notify_one();
    loop {
        // `None`: the connection was lost, and maybe notices with it; it is made anew.
        let _notice = listener.try_recv().await?;
        deps.relay.notify_one();
    }
}
