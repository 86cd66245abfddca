//! What is set for types at run time: definitions, pauses, and whether somebody answers for them.

use super::{Error, Store};

/// Which types may start jobs, as the end of a condition: for statements that start some.
macro_rules! is_not_paused {
    () => {
        "<> ALL (ARRAY(SELECT type FROM job_types WHERE paused_at IS NOT NULL))"
    };
}
pub(super) use is_not_paused;

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

    /// All that is set for types.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn types(&self) -> Result<Vec<TypeRow>, Error> {
        let list = "SELECT type AS name, definition::text AS definition, discovered, paused_at IS NOT NULL AS paused, max_attempts,
                           unattended_since IS NOT NULL AS unattended
                    FROM job_types ORDER BY type";
        self.read_answer("list what is set for types", sqlx::query_as(list)).await
    }

    /// Defines a type, in the place of its former definition. A discovered one never replaces one that was asked for;
    /// `false`: there is such a one.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn define_type(&self, job_type: &str, definition: &str, discovered: bool) -> Result<bool, Error> {
        let set = "INSERT INTO job_types AS t (type, definition, discovered) VALUES ($1, $2::json, $3)
                   ON CONFLICT (type) DO UPDATE SET updated_at = now(), definition = excluded.definition,
                       discovered = excluded.discovered, unattended_since = NULL
                   WHERE t.definition IS NULL OR t.discovered OR NOT excluded.discovered
                   RETURNING type";
        let query = sqlx::query_as(set).bind(job_type).bind(definition).bind(discovered);
        let rows: Vec<(String,)> = self.read_answer("define a type", query).await?;
        Ok(!rows.is_empty())
    }

    /// Forgets the definition of a type that has no unfinished jobs. `None`: there is none; else the number of
    /// unfinished jobs that keep it.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn undefine_type(&self, job_type: &str) -> Result<Option<i64>, Error> {
        // As a whole behind a lock of its row, so that two who ask see one another.
        let unset = "WITH kept AS (SELECT count(*) AS n FROM jobs WHERE type = $1),
                     found AS (SELECT type FROM job_types WHERE type = $1 AND definition IS NOT NULL FOR UPDATE),
                     gone AS (UPDATE job_types SET definition = NULL, discovered = false, unattended_since = NULL, max_attempts = NULL,
                                     updated_at = now()
                              WHERE type IN (SELECT type FROM found) AND (SELECT n FROM kept) = 0)
                     SELECT n FROM kept WHERE EXISTS (SELECT FROM found)";
        let rows: Vec<(i64,)> = self.read_answer("forget a type", sqlx::query_as(unset).bind(job_type)).await?;
        Ok(rows.first().map(|(n,)| *n))
    }

    /// Notes the types that there are, with the attempts that their jobs get, for those who enqueue by SQL.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn note_known_types(&self, known: &[(&str, u16)]) -> Result<(), Error> {
        // In the order of the names, so that two replicas can't wait for each other.
        let set = "INSERT INTO job_types AS t (type, max_attempts)
                   SELECT type, n FROM unnest($1::text[], $2::int2[]) AS k (type, n) ORDER BY type
                   ON CONFLICT (type) DO UPDATE SET max_attempts = excluded.max_attempts
                   WHERE t.max_attempts IS DISTINCT FROM excluded.max_attempts
                   RETURNING type";
        let query = sqlx::query_as(set)
            .bind(known.iter().map(|k| k.0).collect::<Vec<_>>())
            .bind(known.iter().map(|k| k.1 as i16).collect::<Vec<_>>());
        self.read_all::<(String,)>("note known types", query).await.map(|_| ())
    }

    /// Notes whether somebody answers for a type.
    ///
    /// # Errors
    /// As for every statement.
    pub async fn set_unattended(&self, job_type: &str, unattended: bool) -> Result<(), Error> {
        let set = "INSERT INTO job_types AS t (type, unattended_since) VALUES ($1, CASE WHEN $2 THEN now() END)
                   ON CONFLICT (type) DO UPDATE SET
                       unattended_since = CASE WHEN $2 THEN coalesce(t.unattended_since, now()) END
                   RETURNING type";
        self.read_answer::<(String,)>("note who answers", sqlx::query_as(set).bind(job_type).bind(unattended))
            .await
            .map(|_| ())
    }
}

/// What is set for one type.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct TypeRow {
    pub name: String,
    /// As it was sent; `None`: the type is not defined at run time.
    pub definition: Option<String>,
    /// Whether it was found on the bus.
    pub discovered: bool,
    pub paused: bool,
    /// What [`Store::note_known_types`] has noted.
    pub max_attempts: Option<i16>,
    /// Whether nobody answers for it.
    pub unattended: bool,
}
