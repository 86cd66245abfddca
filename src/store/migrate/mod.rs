//! Brings the schema up to date, with any number of processes at it and without holding up those that run.
//!
//! One process at a time, by an advisory lock of the session: it is tried again and again instead of waited for, since a
//! waiting statement is a transaction that an index built beside others would wait for. It is given back after the commit,
//! so that whoever comes next sees what was made. A table's lock is waited for a second at most, for all who come after
//! wait behind whoever waits; then they have their turn, and it is tried again. Nothing is asked for that is there: who
//! may not make a schema needs no right to.

mod index;
mod rights;
mod steps;
mod waiting;

use std::{collections::HashMap, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    migrate::{Migration, Migrator},
};
use tokio::time::Instant;

use super::{
    connect::Connector,
    error::{Cause, Kind, kind},
};
use crate::flow::Pace;
use steps::{Step, steps};
pub use waiting::Holder;
use waiting::Watch;

/// Pause between two tries to get the lock of the migrations.
const POLL: Duration = Duration::from_millis(100);
/// Longest wait for a lock of a table.
const TABLE_LOCK: Duration = Duration::from_secs(1);
/// Pauses between two tries to get one: others must have more time to work than to wait.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const TRY_AGAIN_MOST: Duration = Duration::from_secs(10);
/// After so long in vain it is given up, and who holds it up is told. A running service tries again.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Why the schema is not up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database can't be used right now (migrations)")]
    Away(#[source] Cause),
    #[error("the database user '{user}' may not {may_not}; let its owner or a superuser run: {grant}")]
    Denied { user: String, may_not: String, grant: String },
    #[error("migration {version} failed; what it did is undone, and nothing was started")]
    Failed { version: i64, source: Cause },
    #[error("gave up after {} s in which {what}: {holder}", PATIENCE.as_secs())]
    Held { what: String, holder: Holder },
    #[error("migration {0} is not the one that was applied to this database: another program's, or a file was changed")]
    Changed(i64),
    #[error("migration {version}: partitions of {table} came and went all the time; try again")]
    Unsteady { version: i64, table: String },
    #[error("migration {0} was begun by an older version and not ended; restore its database")]
    Dirty(i64),
}

impl Error {
    fn away(error: sqlx::Error) -> Self {
        Error::Away(error.into())
    }

    pub(super) fn is_transient(&self) -> bool {
        match self {
            Error::Away(_) | Error::Held { .. } | Error::Unsteady { .. } => true,
            Error::Denied { .. } | Error::Failed { .. } | Error::Changed(_) | Error::Dirty(_) => false,
        }
    }
}

/// Applies those of `migrations` that `schema` lacks.
pub(super) async fn run(connector: &Connector, schema: &str, migrations: &Migrator) -> Result<(), Error> {
    let mut connection = connector.connect_patient().await.map_err(Error::away)?;
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.map_err(Error::away)?;
    let (connector, schema, pace) = (connector.clone(), schema.to_owned(), Pace::begin());
    let mut turn = Turn { connection, pid, connector, schema, pace };
    let done = match turn.take(migrations).await {
        Ok(()) => turn.check_rights().await,
        Err(e) => Err(e),
    };
    // The lock ends with its session, whatever has happened.
    let _ = turn.connection.close().await;
    done
}

struct Applied {
    checksum: Vec<u8>,
    success: bool,
}

/// Empty where the table of migrations is not there.
async fn applied(connection: &mut PgConnection) -> Result<HashMap<i64, Applied>, sqlx::Error> {
    let there: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !there {
        return Ok(HashMap::new());
    }
    let rows: Vec<(i64, Vec<u8>, bool)> =
        sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations").fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(version, checksum, success)| (version, Applied { checksum, success })).collect())
}

/// One process's try.
struct Turn {
    connection: PgConnection,
    pid: i32,
    connector: Connector,
    schema: String,
    pace: Pace,
}

