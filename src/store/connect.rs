//! How connections are made: to the first server that takes writes, and set up for their work by statements.
//!
//! Not by options of the start: a pooler (pgbouncer) refuses them, or drops them without a word, and then all tables would
//! land in another schema. So each session is asked what it has before it is used.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{STATEMENT, address};

/// Longest try of one server, when there are others.
const EACH: Duration = Duration::from_secs(2);
/// Of what a connection is told first: where its tables are.
const SEARCH_PATH: &str = "search_path";

/// Names and values.
type Settings = Vec<(&'static str, String)>;

/// Makes connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    servers: Arc<[PgConnectOptions]>,
    /// The server that was found last.
    current: Arc<AtomicUsize>,
    settings: Arc<Settings>,
}

impl Connector {
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(url: &str, schema: &str) -> Result<Self, String> {
        // `extra_float_digits` is what the driver sends by itself, and no pooler takes it; Postgres is exact without.
        let servers = address::servers(url)?.into_iter();
        let servers = servers.map(|options| options.application_name("queue-service").extra_float_digits(None));
        let settings = [
            (SEARCH_PATH, schema),
            ("statement_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "10s"),
            ("timezone", "UTC"),
            // Unnested arrays are estimated at a hundred rows whatever they hold; compiling for them costs more
            // than it gains.
            ("jit", "off"),
        ];
        Ok(Self {
            servers: servers.collect(),
            current: Arc::default(),
            settings: Arc::new(settings.map(|(name, value)| (name, value.to_owned())).to_vec()),
        })
    }

    /// With further settings, which win.
    pub fn with<const N: usize>(&self, more: [(&'static str, &str); N]) -> Self {
        let more = more.map(|(name, value)| (name, value.to_owned()));
        let mut settings = (*self.settings).clone();
        settings.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        settings.extend(more);
        Self { settings: Arc::new(settings), ..self.clone() }
    }

    /// The server that was found last.
    pub fn server(&self) -> PgConnectOptions {
        self.servers[self.current.load(Ordering::Relaxed) % self.servers.len()].clone()
    }

    /// The servers as people write them.
    pub fn shown(&self) -> String {
        self.servers.iter().map(address::shown).collect::<Vec<_>>().join(", ")
    }

    pub fn has_several(&self) -> bool {
        self.servers.len() > 1
    }

    /// A connection to the first server that takes writes, beginning with the one that was found last.
    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        self.connect_by(self.server()).await
    }

    /// For what may take longer than any statement of the service, and is not logged with all of its text.
    pub async fn connect_patient(&self) -> Result<PgConnection, sqlx::Error> {
        self.with([("statement_timeout", "0")]).connect_by(self.server().disable_statement_logging()).await
    }

    async fn connect_by(&self, first: PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        if !self.has_several() {
            let mut connection = first.connect().await?;
            self.set_up(&mut connection).await?;
            return Ok(connection);
        }
        let (mut reasons, found) = (Vec::new(), self.current.load(Ordering::Relaxed));
        for place in (0..self.servers.len()).map(|n| (found + n) % self.servers.len()) {
            match tokio::time::timeout(EACH, self.connect_writable(&self.servers[place])).await {
                Ok(Ok(connection)) => {
                    self.current.store(place, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok(Err(e)) => reasons.push((place, e)),
                Err(_) => reasons.push((place, sqlx::Error::Protocol("no answer".into()))),
            }
        }
        let told: Vec<String> = reasons
            .iter()
            .map(|(place, e)| format!("{}: {}", address::shown(&self.servers[*place]), super::error::plain(e)))
            .collect();
        Err(sqlx::Error::Io(std::io::Error::other(told.join("; "))))
    }

    async fn connect_writable(&self, server: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        let mut connection = server.connect().await?;
        self.set_up(&mut connection).await?;
        let is_standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut connection).await?;
        match is_standby {
            true => Err(sqlx::Error::Protocol("it is a standby, which takes no writes".into())),
            false => Ok(connection),
        }
    }

    /// A pool whose connections are set up.
    pub fn on(&self, pool: PgPoolOptions) -> PgPoolOptions {
        let connector = self.clone();
        pool.after_connect(move |connection, _| {
            let connector = connector.clone();
            Box::pin(async move { connector.set_up(connection).await })
        })
    }

    /// Tells the session its settings, and sees that it has them.
    async fn set_up(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let names: Vec<&str> = self.settings.iter().map(|(name, _)| *name).collect();
        let values: Vec<&str> = self.settings.iter().map(|(_, value)| value.as_str()).collect();
        let set_up = async {
            sqlx::query(
                "SELECT count(set_config(name, value, false)) FROM unnest($1::text[], $2::text[]) AS s (name, value)",
            )
            .persistent(false)
            .bind(&names)
            .bind(&values)
            .execute(&mut *connection)
            .await?;
            let path = sqlx::query("SELECT current_setting('search_path')").persistent(false);
            path.fetch_one(&mut *connection).await?.try_get::<String, _>(0)
        };
        let path = match tokio::time::timeout(STATEMENT, set_up).await {
            Ok(path) => path?,
            Err(_) => return Err(sqlx::Error::Protocol("no answer to the settings of the session".into())),
        };
        match self.settings.iter().find(|(name, _)| *name == SEARCH_PATH) {
            Some((_, wanted)) if *wanted != path => Err(sqlx::Error::Protocol(
                "the session does not keep its search_path: what stands between must give each connection a session of its own"
                    .into(),
            )),
            _ => Ok(()),
        }
    }

    /// Whether connections have sessions of their own. Behind a pooler that hands a session to somebody else after each
    /// transaction, settings, locks and notices would be other people's. `None`: it can't be told.
    pub async fn has_sessions(&self) -> Option<bool> {
        let look = async {
            let server = self.server();
            let mut pair = [server.connect().await.ok()?, server.connect().await.ok()?];
            let mut has_sessions = true;
            // A pooler gives the session that was used last: that of the other one. Thrice, since a third may come between.
            for round in 0..3 {
                for (which, connection) in pair.iter_mut().enumerate() {
                    let mark = format!("SET queue_service.mark = '{round}-{which}'");
                    sqlx::raw_sql(sqlx::AssertSqlSafe(mark)).execute(connection).await.ok()?;
                }
                for (which, connection) in pair.iter_mut().enumerate() {
                    let read = "SELECT current_setting('queue_service.mark', true)";
                    let row = sqlx::raw_sql(read).fetch_one(connection).await.ok()?;
                    let mark: Option<String> = row.try_get(0).ok()?;
                    has_sessions &= mark.is_some_and(|mark| mark == format!("{round}-{which}"));
                }
            }
            for connection in pair {
                let _ = connection.close().await;
            }
            Some(has_sessions)
        };
        tokio::time::timeout(STATEMENT, look).await.ok().flatten()
    }
}
