//! Who holds what a migration waits for: looked up from a second connection while the first one waits.

use std::{fmt, time::Duration};

use sqlx::{FromRow, PgConnection};

use crate::{flow::Pace, store::connect::Connector};

/// After so long a wait is looked at: sooner than it may end by the limit of a table's lock.
const LOOK: Duration = Duration::from_millis(600);
/// Longest look.
const ANSWER: Duration = Duration::from_secs(2);

/// Whoever holds something, as far as that can be seen.
#[derive(Clone, Debug, Default)]
pub struct Holder(Option<Session>);

#[derive(Clone, Debug, FromRow)]
struct Session {
    pid: i32,
    application: Option<String>,
    user: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(session) = &self.0 else { return f.write_str("who holds it can't be seen") };
        write!(f, "it is held by the database's process {}", session.pid)?;
        if let Some(application) = session.application.as_deref().filter(|name| !name.is_empty()) {
            write!(f, ", '{application}'")?;
        }
        session.user.iter().try_for_each(|user| write!(f, " of the user '{user}'"))
    }
}

/// Of the locks that $1 waits for, the first holder.
const BLOCKING: &str = r#"
SELECT p.pid, a.application_name AS application, a.usename::text AS user
FROM unnest(pg_blocking_pids($1)) AS p (pid) LEFT JOIN pg_stat_activity a ON a.pid = p.pid LIMIT 1"#;

/// The holder of the advisory lock of that name.
const ADVISORY: &str = r#"
SELECT l.pid, a.application_name AS application, a.usename::text AS user
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::int8 << 32 | l.objid::int8) = hashtextextended($1, 0) LIMIT 1"#;

pub async fn lock_holder(connection: &mut PgConnection, name: &str) -> Holder {
    Holder(sqlx::query_as(ADVISORY).bind(name).fetch_optional(connection).await.unwrap_or_default())
}

/// Looks at what one session waits for.
pub struct Watch<'a> {
    pub connector: &'a Connector,
    pub pid: i32,
    pub version: i64,
}

impl Watch<'_> {
    /// Runs `work` to its end, and tells now and then what holds it up. Gives who was last seen to do so, too.
    pub async fn over<T>(&self, work: impl Future<Output = T>, pace: &mut Pace) -> (T, Holder) {
        let mut holder = Holder::default();
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK, &mut work).await {
                return (done, holder);
            }
            // Whoever is asked for an hour's index each second would not be glad of it.
            if holder.0.is_some() && !pace.is_due() {
                continue;
            }
            let seen = tokio::time::timeout(ANSWER, self.look());
            tokio::select! {
                biased;
                done = &mut work => return (done, holder),
                seen = seen => holder = seen.ok().flatten().map_or(holder, |session| Holder(Some(session))),
            }
            if holder.0.is_some() {
                tracing::info!("migration {} waits for a lock, jobs go on meanwhile: {holder}", self.version);
            }
        }
    }

    async fn look(&self) -> Option<Session> {
        let mut second = self.connector.connect_patient().await.ok()?;
        let seen = sqlx::query_as(BLOCKING).bind(self.pid).fetch_optional(&mut second).await;
        seen.ok().flatten()
    }
}
