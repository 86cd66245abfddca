//! A client of the service, in Rust: asks over NATS as any program would, and knows no more than one.
//!
//! [`Client`] carries requests that are JSON already, which is what the command line does; `typed` has a method per verb,
//! for programs.

mod answers;
mod enqueue;
mod error;
mod typed;

use std::time::Duration;

use async_nats::{Client as Nats, Event, RequestErrorKind, ServerError, Subscriber};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::{
    broker::{Subjects, login},
    config::{self, layers::mask_url},
    job::JobType,
    ops::Verb,
};
pub use answers::{AttemptError, Counts, Job, NoResult, Page, Progress, Stats, TypeInfo, Types};
pub use enqueue::Enqueue;
pub use error::{CallError, ConnectError, Refusal};
pub use typed::{JobEvent, JobEvents, ListJobs};

/// Longest wait for an answer that the service gives at once. Longer than its own limits, so that its own refusal is
/// heard rather than our impatience.
const REPLY: Duration = Duration::from_secs(20);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection and the names to ask under. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    nats: Nats,
    subjects: Subjects,
    /// Servers without passwords, for messages.
    url: String,
    /// The one type that this user may see and touch.
    scope: Option<JobType>,
    /// How the subjects of our answers begin, as the broker quotes them.
    own_inbox: String,
    /// What the broker forbade last. A refused publish has no answer, so it is learned from here.
    forbidden: watch::Receiver<Option<String>>,
}

