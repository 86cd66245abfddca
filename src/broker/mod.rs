//! The only JetStream: topology, publishing with acknowledgement, pulling, signals and events.
//!
//! A message is a hint that a row waits; Postgres owns the truth. So everything here may fail, be late or happen twice,
//! and nothing here is ever waited for without a limit.

pub mod control;
pub mod events;
pub mod findings;
mod lanes;
mod link;
pub mod login;
pub mod publish;
pub mod pull;
pub mod stored;
mod streams;
pub mod subjects;
mod tls;
pub mod topology;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, client::RequestErrorKind, connection::State};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::config;
use findings::{Finding, Findings, Stream};
use link::Link;
pub use publish::Publisher;
use streams::Allowed;
pub use subjects::Subjects;

/// Oldest server line that has all that the streams use.
const SERVER_MIN: (u64, u64) = (2, 12);
/// Why nothing can be asked; the connection's own trouble is told elsewhere.
pub(crate) const NOT_CONNECTED: &str = "not connected";
/// Longest wait for an answer of the JetStream API.
const API: Duration = Duration::from_secs(3);

/// Connections to NATS and what is known of the streams. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    /// Requests and their answers.
    pub rpc: Client,
    /// Everything else, so that a burst of results does not delay requests.
    pub jetstream: Client,
    pub subjects: Subjects,
    pub(crate) settings: Settings,
    incarnation: Arc<Incarnation>,
    lanes: lanes::Lanes,
    link: Link,
    findings: Findings,
    allowed: Arc<Mutex<Allowed>>,
    /// Held while a stream is made.
    making: Arc<tokio::sync::Mutex<()>>,
}

/// What the streams and consumers are made with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// First tokens of the JetStream API's subjects, with the domain where one is set.
    pub api: String,
    pub replicas: u8,
    pub ack_wait: Duration,
    pub max_unanswered: usize,
    pub store_bytes: u64,
}

