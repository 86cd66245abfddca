//! What runs say of themselves: progress and checkpoints. Those of a worker are written together; those that are held
//! outside are signs of life as well ([`super::outside`]).

use uuid::Uuid;

use super::{Error, Store, harmed::ALIKE};
use crate::job::{Update, model::JobId};

/// What one run has said.
#[derive(Debug)]
pub struct Note {
    pub id: JobId,
    pub run: i64,
    pub update: Update,
}

/// The progress of `j` with what `n` says of it. Both parts come as JSON texts, so that they are kept as they were written;
/// what is left out stays as it was.
macro_rules! progress {
    () => {
        r#"CASE WHEN n.percent IS NULL AND n.message IS NULL THEN j.progress ELSE
           ('{"percent":' || coalesce(n.percent, j.progress ->> 'percent', '0.0') ||
            ',"message":' || coalesce(n.message, (j.progress -> 'message')::text, 'null') || '}')::json END"#
    };
}
pub(super) use progress;

const WRITE: &str = concat!(
    r#"
UPDATE jobs AS j SET progress = "#,
    progress!(),
    r#", checkpoint = coalesce(n.checkpoint::json, j.checkpoint)
FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::text[], $5::text[]) AS n (id, run, percent, message, checkpoint)
WHERE j.id = ANY ($1) AND j.id = n.id AND j.run = n.run AND j.status = 'processing'
RETURNING j.id, j.run, CASE WHEN n.percent IS NULL AND n.message IS NULL THEN NULL ELSE j.progress::text END"#
);

/// A run whose note was written.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Noted {
    pub id: Uuid,
    pub run: i64,
    /// Its progress as it is now, where the note was about that: JSON.
    pub progress: Option<String>,
}

impl Store {
    /// Writes notes; those of runs that have lost their lease change nothing, and are not among the answers. Nor are those
    /// that can't be stored.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn write_notes(&self, notes: &[Note]) -> Result<Vec<Noted>, Error> {
        self.apart(ALIKE, notes, |note| note.id, |_| None, |some| self.write_some_notes(some)).await
    }

    async fn write_some_notes(&self, notes: &[Note]) -> Result<Vec<Noted>, Error> {
        let mut sorted: Vec<&Note> = notes.iter().collect();
        sorted.sort_by_key(|note| note.id);
        let query = sqlx::query_as(WRITE)
            .bind(sorted.iter().map(|n| n.id).collect::<Vec<_>>())
            .bind(sorted.iter().map(|n| n.run).collect::<Vec<_>>())
            .bind(sorted.iter().map(|n| percent(&n.update)).collect::<Vec<_>>())
            .bind(sorted.iter().map(|n| message(&n.update)).collect::<Vec<_>>())
            .bind(sorted.iter().map(|n| checkpoint(&n.update)).collect::<Vec<_>>());
        let rows: Vec<(Uuid, i64, Option<String>)> = self.hot_all("write progress", query).await?;
        Ok(rows.into_iter().map(|(id, run, progress)| Noted { id, run, progress }).collect())
    }
}

/// As JSON.
pub(super) fn percent(update: &Update) -> Option<String> {
    serde_json::to_string(&update.percent?).ok()
}

/// As JSON; an empty one is none.
pub(super) fn message(update: &Update) -> Option<String> {
    let message = update.message.as_deref()?;
    serde_json::to_string(&Some(message).filter(|text| !text.is_empty())).ok()
}

pub(super) fn checkpoint(update: &Update) -> Option<&str> {
    update.checkpoint.as_deref().map(serde_json::value::RawValue::get)
}
