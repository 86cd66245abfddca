//! The HTTP door: translates routes to what `ops` offers, and decides nothing about jobs.
//!
//! In reading order: `listen` and `guard` own the connections, `gate` says who may come in, `jobs` and `service` are
//! the routes, `query` and `body` read what was sent, `refusal` writes what went wrong, `openapi` describes it all, and
//! `home` and `docs` show it to people.

mod body;
mod docs;
mod framing;
mod gate;
mod guard;
mod home;
mod html;
mod jobs;
mod listen;
mod metrics;
pub mod openapi;
mod query;
mod refusal;
mod routes;
mod service;
#[cfg(test)]
mod tests;
mod work;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{Router, body::Body, http::HeaderMap};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    ops::{ApiError, Ops, input, wire},
    supervise::Tasks,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not listen on http.bind {bind}; see that the port is free, or set another (0 takes any)")]
    Bind {
        bind: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// What every route may use.
struct Door {
    ops: Ops,
    bodies: body::Bodies,
    payload_limit: usize,
    started: Instant,
}

/// Serves until `stop`, on a task of `tasks` that ends when all connections have; every clone of `ops` is dropped then.
/// `extra` are routes of somebody else behind the same gate, for instance of a sandbox.
///
/// # Errors
/// The address can't be listened on.
pub async fn start(
    ops: Ops,
    config: &config::Http,
    extra: Router,
    stop: CancellationToken,
    tasks: &Tasks,
) -> Result<SocketAddr, Error> {
    let failed = |source| Error::Bind { bind: config.bind, source };
    let listener = TcpListener::bind(config.bind).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let payload_limit = usize::try_from(ops.config.limits.payload.as_u64()).unwrap_or(usize::MAX / 2);
    let door = Door { ops, bodies: body::Bodies::new(), payload_limit, started: Instant::now() };
    let router = routes::all(Arc::new(door), gate::Gate::new(config), extra);
    let listening = Arc::new(listen::Listening::new(listener));
    let stopped = stop.clone();
    tasks.keep("http", &stop, move || listen::serve(listening.clone(), router.clone(), stopped.clone()));
    tracing::info!(%address, "HTTP answers");
    Ok(address)
}

impl Door {
    /// For routes whose request is in the path: an empty body, or an empty object.
    async fn no_body(&self, headers: &HeaderMap, body: Body) -> Result<(), ApiError> {
        const EMPTY: usize = 1024;
        let held = self.bodies.read(headers, body, EMPTY).await?;
        let wire::Empty {} = input::parse(&held.bytes)?;
        Ok(())
    }
}