impl Turn {
    async fn take(&mut self, migrations: &Migrator) -> Result<(), Error> {
        let (until, name) = (Instant::now() + PATIENCE, self.lock_name());
        loop {
            // Looked at first: where there is nothing to do, no lock and no right is needed.
            if self.missing(migrations).await?.is_empty() {
                return Ok(());
            }
            if self.try_lock().await? {
                break;
            }
            let what = "another process brings the schema up to date";
            if self.pace.is_due() {
                let holder = waiting::lock_holder(&mut self.connection, &name).await;
                tracing::info!("waiting while {what}: {holder}");
            }
            if Instant::now() >= until {
                let holder = waiting::lock_holder(&mut self.connection, &name).await;
                return Err(Error::Held { what: what.to_owned(), holder });
            }
            tokio::time::sleep(POLL).await;
        }
        let made = self.make(migrations).await;
        // Only now: whoever has the lock next must see what was committed.
        let unlock = sqlx::query("SELECT pg_advisory_unlock(hashtextextended($1, 0))").bind(self.lock_name());
        let _ = unlock.execute(&mut self.connection).await;
        made
    }

    /// One lock for each schema, so that services of others in the same database don't wait for it.
    fn lock_name(&self) -> String {
        format!("queue-service migrations {}", self.schema)
    }

    async fn try_lock(&mut self) -> Result<bool, Error> {
        let lock = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))").bind(self.lock_name());
        lock.fetch_one(&mut self.connection).await.map_err(Error::away)
    }

    /// The migrations that were not applied yet.
    async fn missing<'m>(&mut self, migrations: &'m Migrator) -> Result<Vec<&'m Migration>, Error> {
        let applied = match applied(&mut self.connection).await {
            Ok(applied) => applied,
            Err(e) if kind(&e) == Kind::Rights => return Err(self.may_not_use("_sqlx_migrations").await?),
            Err(e) => return Err(Error::Away(e.into())),
        };
        let mut missing = Vec::new();
        for migration in migrations.iter().filter(|migration| !migration.migration_type.is_down_migration()) {
            match applied.get(&migration.version) {
                None => missing.push(migration),
                Some(known) if !known.success => return Err(Error::Dirty(migration.version)),
                Some(known) if *known.checksum != *migration.checksum => return Err(Error::Changed(migration.version)),
                Some(_) => {}
            }
        }
        Ok(missing)
    }

    async fn make(&mut self, migrations: &Migrator) -> Result<(), Error> {
        self.make_schema().await?;
        for migration in self.missing(migrations).await? {
            self.apply(migration).await?;
        }
        Ok(())
    }

    async fn make_schema(&mut self) -> Result<(), Error> {
        let there: Option<(bool, bool)> = sqlx::query_as(
            "SELECT has_schema_privilege(oid, 'USAGE'), has_schema_privilege(oid, 'CREATE') FROM pg_namespace
             WHERE nspname = $1",
        )
        .bind(&self.schema)
        .fetch_optional(&mut self.connection)
        .await
        .map_err(Error::away)?;
        match there {
            Some((true, true)) => {}
            Some(_) => return Err(self.may_not_enter().await?),
            None => {
                let make = format!("CREATE SCHEMA IF NOT EXISTS \"{}\"", self.schema);
                match sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut self.connection).await {
                    Ok(_) => {}
                    Err(e) if kind(&e) == Kind::Rights => return Err(self.may_not_make_schema().await?),
                    Err(e) => return Err(Error::Away(e.into())),
                }
            }
        }
        // CREATE TABLE IF NOT EXISTS asks for the right to make one even where it is there.
        let there: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&mut self.connection)
            .await
            .map_err(Error::away)?;
        if there {
            return Ok(());
        }
        // As sqlx makes it, whose table it was before.
        let table = "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL,
            installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL,
            execution_time bigint NOT NULL)";
        sqlx::raw_sql(table).execute(&mut self.connection).await.map(|_| ()).map_err(Error::away)
    }

    async fn apply(&mut self, migration: &Migration) -> Result<(), Error> {
        let (began, version) = (Instant::now(), migration.version);
        if migration.no_tx {
            for step in steps(migration.sql.as_str()) {
                match step {
                    Step::Index(index) => self.build(version, &index, index.name, index.table).await?,
                    Step::Statement(sql) if step.is_patient() => self.carry_out(version, Work::Patient(sql)).await?,
                    Step::Statement(sql) => self.carry_out(version, Work::Statement(sql)).await?,
                }
            }
            self.carry_out(version, Work::Record(migration)).await?;
        } else {
            self.carry_out(version, Work::Whole(migration)).await?;
        }
        let took = began.elapsed();
        tracing::debug!("applied migration {version} ({}) in {} ms", migration.description, took.as_millis());
        let note = sqlx::query("UPDATE _sqlx_migrations SET execution_time = $1 WHERE version = $2")
            .bind(i64::try_from(took.as_nanos()).unwrap_or(i64::MAX))
            .bind(version);
        // Only for those who like to know.
        let _ = note.execute(&mut self.connection).await;
        Ok(())
    }

    /// Does it, again and again as long as somebody else has what it needs, and tells who.
    async fn carry_out(&mut self, version: i64, work: Work<'_>) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        let mut pause = TRY_AGAIN;
        loop {
            let watch = Watch { connector: &self.connector, pid: self.pid, version };
            let (done, holder) = watch.over(work.run(&mut self.connection), &mut self.pace).await;
            let Err(e) = done else { return Ok(()) };
            let kind = kind(&e);
            let source = Cause::from(e);
            match (source.code().as_deref(), kind) {
                // lock_not_available, deadlock_detected
                (Some("55P03" | "40P01"), _) if Instant::now() < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(TRY_AGAIN_MOST);
                }
                (Some("55P03" | "40P01"), _) => {
                    return Err(Error::Held { what: format!("migration {version} got no lock of a table"), holder });
                }
                (_, Kind::Rights) => return Err(self.may_not_change(&source).await?),
                (_, Kind::Session | Kind::Passing) => return Err(Error::Away(source)),
                (_, Kind::Data | Kind::Ours) => return Err(Error::Failed { version, source }),
            }
        }
    }
}

