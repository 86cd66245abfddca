//! What running handlers say: progress and checkpoints, written together for all runs of a worker.

use super::{Error, Store};
use crate::job::model::JobId;

/// What one run has said.
#[derive(Debug)]
pub struct Note {
    pub id: JobId,
    pub run: i64,
    /// JSON.
    pub progress: Option<String>,
    /// JSON.
    pub checkpoint: Option<String>,
}

const WRITE: &str = r#"
UPDATE jobs AS j SET progress = coalesce(n.progress::json, j.progress), checkpoint = coalesce(n.checkpoint::json, j.checkpoint)
FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::text[]) AS n (id, run, progress, checkpoint)
WHERE j.id = ANY ($1) AND j.id = n.id AND j.run = n.run AND j.status = 'processing' RETURNING j.id"#;

impl Store {
    /// Writes notes; those of runs that have lost their lease change nothing.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn write_notes(&self, mut notes: Vec<Note>) -> Result<(), Error> {
        notes.sort_by_key(|note| note.id);
        let query = sqlx::query_as(WRITE)
            .bind(notes.iter().map(|n| n.id).collect::<Vec<_>>())
            .bind(notes.iter().map(|n| n.run).collect::<Vec<_>>())
            .bind(notes.iter().map(|n| n.progress.as_deref()).collect::<Vec<_>>())
            .bind(notes.iter().map(|n| n.checkpoint.as_deref()).collect::<Vec<_>>());
        self.hot_all::<(uuid::Uuid,)>("write progress", query).await.map(|_| ())
    }
}
