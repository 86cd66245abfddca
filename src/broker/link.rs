//! What is told of the connections to NATS: which server can't be reached and why, once and then at a falling rate, and
//! when it is back. The client itself tells several times a second that there was an "IO error".

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_nats::{ConnectOptions, Event, Server, ServerAddr, ServerError};

use crate::telemetry::Seldom;

/// All connections of this process. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Link(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By the names of the connections.
    connections: HashMap<&'static str, Connection>,
    said: Seldom,
    /// What the broker said in an established connection.
    complaints: Seldom,
    /// Since when a failure is on record that was told.
    down: Option<Instant>,
    /// Whether there was a connection before.
    was_up: bool,
}

#[derive(Default)]
struct Connection {
    is_up: bool,
    /// Rounds over all servers since it was up.
    rounds: u32,
    /// Why the last round failed.
    why: Option<String>,
}

impl Link {
    /// Has what happens to a connection told here.
    pub fn watch(&self, options: ConnectOptions, name: &'static str) -> ConnectOptions {
        let (rounds, events) = (self.clone(), self.clone());
        options
            .reconnect_to_server_callback(move |servers, _| {
                let link = rounds.clone();
                async move {
                    link.round(name, servers).await;
                    // The client's own choice.
                    None
                }
            })
            .event_callback(move |event| {
                events.note(name, &event);
                async {}
            })
    }

    /// Why there is no connection; `None` while there is one, or nothing was tried yet.
    pub fn trouble(&self) -> Option<String> {
        self.lock().connections.values().filter(|connection| !connection.is_up).find_map(|c| c.why.clone())
    }

    /// A further round over the servers begins; the one before, if there was one, has failed.
    async fn round(&self, name: &'static str, servers: Vec<Server>) {
        let round = {
            let mut state = self.lock();
            let connection = state.connections.entry(name).or_default();
            connection.rounds += 1;
            connection.rounds
        };
        if round == 1 {
            return;
        }
        let mut reasons = Vec::new();
        for server in &servers {
            let why = match &server.last_error {
                Some(error) => Some(reason(error)),
                None => unknown_host(&server.addr).await,
            };
            reasons.extend(why.map(|why| format!("{}: {why}", shown(&server.addr))));
        }
        if !reasons.is_empty() {
            self.failed(name, reasons.join("; "));
        }
    }

    fn failed(&self, name: &'static str, why: String) {
        let (mut state, now) = (self.lock(), Instant::now());
        if state.said.is_due(&why, now) {
            tracing::warn!("no connection to NATS, trying again: {why}");
        } else {
            tracing::debug!("no connection to NATS ({name}): {why}");
        }
        state.down.get_or_insert(now);
        state.connections.entry(name).or_default().why = Some(why);
    }

    fn note(&self, name: &'static str, event: &Event) {
        match event {
            Event::Connected => self.connected(name),
            Event::Disconnected => {
                let mut state = self.lock();
                *state.connections.entry(name).or_default() = Connection::default();
                let is_first = state.down.is_none();
                state.down.get_or_insert_with(Instant::now);
                drop(state);
                if is_first {
                    tracing::warn!("the connection to NATS is lost");
                }
            }
            Event::LameDuckMode => tracing::info!("the NATS server is going to stop, looking for another one"),
            // What we asked for ourselves.
            Event::Draining | Event::Closed => {}
            // That a round has failed, without the reason; see `round`.
            Event::ClientError(e) => tracing::debug!("NATS connection: {e}"),
            Event::ServerError(ServerError::Other(said)) => self.complaint(said),
            other => self.complaint(&other.to_string()),
        }
    }

    fn connected(&self, name: &'static str) {
        let mut state = self.lock();
        *state.connections.entry(name).or_default() = Connection { is_up: true, ..Connection::default() };
        if state.connections.values().any(|connection| !connection.is_up) {
            return;
        }
        let (down, was_up) = (state.down.take(), std::mem::replace(&mut state.was_up, true));
        state.said.clear();
        drop(state);
        match down {
            Some(since) if was_up => tracing::info!("connected to NATS again after {} s", since.elapsed().as_secs()),
            None if was_up => {}
            Some(_) | None => tracing::info!("connected to NATS"),
        }
    }

    fn complaint(&self, said: &str) {
        if self.lock().complaints.is_due(said, Instant::now()) {
            tracing::warn!("NATS says: {said}");
        } else {
            tracing::debug!("NATS says: {said}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that is not known is no error of a server for the client.
async fn unknown_host(server: &ServerAddr) -> Option<String> {
    let found = tokio::net::lookup_host((server.host(), server.port())).await;
    found.err().map(|e| e.to_string())
}

/// A server as people write it, without a login.
fn shown(server: &ServerAddr) -> String {
    match server.host() {
        v6 if v6.contains(':') => format!("{}://[{v6}]:{}", server.scheme(), server.port()),
        host => format!("{}://{host}:{}", server.scheme(), server.port()),
    }
}

/// The client's words, with what they mean for who set it up.
pub(crate) fn reason(error: &str) -> String {
    let plain = error.strip_prefix("IO error: ").or_else(|| error.strip_prefix("TLS error: ")).unwrap_or(error);
    let advice = match plain.to_lowercase() {
        lower if lower.contains("authorization violation") => {
            "the server does not let us in: check the user and password in nats.url, nats.token or nats.creds"
        }
        lower if lower.contains("notvalidforname") => "the name in nats.url must be in the server's certificate",
        lower if lower.contains("invalid peer certificate") => {
            "the server's certificate must be valid now, and signed by one of nats.tls_ca"
        }
        lower if lower.contains("peer sent no certificates") || lower.contains("certificaterequired") => {
            "the server wants a client certificate: set nats.tls_cert and nats.tls_key"
        }
        lower if lower.contains("received corrupt message") || lower.contains("expected info") => {
            "what answers there may be no NATS server, or want TLS from the first byte on"
        }
        _ => return plain.to_owned(),
    };
    format!("{plain} ({advice})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_shown_with_their_port_and_without_a_login() {
        let show = |url: &str| shown(&url.parse().unwrap());
        assert_eq!(show("nats://me:canary@[::1]:7"), "nats://[::1]:7");
        assert_eq!(show("tls://h"), "tls://h:4222");
    }

    #[test]
    fn trouble_is_over_when_all_connections_are_up() {
        let link = Link::default();
        link.failed("one", "refused".into());
        link.failed("two", "refused".into());
        link.note("one", &Event::Connected);
        assert_eq!(link.trouble().as_deref(), Some("refused"));
        link.note("two", &Event::Connected);
        assert_eq!(link.trouble(), None);
        link.note("one", &Event::Disconnected);
        assert_eq!(link.trouble(), None, "nobody knows yet why");
    }
}
