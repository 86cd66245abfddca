//! What can go wrong with the database, and whether it passes.

use std::fmt;

use super::migrate;
use crate::telemetry;

/// Why a statement was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Try again later: no connection, no answer in time, a restart, a deadlock, a full disk.
    #[error("the database can't be used right now ({context})")]
    Unavailable {
        context: &'static str,
        #[source]
        source: Option<Cause>,
    },
    /// The data can't be stored as it is; trying again changes nothing.
    #[error("the database refused the data ({context})")]
    Rejected {
        context: &'static str,
        #[source]
        source: Cause,
    },
    /// The user of the connection lacks a right.
    #[error(
        "the database user may not do this ({context}); it needs SELECT, INSERT, UPDATE and DELETE on all tables of the \
         schema and EXECUTE on its functions, or to be a member of the role that owns them"
    )]
    Denied {
        context: &'static str,
        #[source]
        source: Cause,
    },
    /// A statement is wrong, or the schema is not the one of this version: a bug or a missing migration.
    #[error("a statement does not fit the database ({context}); run `queue-service migrate`, else this is a bug")]
    Broken {
        context: &'static str,
        #[source]
        source: Cause,
    },
    #[error("database.url can't be used: {0}")]
    Url(String),
    /// At the start.
    #[error("Postgres at {server} can't be used right now")]
    Away {
        server: String,
        #[source]
        source: Cause,
    },
    #[error(
        "{server} is a pooler that hands sessions on after each transaction; queue-service needs its own: set pool_mode = \
         session for this database or user (pgbouncer), or connect to Postgres itself"
    )]
    Pooler { server: String },
    #[error(transparent)]
    Migrate(#[from] migrate::Error),
}

/// What the driver or the server said, once and in one line: without the line of Postgres's own source that the driver
/// adds, and without the detail, which may quote data.
#[derive(Debug)]
pub struct Cause(sqlx::Error);

impl Cause {
    /// The SQLSTATE, when it was the server that spoke.
    pub fn code(&self) -> Option<String> {
        code(&self.0)
    }

    pub fn as_database_error(&self) -> Option<&dyn sqlx::error::DatabaseError> {
        self.0.as_database_error()
    }
}

impl From<sqlx::Error> for Cause {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

/// What the driver or the server said, as [`Cause`] has it.
pub(super) fn plain(error: &sqlx::Error) -> String {
    Said(error).to_string()
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Said(&self.0).fmt(f)
    }
}

struct Said<'a>(&'a sqlx::Error);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.0.as_database_error()) {
            (_, Some(said)) => match said.code() {
                Some(code) => write!(f, "{} (SQLSTATE {code})", said.message()),
                None => f.write_str(said.message()),
            },
            (sqlx::Error::Io(e), None) => write!(f, "{e}"),
            (sqlx::Error::Tls(e), None) => write!(f, "TLS: {e}"),
            (sqlx::Error::Protocol(e), None) => f.write_str(e),
            (other, None) => write!(f, "{other}"),
        }
    }
}

// Its own sources are in what it says.
impl std::error::Error for Cause {}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

impl Error {
    pub(crate) fn of(context: &'static str, source: sqlx::Error) -> Self {
        match kind(&source) {
            Kind::Passing | Kind::Session => Error::Unavailable { context, source: Some(source.into()) },
            Kind::Data => Error::Rejected { context, source: source.into() },
            Kind::Rights => Error::Denied { context, source: source.into() },
            Kind::Ours => Error::Broken { context, source: source.into() },
        }
    }

    pub(crate) fn orm(context: &'static str, source: sea_orm::DbErr) -> Self {
        use sea_orm::{DbErr, RuntimeErr};
        match source {
            DbErr::Conn(RuntimeErr::SqlxError(e))
            | DbErr::Exec(RuntimeErr::SqlxError(e))
            | DbErr::Query(RuntimeErr::SqlxError(e)) => match std::sync::Arc::try_unwrap(e) {
                Ok(e) => Error::of(context, e),
                Err(e) => Error::of(context, sqlx::Error::Protocol(e.to_string())),
            },
            DbErr::ConnectionAcquire(_) => Error::Unavailable { context, source: None },
            other => Error::Broken { context, source: sqlx::Error::Protocol(other.to_string()).into() },
        }
    }

    /// Tells that something could not be done now, at a falling rate. That there was no answer is told once for all who
    /// wait for one, with the reason; see `server.rs`.
    pub fn tell(&self, what: &str) {
        let source = std::error::Error::source(self).map_or(String::new(), |source| format!(": {source}"));
        let text = format!("{what}: {self}{source}");
        if self.has_words() {
            telemetry::warn_seldom(&text);
        } else {
            tracing::debug!("{text}");
        }
    }

    /// Whether there was no answer, which is told once for all who wait for one.
    pub fn is_silence(&self) -> bool {
        !self.has_words()
    }

