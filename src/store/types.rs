//! What is set for a type at run time: its pause.

use super::{Error, Store};

impl Store {
    /// Pauses or resumes a type, for all replicas and across restarts. Repeating it is harmless.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn set_paused(&self, job_type: &str, paused: bool) -> Result<(), Error> {
        let set = "INSERT INTO job_types AS t (type, paused_at) VALUES ($1, CASE WHEN $2 THEN now() END)
                   ON CONFLICT (type) DO UPDATE SET updated_at = now(),
                       paused_at = CASE WHEN $2 THEN coalesce(t.paused_at, now()) END
                   RETURNING type";
        self.read_answer::<(String,)>("pause or resume a type", sqlx::query_as(set).bind(job_type).bind(paused))
            .await
            .map(|_| ())
    }

    /// The types that are paused.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn paused_types(&self) -> Result<Vec<String>, Error> {
        let list = "SELECT type FROM job_types WHERE paused_at IS NOT NULL";
        let rows: Vec<(String,)> = self.read_answer("list paused types", sqlx::query_as(list)).await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }
}
