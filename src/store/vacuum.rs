//! Rows of finished jobs in the table of live ones: deleted, and still in the way until they are vacuumed.

use sqlx::Connection;

use super::{Error, Store};

/// Dead rows cost a list that comes upon them first 0.25 µs each and index: 20,000 are 5 ms. A vacuum reads all indexes, so
/// with many live rows it waits until it is worth that. Only the owner may.
const WANTED: &str = "SELECT n_dead_tup FROM pg_stat_all_tables JOIN pg_class ON oid = relid
    WHERE relid = 'jobs'::regclass AND n_dead_tup > greatest(20000, n_live_tup / 20) AND pg_has_role(relowner, 'USAGE')";

/// Neither waits for another vacuum nor gives space back, for which it would lock out everybody.
const VACUUM: &str = "VACUUM (SKIP_LOCKED, TRUNCATE off) jobs";

impl Store {
    /// How many rows of `jobs` are dead, by the database's own count, which is about a second old; `None`: so few that a vacuum
    /// is not worth it.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn rows_to_vacuum(&self) -> Result<Option<i64>, Error> {
        let rows: Vec<(i64,)> = self.read_all("count dead rows", sqlx::query_as(WANTED)).await?;
        Ok(rows.first().map(|(dead,)| *dead))
    }

    /// Clears dead rows of `jobs`. On a connection of its own, since it may take longer than any statement may, and would
    /// hold up who waits for one.
    ///
    /// # Errors
    /// The database is away.
    pub async fn vacuum(&self) -> Result<(), Error> {
        let failed = |e| Error::of("vacuum", e);
        // That another vacuum is at work is no news.
        let settings = [("statement_timeout", "0"), ("client_min_messages", "error")];
        let mut one = self.connector().with(settings).connect().await.map_err(failed)?;
        sqlx::raw_sql(VACUUM).execute(&mut one).await.map_err(failed)?;
        one.close().await.map_err(failed)
    }
}