/// Which life of the work stream we are in. Sequence numbers begin again when a stream is made anew, so an ack from
/// before would remove another job's message.
#[derive(Debug, Default)]
struct Incarnation {
    /// Grows when the stream was found to be another one than before.
    number: AtomicU64,
    /// The connection (by count) on which the stream was last looked at.
    verified: AtomicU64,
    /// Set when an answer suggests that a stream or a consumer is missing.
    suspect: AtomicBool,
    /// When the server made the inbox, whose sequence numbers begin again as well.
    inbox: Mutex<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nats.{key} can't be used: {message}")]
    Setting { key: &'static str, message: String },
    #[error("NATS can't be reached right now ({0})")]
    Unreachable(String),
    #[error("the NATS server is {found}; queue-service needs {}.{} or newer: upgrade nats-server", SERVER_MIN.0, SERVER_MIN.1)]
    TooOld { found: String },
    #[error("JetStream answered {code} to {subject}: {description}")]
    Api { subject: String, code: u64, description: String },
    #[error("JetStream's answer to {subject} is not understood")]
    Answer {
        subject: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the built-in topology {name} is broken: a mistake in the program")]
    Topology {
        name: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

/// JetStream's codes for what passes by itself: a cluster that has no leader now. Source: nats-server `server/errors.json`.
const PASSING: [u64; 4] = [10003, 10004, 10008, 10009];

impl Error {
    /// Whether the same may succeed a moment later.
    fn is_passing(&self) -> bool {
        match self {
            Error::Unreachable(_) => true,
            Error::Api { code, .. } => PASSING.contains(code),
            _ => false,
        }
    }
}

impl Broker {
    /// Prepares both connections. They are made in the background and for ever again, so that a broker that is away
    /// does not keep the service from starting.
    ///
    /// # Errors
    /// Settings that can't be used: a file that can't be read, an URL that is none.
    pub async fn connect(config: &config::Nats, background: &config::Background) -> Result<Self, Error> {
        let link = Link::default();
        Ok(Self {
            rpc: connect(config, "rpc", &link).await?,
            jetstream: connect(config, "jetstream", &link).await?,
            subjects: Subjects::new(&config.prefix),
            settings: Settings {
                api: config.domain.as_ref().map_or("$JS.API".into(), |domain| format!("$JS.{domain}.API")),
                replicas: config.replicas,
                ack_wait: background.ack_wait,
                max_unanswered: background.max_unanswered,
                store_bytes: config.store.as_u64(),
            },
            incarnation: Arc::default(),
            lanes: lanes::Lanes::default(),
            link,
            findings: Findings::default(),
            allowed: Arc::default(),
            making: Arc::default(),
        })
    }

    /// Why there is no connection, as far as that is known: which server, and what it said.
    pub fn connection_trouble(&self) -> Option<String> {
        self.link.trouble()
    }

    /// What the broker refuses or gives less of, one finding for each part that is concerned.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.all()
    }

    pub fn has_findings(&self) -> bool {
        !self.findings.is_empty()
    }

    /// Whether the broker refuses a stream, so that nothing need be published to it.
    pub fn is_refused(&self, stream: Stream) -> bool {
        self.findings.is_refused(stream)
    }

    /// Bytes of body and headers that the broker takes in one message; `None` as long as there was no connection.
    pub fn max_payload(&self) -> Option<usize> {
        let limit = self.jetstream.server_info().max_payload;
        (limit > 0).then_some(limit)
    }

    pub fn is_connected(&self) -> bool {
        self.jetstream.connection_state() == State::Connected
    }

    /// Refuses servers that lack what the streams need.
    ///
    /// # Errors
    /// [`Error::TooOld`]; [`Error::Unreachable`] while there is no connection.
    pub fn check_server(&self) -> Result<(), Error> {
        if !self.is_connected() {
            return Err(Error::Unreachable(NOT_CONNECTED.into()));
        }
        let found = self.jetstream.server_info().version;
        let mut parts = found.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if version < SERVER_MIN { Err(Error::TooOld { found }) } else { Ok(()) }
    }

    /// A subject of the JetStream API.
    pub(crate) fn api_subject(&self, rest: &str) -> String {
        format!("{}.{rest}", self.settings.api)
    }

    /// Asks the JetStream API.
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        subject: String,
        request: &impl serde::Serialize,
    ) -> Result<T, Error> {
        if !self.is_connected() {
            return Err(Error::Unreachable(NOT_CONNECTED.into()));
        }
        let body = serde_json::to_vec(request).map_err(|source| Error::Topology { name: "request", source })?;
        let asked = tokio::time::timeout(API, self.jetstream.request(self.api_subject(&subject), Bytes::from(body)));
        let answer = match asked.await {
            Ok(Ok(message)) => message.payload,
            Ok(Err(e)) if e.kind() == RequestErrorKind::NoResponders => {
                let detail = "JetStream is not enabled on this server or for this account, or not in nats.domain";
                return Err(Error::Unreachable(format!("{subject}: nobody answers; {detail}")));
            }
            Ok(Err(e)) => return Err(Error::Unreachable(format!("{subject}: {e}"))),
            Err(_) => return Err(Error::Unreachable(format!("{subject}: no answer within {} s", API.as_secs()))),
        };
        #[derive(serde::Deserialize)]
        struct Refusal {
            error: Option<Refused>,
        }
        #[derive(serde::Deserialize)]
        struct Refused {
            #[serde(default)]
            err_code: u64,
            #[serde(default)]
            description: String,
        }
        let unclear = |source| Error::Answer { subject: subject.clone(), source };
        if let Some(refused) = serde_json::from_slice::<Refusal>(&answer).map_err(unclear)?.error {
            return Err(Error::Api { subject, code: refused.err_code, description: refused.description });
        }
        serde_json::from_slice(&answer).map_err(unclear)
    }

    /// The present connection and life of the work stream, to be kept with each delivery.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { connects: self.connects(), incarnation: self.incarnation.number.load(Ordering::SeqCst) }
    }

    /// Whether an ack for a delivery of then would still mean the same message now. When unsure: no; the message comes
    /// again, which costs one refused claim.
    pub(crate) fn still_valid(&self, stamp: Stamp) -> bool {
        let connects = self.connects();
        stamp.incarnation == self.incarnation.number.load(Ordering::SeqCst)
            && (stamp.connects == connects || self.incarnation.verified.load(Ordering::SeqCst) == connects)
    }

    /// Notes that a stream or a consumer may be missing, so that it is looked for soon.
    pub(crate) fn suspect(&self) {
        self.incarnation.suspect.store(true, Ordering::SeqCst);
    }

    /// Whether there was a suspicion since the last call.
    pub(crate) fn take_suspicion(&self) -> bool {
        self.incarnation.suspect.swap(false, Ordering::SeqCst)
    }

    /// Which life of the inbox it is.
    pub(crate) fn inbox_life(&self) -> String {
        self.incarnation.inbox.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note_inbox_life(&self, created: String) {
        *self.incarnation.inbox.lock().unwrap_or_else(PoisonError::into_inner) = created;
    }

    pub(crate) fn connects(&self) -> u64 {
        self.jetstream.statistics().connects.load(Ordering::Relaxed)
    }

    /// Sends what is buffered and closes both connections.
    pub async fn close(&self) {
        let flush = async {
            let _ = tokio::join!(self.rpc.flush(), self.jetstream.flush());
            let _ = tokio::join!(self.rpc.drain(), self.jetstream.drain());
        };
        // A broker that is away can't be flushed to, and a stop must not wait for it.
        let _ = tokio::time::timeout(Duration::from_secs(2), flush).await;
    }
}

/// When a message was delivered, as far as acks are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    connects: u64,
    incarnation: u64,
}

async fn connect(config: &config::Nats, name: &'static str, link: &Link) -> Result<Client, Error> {
    let (options, servers) = login::prepare(config).await?;
    let options = options
        .name(format!("queue-service {name}"))
        .custom_inbox_prefix(&config.inbox_prefix)
        .retry_on_initial_connect()
        // A silent peer is found after two unanswered pings; the default is minutes.
        .ping_interval(Duration::from_secs(5))
        .connection_timeout(Duration::from_secs(2))
        .request_timeout(Some(API))
        .subscription_capacity(16_384)
        .reconnect_delay_callback(|attempts| {
            let base = Duration::from_millis(1 << attempts.min(11));
            base.mul_f64(0.5 + rand::random::<f64>())
        });
    let connected = link.watch(options, name).connect(servers).await;
    connected.map_err(|e| Error::Setting { key: "url", message: e.to_string() })
}