/// What is done at a time, and again from its beginning.
#[derive(Clone, Copy)]
enum Work<'a> {
    /// All of a migration and the note of it, or nothing.
    Whole(&'a Migration),
    Statement(&'a str),
    /// A statement that nobody waits for, however long it takes.
    Patient(&'a str),
    /// The note that a migration was applied.
    Record(&'a Migration),
}

impl Work<'_> {
    async fn run(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        match self {
            Work::Whole(migration) => {
                let mut transaction = connection.begin().await?;
                set_lock_timeout(&mut transaction, TABLE_LOCK).await?;
                sqlx::raw_sql(migration.sql.clone()).execute(&mut *transaction).await?;
                record(&mut transaction, migration).await?;
                transaction.commit().await
            }
            Work::Statement(sql) => {
                set_lock_timeout(connection, TABLE_LOCK).await?;
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(|_| ())
            }
            Work::Patient(sql) => {
                set_lock_timeout(connection, Duration::ZERO).await?;
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(|_| ())
            }
            Work::Record(migration) => record(connection, migration).await,
        }
    }
}

async fn set_lock_timeout(connection: &mut PgConnection, limit: Duration) -> Result<(), sqlx::Error> {
    let set = sqlx::query("SELECT set_config('lock_timeout', $1, false)").bind(limit.as_millis().to_string());
    set.execute(connection).await.map(|_| ())
}

async fn record(connection: &mut PgConnection, migration: &Migration) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES ($1, $2, true, $3, -1)",
    )
    .bind(migration.version)
    .bind(&*migration.description)
    .bind(&*migration.checksum)
    .execute(connection)
    .await
    .map(|_| ())
}
