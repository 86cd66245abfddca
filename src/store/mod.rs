//! The only SQL. Hot statements (enqueue, claim, finish) are written out, one function each; reads go through entities.
//!
//! Every statement has a deadline: a connection that does not answer in time is dropped, never given back to the pool.

mod address;
pub mod cancel;
pub mod claim;
pub mod columns;
mod connect;
mod connections;
pub mod counts;
pub mod ends;
pub mod enqueue;
pub mod entity;
mod error;
pub mod finish;
pub mod grace;
mod harmed;
pub mod held;
mod keys;
pub mod marks;
pub mod migrate;
pub mod notes;
pub mod outbox;
pub mod outside;
mod places;
pub mod query;
mod reading;
pub mod rearm;
pub mod retention;
pub mod retry;
mod row;
mod server;
pub mod sweep;
pub mod turns;
pub mod types;
pub mod vacuum;
pub mod workers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{DatabaseConnection, SqlxPostgresConnector};
use sqlx::{
    FromRow, PgPool, Postgres,
    migrate::Migrator,
    postgres::{PgArguments, PgPoolOptions, PgRow},
    query::QueryAs,
};

use crate::config;
pub use connect::Connector;
use connections::{Connections, Doubt, sign_of_life};
pub use error::{Cause, Error};
pub use harmed::Harmed;
use server::Server;

/// Longest wait for a free connection. Shorter than what any caller is promised (2 s).
const ACQUIRE: Duration = Duration::from_millis(1500);
/// Longest run of one statement, as the client measures it. The server's `statement_timeout` is the same.
const STATEMENT: Duration = Duration::from_secs(5);
/// Longest wait for what a caller asks, connection and all: he is promised an answer within 2 s.
pub(crate) const ANSWER: Duration = Duration::from_millis(1700);

/// All that this version knows. A newer one may have added others, and this one has to start beside it.
pub static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Handles to the database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// Enqueue, claim, finish, and what else runs all the time.
    hot: Connections,
    /// Reads and admin, so that a flood of them can't hold up the hot path.
    reads: Connections,
    connector: Connector,
    server: Server,
    doubt: Doubt,
    harmed: Harmed,
    /// Whether the schema is known to be there. Before that nothing is asked of it, so that a service that starts before
    /// its database says `unavailable` and not that a table is missing.
    migrated: Arc<AtomicBool>,
    reach: grace::Reach,
}

impl Store {
    /// Opens the pools; no connection is made yet, so that a database that is away does not keep the service from
    /// starting.
    ///
    /// # Errors
    /// [`Error::Url`] when the URL can't be read.
    pub fn open(config: &config::Database) -> Result<Self, Error> {
        let connector = Connector::new(&config.url, &config.schema).map_err(Error::Url)?;
        // On a table without statistics the planner would scan it for batched updates until the first autoanalyze,
        // at a third of the speed or worse.
        let for_hot_path = connector.with([("enable_seqscan", "off"), ("plan_cache_mode", "force_generic_plan")]);
        let for_reads = (config.max_connections / 3).max(2);
        let for_hot = config.max_connections - for_reads;
        let doubt = Doubt::default();
        let pool = |size: u32| {
            let doubt = doubt.clone();
            PgPoolOptions::new()
                .max_connections(size)
                .min_connections(1)
                .acquire_timeout(ACQUIRE)
                .test_before_acquire(false)
                .before_acquire(move |connection, meta| {
                    let doubtful = doubt.concerns(meta.age);
                    Box::pin(async move { if doubtful { sign_of_life(connection).await } else { Ok(true) } })
                })
        };
        // sqlx asks a connection that comes back for a sign of life, and waits for it without end: a read that was cut
        // off on a silent connection would take its place in the pool away for good.
        let reads = pool(for_reads).after_release(|connection, _| Box::pin(sign_of_life(connection)));
        let hot = for_hot_path.on(pool(for_hot)).connect_lazy_with(connector.server());
        let reads = connector.on(reads).connect_lazy_with(connector.server());
        Ok(Self {
            server: Server::new(connector.clone(), vec![hot.clone(), reads.clone()]),
            hot: Connections::new(hot, for_hot, for_hot, doubt.clone()),
            // None is kept here: entities and handlers take theirs from the pool itself.
            reads: Connections::new(reads, for_reads, 0, doubt.clone()),
            connector,
            doubt,
            harmed: Harmed::default(),
            migrated: Arc::default(),
            reach: grace::Reach::default(),
        })
    }

    /// Makes the schema when missing and brings it to this version. Safe when many processes start at once: one of them
    /// does it, the others wait. Holds nobody up who uses the schema meanwhile, and asks for no right that it does not need.
    ///
    /// # Errors
    /// The database is away or others hold its tables all the time, which pass; a right is missing, or a migration fails:
    /// the schema is then as before that migration.
    pub async fn migrate(&self, schema: &str) -> Result<(), Error> {
        self.migrate_with(schema, &MIGRATIONS).await
    }

