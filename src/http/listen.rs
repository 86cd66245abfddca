//! The accept loop: connections up to a cap, each watched, all ended in order at the stop.
//!
//! `axum::serve` is not used because it sets no timer, and hyper's time limits do nothing without one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{
    framing::MAX_HEAD,
    guard::{Guard, Patience},
};
use crate::supervise;

/// Open connections; further ones wait in the system's backlog.
const MAX_CONNECTIONS: usize = 1024;
const MAX_HEADERS: usize = 100;
const PATIENCE: Patience = Patience { head: Duration::from_secs(10), stall: Duration::from_secs(30) };
/// Longest pause between two requests on one connection.
const IDLE: Duration = Duration::from_secs(60);
/// How long open requests may go on after a stop: as long as callers may have to wait for an answer.
const GRACE: Duration = Duration::from_secs(2);

/// Who is asking; an extension of each request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// A door that is open, with those who have come in. It outlives a panic of [`serve`].
pub struct Listening {
    places: Arc<Semaphore>,
    open: Mutex<Open>,
}

struct Open {
    /// `None` once it is closed.
    listener: Option<TcpListener>,
    connections: JoinSet<()>,
}

impl Listening {
    pub fn new(listener: TcpListener) -> Self {
        let open = Open { listener: Some(listener), connections: JoinSet::new() };
        Self { places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), open: Mutex::new(open) }
    }
}

/// Serves until `stop`; when it returns then, every connection has ended.
pub async fn serve(listening: Arc<Listening>, router: Router, stop: CancellationToken) {
    let places = &listening.places;
    let mut open = listening.open.lock().await;
    let Open { listener, connections } = &mut *open;
    while let Some(door) = &*listener {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, door.accept().await)
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => drop(ended),
            (place, accepted) = accepted => match accepted {
                Ok((stream, peer)) => {
                    let connection = connection(stream, Peer(peer), router.clone(), stop.clone());
                    supervise::spawn_in(connections, "http connection", async move {
                        connection.await;
                        drop(place);
                    });
                }
                // Out of file descriptors, most likely: trying again at once would only burn the processor.
                Err(e) => {
                    tracing::warn!("could not accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    *listener = None;
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::warn!("{} HTTP connections were cut off at the stop", connections.len());
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, peer: Peer, router: Router, stop: CancellationToken) {
    // An answer is one piece; waiting for more to send with it would only delay it.
    let _ = stream.set_nodelay(true);
    let (guard, verdict) = Guard::new(stream, PATIENCE);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(verdict.clone());
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(guard), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(peer = %peer.0, "an HTTP connection ended: {e}");
    }
}
