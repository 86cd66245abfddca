//! The process's own log, on standard error: set up once, before anything else says something.
//!
//! Invariant: whether anybody reads standard error changes nothing. `eprintln!` panics when the reader of a pipe has gone
//! away, which would end a service in the middle of its stop; so nothing here or elsewhere uses it.

mod seldom;

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use tracing_subscriber::{EnvFilter, fmt::time::ChronoLocal};

use crate::config::{Log, LogFormat};
pub use seldom::{Seldom, warn_seldom};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log.filter '{filter}' can't be used; write for instance 'info' or 'queue_service=debug,warn'")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("the log is set up already: a mistake in the program")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends the log to standard error: for somebody who looks at it short and in colours, else complete.
///
/// # Errors
/// A filter that is none.
pub fn init(log: &Log) -> Result<(), Error> {
    use tracing_subscriber::util::SubscriberInitExt;

    // What this library tells of connections we tell ourselves; a filter that names it still wins.
    let filter = if log.filter.contains("async_nats") {
        log.filter.clone()
    } else {
        format!("async_nats=off,sqlx=warn,{}", log.filter)
    };
    let filter =
        EnvFilter::builder().parse(&filter).map_err(|source| Error::Filter { filter: log.filter.clone(), source })?;
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let watched = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(watched && !plain)
        // What it can't write it would tell by `eprintln!`.
        .log_internal_errors(false)
        .with_writer(|| Stderr);
    match log.format {
        // The day and the module say nothing to somebody who sees the lines come.
        LogFormat::Text if watched => {
            lines.with_timer(ChronoLocal::new("%H:%M:%S%.3f".into())).with_target(false).finish().try_init()
        }
        LogFormat::Text => lines.finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    }
    .map_err(Error::Twice)
}

/// Writes a line to standard error, if anybody reads it.
pub fn say(line: impl Display) {
    let _ = writeln!(Stderr, "{line}");
}

/// Standard error that takes everything, also when nobody reads it.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