impl Client {
    /// Connects to the service whose NATS server is `url`, with everything else at its default.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::open(&config::Nats { url: url.to_owned(), ..config::Nats::default() }, None).await
    }

    /// Connects as `config` says. `scope`: the one type that this user may see and touch.
    ///
    /// # Errors
    /// Settings that can't be used; no connection to any of the servers.
    pub async fn open(config: &config::Nats, scope: Option<JobType>) -> Result<Self, ConnectError> {
        let url = mask_url(&config.url);
        let (tell, forbidden) = watch::channel(None);
        let (options, servers) = login::prepare(config).await?;
        let options = options
            .name("queue-service client")
            .custom_inbox_prefix(&config.inbox_prefix)
            .ping_interval(Duration::from_secs(5))
            .connection_timeout(Duration::from_secs(2));
        let options = options.event_callback(move |event| {
            let tell = tell.clone();
            async move {
                match event {
                    Event::ServerError(ServerError::Other(text))
                        if text.to_lowercase().contains("permissions violation") =>
                    {
                        tell.send_replace(Some(text));
                    }
                    Event::Connected => tracing::debug!("connected to NATS"),
                    Event::SlowConsumer(_) => {
                        tracing::warn!("events come faster than they are read; some are left out")
                    }
                    Event::Disconnected => tracing::warn!("the connection to NATS is lost; it is tried again"),
                    event => tracing::debug!("NATS connection: {event}"),
                }
            }
        });
        let nats = match tokio::time::timeout(CONNECT, options.connect(servers)).await {
            Ok(Ok(nats)) => nats,
            Ok(Err(e)) => return Err(ConnectError::refused(e, &url)),
            Err(_) => return Err(ConnectError::TimedOut { url }),
        };
        let own_inbox = format!("\"{}.", config.inbox_prefix);
        Ok(Self { nats, subjects: Subjects::new(&config.prefix), url, scope, own_inbox, forbidden })
    }

    /// Largest request that the broker takes, in bytes.
    pub fn max_request(&self) -> usize {
        self.nats.server_info().max_payload
    }

    /// Asks, and gives the answer as it was received.
    ///
    /// # Errors
    /// The service's refusal, or why there is no answer.
    pub async fn call(&self, verb: Verb, request: &impl Serialize) -> Result<Bytes, CallError> {
        self.call_within(verb, request, Duration::ZERO).await
    }

    /// As [`Client::call`], for requests whose answer may take this much longer.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_within(
        &self,
        verb: Verb,
        request: &impl Serialize,
        longer: Duration,
    ) -> Result<Bytes, CallError> {
        let body = serde_json::to_vec(request)
            .map_err(|source| CallError::Answer { subject: verb.name().to_owned(), source })?;
        self.call_raw(verb, body.into(), longer).await
    }

    /// As [`Client::call`], with a request that is JSON already.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_raw(&self, verb: Verb, body: Bytes, longer: Duration) -> Result<Bytes, CallError> {
        let mut subject = self.subjects.rpc(verb.name());
        if let Some(scope) = &self.scope {
            subject = format!("{subject}.{scope}");
        }
        let size = body.len();
        let after = REPLY + longer;
        let request = async_nats::Request::new().payload(body).timeout(None);
        let answered = tokio::select! {
            // The limit is ours: the client's own does not cover the time in its queue while it is disconnected.
            answered = tokio::time::timeout(after, self.nats.send_request(subject.clone(), request)) => answered,
            what = self.no(&subject) => return Err(CallError::Forbidden { what }),
        };
        let message = match answered {
            Err(_) => return Err(CallError::TimedOut { subject, after }),
            Ok(Err(e)) => {
                return Err(match e.kind() {
                    RequestErrorKind::NoResponders => CallError::NoResponders { subject, url: self.url.clone() },
                    RequestErrorKind::TimedOut => CallError::TimedOut { subject, after },
                    RequestErrorKind::MaxPayloadExceeded => {
                        CallError::TooLarge { size, max: self.max_request(), url: self.url.clone() }
                    }
                    _ => CallError::Request { subject, source: e },
                });
            }
            Ok(Ok(message)) => message,
        };
        let header = |name| message.headers.as_ref().and_then(|headers| headers.get(name)).map(|value| value.as_str());
        match header("Nats-Service-Error-Code") {
            Some(code) => {
                let text = header("Nats-Service-Error").unwrap_or("the service refused without a reason");
                Err(CallError::Refused(Box::new(Refusal::read(code, text, message.payload.clone()))))
            }
            None => Ok(message.payload),
        }
    }

    /// Asks, and decodes the answer.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn ask<T: DeserializeOwned>(&self, verb: Verb, request: &impl Serialize) -> Result<T, CallError> {
        read(verb, &self.call(verb, request).await?)
    }

    /// Listens to events, live. `job_type`, `state` and `id` are tokens of the subject or `*`.
    ///
    /// # Errors
    /// No connection.
    pub async fn events(&self, job_type: &str, state: &str, id: &str) -> Result<Subscriber, CallError> {
        let job_type = match (&self.scope, job_type) {
            (Some(scope), "*") => scope.as_str(),
            (_, job_type) => job_type,
        };
        let subject = format!("{}.events.{job_type}.{state}.{id}", self.subjects.prefix());
        // One connection, read in order: what is asked after this, is asked by somebody who listens already.
        match tokio::time::timeout(REPLY, self.nats.subscribe(subject.clone())).await {
            Ok(Ok(events)) => Ok(events),
            Ok(Err(_)) | Err(_) => Err(CallError::NotListening { subject, url: self.url.clone() }),
        }
    }

    /// Waits for the broker to forbid something about `subject`, or to listen for the answers.
    async fn no(&self, subject: &str) -> String {
        let about = |what: &Option<String>| {
            what.as_ref().is_some_and(|what| what.contains(subject) || what.contains(&self.own_inbox))
        };
        match self.forbidden.clone().wait_for(about).await {
            Ok(what) => what.clone().unwrap_or_default(),
            // The connection has no voice any more; then nothing is forbidden either.
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends when the broker has refused what is listened to after all.
    pub async fn forbidden(&self) -> CallError {
        CallError::Forbidden { what: self.no("").await }
    }
}

/// Decodes an answer.
///
/// # Errors
/// [`CallError::Answer`].
pub fn read<T: DeserializeOwned>(verb: Verb, answer: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(answer).map_err(|source| CallError::Answer { subject: verb.name().to_owned(), source })
}
