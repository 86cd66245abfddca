//! One row per worker process: its lease. Leases are judged by the database's clock alone.

use std::time::Duration;

use sqlx::PgConnection;

use super::{Error, Store};

/// Writes the heartbeat of `worker_id`: its lease lasts `lease` from now on.
///
/// On a connection of its own, so that a full pool or a slow statement never looks like a death.
///
/// # Errors
/// As for every statement; try again at once, the lease is running out.
pub async fn heartbeat(connection: &mut PgConnection, worker_id: &str, lease: Duration) -> Result<(), Error> {
    let beat = "INSERT INTO workers (id, expires_at, beat_at)
                VALUES ($1, clock_timestamp() + $2 * interval '1 millisecond', clock_timestamp())
                ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at, beat_at = excluded.beat_at";
    let run = sqlx::query(beat).bind(worker_id).bind(lease.as_millis() as i64).execute(connection);
    run.await.map(|_| ()).map_err(|e| Error::of("heartbeat", e))
}

impl Store {
    /// Ends a worker that holds nothing any more. Jobs that it still holds are found by the next sweep at once.
    ///
    /// # Errors
    /// As for every statement; the row then expires by itself.
    pub async fn deregister(&self, worker_id: &str) -> Result<(), Error> {
        let end = "UPDATE workers SET expires_at = clock_timestamp() WHERE id = $1 RETURNING id";
        self.read_all::<(String,)>("deregister worker", sqlx::query_as(end).bind(worker_id)).await.map(|_| ())
    }

    /// The workers that have a current lease.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn live_worker_ids(&self) -> Result<Vec<String>, Error> {
        let list = "SELECT id FROM workers WHERE expires_at > clock_timestamp()";
        let rows: Vec<(String,)> = self.read_answer("list workers", sqlx::query_as(list)).await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// How many workers have a current lease.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn live_workers(&self) -> Result<i64, Error> {
        let count = "SELECT count(*) FROM workers WHERE expires_at > clock_timestamp()";
        let rows: Vec<(i64,)> = self.read_answer("count workers", sqlx::query_as(count)).await?;
        Ok(rows.first().map_or(0, |row| row.0))
    }
}