    fn has_words(&self) -> bool {
        match self {
            Error::Unavailable { source, .. } => source.as_ref().is_some_and(|source| source.code().is_some()),
            _ => true,
        }
    }

    /// Whether the data can't be stored as it is.
    pub fn is_about_data(&self) -> bool {
        matches!(self, Error::Rejected { .. })
    }

    /// Whether it may be due to one item of a batch, so that the others would be taken without it.
    pub fn may_be_about_one(&self) -> bool {
        matches!(self, Error::Rejected { .. } | Error::Broken { .. })
    }

    /// Whether the same statement may succeed later.
    /// What the server said, where it was the server that refused.
    pub(super) fn code(&self) -> Option<String> {
        match self {
            Error::Unavailable { source: Some(source), .. } => source.code(),
            _ => None,
        }
    }

    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unavailable { .. } | Error::Away { .. } => true,
            Error::Migrate(e) => e.is_transient(),
            Error::Rejected { .. } | Error::Denied { .. } | Error::Broken { .. } => false,
            Error::Url(_) | Error::Pooler { .. } => false,
        }
    }
}

/// Whose trouble an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Passes by itself; the connection is as good as before.
    Passing,
    /// Of this connection: another one may do.
    Session,
    Data,
    Rights,
    /// The statement's, or the schema's.
    Ours,
}

pub(super) fn kind(error: &sqlx::Error) -> Kind {
    let Some(said) = error.as_database_error() else {
        return match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::RowNotFound
            | sqlx::Error::Encode(_) => Kind::Ours,
            _ => Kind::Session,
        };
    };
    // Somebody has changed a table since this session prepared the statement: its next one will know.
    let replan = said.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|e| e.routine());
    if replan == Some("RevalidateCachedQuery") {
        return Kind::Session;
    }
    kind_of(said.code().as_deref().unwrap_or_default())
}

/// By SQLSTATE. What is not known to pass is told at once, instead of being tried for ever. Source: PostgreSQL documentation,
/// appendix A.
fn kind_of(code: &str) -> Kind {
    match code {
        // A standby, or a primary that has become one: the next connection finds the new primary.
        "25006" => Kind::Session,
        // In a transaction that has failed, or none; the server has ended it for being idle; a statement that was prepared
        // in another session.
        "25P01" | "25P02" | "25P03" | "26000" => Kind::Session,
        "42501" => Kind::Rights,
        // In use by others, or locked by them. The rest of the class is a state that no waiting changes.
        "55006" | "55P03" => Kind::Passing,
        // No such database any more.
        "57P04" => Kind::Session,
        // A statement that was cancelled for taking too long.
        "57014" => Kind::Passing,
        // Raised by a trigger of somebody else, which looks at the data.
        "P0001" => Kind::Data,
        // A file is missing, or there are two of one; broken pages and indexes.
        "58P01" | "58P02" | "XX001" | "XX002" => Kind::Ours,
        _ => match code.get(..2).unwrap_or_default() {
            // Connection, authorization at connect, unknown database, operator intervention (a restart, a crash).
            "08" | "28" | "3D" | "57" => Kind::Session,
            // Serialization and deadlocks, resources, the disk or the system, a snapshot that is too old, an internal error such as
            // two changes of one catalogue row at once.
            "40" | "53" | "58" | "72" | "XX" => Kind::Passing,
            "09" | "22" | "23" | "44" | "54" => Kind::Data,
            _ => Kind::Ours,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_is_called_passing() {
        let kinds = [
            // connection_failure, admin_shutdown, cannot_connect_now, read_only_sql_transaction
            (Kind::Session, "08006 57P01 57P03 25006 26000 28P01 3D000"),
            // serialization_failure, deadlock, disk_full, too_many_connections, lock_not_available, query_canceled
            (Kind::Passing, "40001 40P01 53100 53200 53300 55006 55P03 57014 58030 72000 XX000"),
            // numeric_value_out_of_range, unique_violation, program_limit_exceeded, raise_exception
            (Kind::Data, "22003 22P02 23505 23514 44000 54000 P0001"),
            (Kind::Rights, "42501"),
            // object_not_in_prerequisite_state (no replica identity), undefined_table, undefined_column, no such schema,
            // unsupported feature, data_corrupted, and classes that nobody has heard of
            (Kind::Ours, "55000 55P02 42P01 42703 3F000 0A000 21000 25000 XX001 XX002 58P01 F0000 HV000 P0002 ZZ999 "),
        ];
        for (kind, codes) in kinds {
            for code in codes.split(' ') {
                assert_eq!(kind_of(code), kind, "{code}");
            }
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let refused = sqlx::Error::Io(std::io::Error::from_raw_os_error(111));
        assert_eq!(Cause(refused).to_string(), "Connection refused (os error 111)");
    }
}