    /// As [`Store::migrate`], with other migrations than those of this version: for tests.
    ///
    /// # Errors
    /// As [`Store::migrate`].
    pub async fn migrate_with(&self, schema: &str, migrations: &Migrator) -> Result<(), Error> {
        // Before anything is set in a session that may be somebody else's a moment later.
        if self.connector.has_sessions().await == Some(false) {
            return Err(Error::Pooler { server: self.connector.shown() });
        }
        migrate::run(&self.connector, schema, migrations).await.map_err(|e| match e {
            migrate::Error::Away(source) => Error::Away { server: self.connector.shown(), source },
            other => Error::Migrate(other),
        })?;
        self.server.answers();
        self.migrated.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Answers when the database does.
    ///
    /// # Errors
    /// [`Error::Unavailable`] after two seconds at the latest.
    pub async fn ping(&self) -> Result<(), Error> {
        self.bounded::<(i32,)>(&self.reads, ANSWER, "ping", sqlx::query_as("SELECT 1")).await.map(|_| ())
    }

    /// The pool of reads, for handlers that have tables of their own.
    pub fn reads(&self) -> &PgPool {
        self.reads.pool()
    }

    /// Whether signs of life of runs outside can arrive.
    pub fn reach(&self) -> &grace::Reach {
        &self.reach
    }

    /// How to connect, for parts that need a connection of their own.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Which server can't be used and why, as far as it is known.
    pub fn trouble(&self) -> Option<String> {
        self.server.trouble()
    }

    /// Tells of what keeps the start waiting: when it is new, and then at a falling rate.
    pub fn tell(&self, error: &Error) {
        match error {
            Error::Away { source, .. } => self.server.failed(&source.to_string()),
            other => other.tell("waiting for the database"),
        }
    }

    /// Ends all connections once they are idle.
    pub async fn close(&self) {
        tokio::join!(self.hot.close(), self.reads.close());
    }

    pub(crate) fn orm(&self) -> DatabaseConnection {
        SqlxPostgresConnector::from_sqlx_postgres_pool(self.reads().clone())
    }

    /// Runs one statement on the hot connections.
    async fn hot_all<T>(&self, context: &'static str, query: Fetch<'_, T>) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        self.check_migrated()?;
        self.bounded(&self.hot, ACQUIRE + STATEMENT, context, query).await
    }

    /// As [`Store::hot_all`], for a caller who waits for the answer.
    async fn hot_answer<T>(&self, context: &'static str, query: Fetch<'_, T>) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        self.check_migrated()?;
        self.bounded(&self.hot, ANSWER, context, query).await
    }

    /// Runs one statement on the connections for reads and admin.
    async fn read_all<T>(&self, context: &'static str, query: Fetch<'_, T>) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        self.check_migrated()?;
        self.bounded(&self.reads, ACQUIRE + STATEMENT, context, query).await
    }

    /// As [`Store::read_all`], for a caller who waits for the answer.
    async fn read_answer<T>(&self, context: &'static str, query: Fetch<'_, T>) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        self.check_migrated()?;
        self.bounded(&self.reads, ANSWER, context, query).await
    }

    fn check_migrated(&self) -> Result<(), Error> {
        if self.migrated.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(Error::Unavailable { context: "the schema is not there yet", source: None })
    }

    /// One statement, with a connection, in `limit`.
    async fn bounded<T>(
        &self,
        connections: &Connections,
        limit: Duration,
        context: &'static str,
        query: Fetch<'_, T>,
    ) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let asked = std::time::Instant::now();
        let until = tokio::time::Instant::from_std(asked) + limit;
        let failed = |e: sqlx::Error| {
            // Nothing of the server's own: nobody knows whether it is there.
            if e.as_database_error().is_none() {
                self.server.suspect();
            }
            let error = Error::of(context, e);
            if error.is_transient() {
                self.reach.lose_since(asked);
            }
            error
        };
        let too_late = || {
            self.server.suspect();
            self.reach.lose_since(asked);
            Error::Unavailable { context, source: None }
        };
        let taken = tokio::time::timeout_at(until, connections.take()).await;
        let mut taken = taken.map_err(|_| too_late())?.map_err(failed)?;
        let run = query.fetch_all(taken.get().map_err(failed)?);
        match tokio::time::timeout_at(until, tokio::time::timeout(STATEMENT, run)).await {
            Ok(Ok(Ok(rows))) => {
                taken.give_back();
                self.reach.note_answer(asked);
                Ok(rows)
            }
            Ok(Ok(Err(e))) => {
                // Without an answer from the server nobody knows what state the connection is in.
                if e.as_database_error().is_some() {
                    taken.give_back();
                } else {
                    self.doubt.raise();
                }
                Err(failed(e))
            }
            Ok(Err(_)) | Err(_) => {
                self.doubt.raise();
                Err(too_late())
            }
        }
    }
}

type Fetch<'q, T> = QueryAs<'q, Postgres, T, PgArguments>;
