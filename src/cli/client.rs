//! The other end of the RPC door: asks the service over NATS as any program would.

use std::time::Duration;

use anyhow::Context;
use async_nats::{Client as Nats, ConnectErrorKind, ConnectOptions, Event, RequestErrorKind, ServerError, Subscriber};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::{
    broker::{Subjects, login},
    config::{self, layers::mask_url},
    job::JobType,
    ops::{Verb, error::Fault},
};

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

/// A refusal by the service, read leniently: it may be of another version than this program.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub title: String,
    pub detail: String,
    pub errors: Vec<Fault>,
    pub retry_after_seconds: Option<u64>,
    pub job: Option<Box<serde_json::value::RawValue>>,
    /// As it was received.
    #[serde(skip)]
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error(
        "nobody answers on {subject} at {url}: is the service running? start it with `queue-service serve` or `queue-service dev`"
    )]
    NoResponders { subject: String, url: String },
    #[error("no answer on {subject} within {} s; it may have been carried out all the same", .after.as_secs())]
    TimedOut { subject: String, after: Duration },
    #[error("the request has {size} bytes, the broker at {url} takes at most {max} (max_payload)")]
    TooLarge { size: usize, max: usize, url: String },
    #[error(
        "the broker forbids it: {what}\n  where one type only is allowed, name it with --scope\n  where each user has an inbox of his own, set nats.inbox_prefix"
    )]
    Forbidden { what: String },
    #[error("the answer on {subject} is not understood; is something else answering there?")]
    Answer {
        subject: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("could not ask on {subject}")]
    Request {
        subject: String,
        #[source]
        source: async_nats::RequestError,
    },
}

impl CallError {
    /// Whether the service was certainly never reached.
    pub fn was_not_heard(&self) -> bool {
        matches!(self, CallError::NoResponders { .. })
    }

    /// Whether it may work in a moment: a replica stops, the connection is made again.
    pub fn is_passing(&self) -> bool {
        match self {
            CallError::NoResponders { .. } | CallError::TimedOut { .. } | CallError::Request { .. } => true,
            CallError::Refused(refusal) => matches!(refusal.status, 429 | 503),
            CallError::TooLarge { .. } | CallError::Forbidden { .. } | CallError::Answer { .. } => false,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} {})", self.title, self.status, self.code)?;
        let told = |fault: &Fault| match fault.path.as_str() {
            "" => fault.message.clone(),
            path => format!("{path}: {}", fault.message),
        };
        // The detail repeats the first fault for those who read nothing else.
        let repeats = self.errors.first().is_some_and(|fault| self.detail.starts_with(&told(fault)));
        if !repeats && !self.detail.is_empty() {
            write!(f, "\n  {}", self.detail)?;
        }
        for fault in &self.errors {
            write!(f, "\n  {}", told(fault))?;
        }
        if let Some(seconds) = self.retry_after_seconds {
            write!(f, "\n  worth trying again in {seconds} s")?;
        }
        Ok(())
    }
}

impl Refusal {
    /// From an answer with the headers of a micro-service error.
    fn read(status: &str, text: &str, body: Bytes) -> Self {
        let status = status.trim().parse().unwrap_or(500);
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) if !refusal.title.is_empty() => Self { status, body, ..refusal },
            _ => Self { status, code: "error".to_owned(), title: text.to_owned(), body, ..Self::default() },
        }
    }
}

impl Client {
    /// # Errors
    /// Settings that can't be used; no connection to any of the servers.
    pub async fn connect(config: &config::Nats, scope: Option<JobType>) -> anyhow::Result<Self> {
        let url = mask_url(&config.url);
        let (tell, forbidden) = watch::channel(None);
        let options = ConnectOptions::new()
            .name("queue-service command line")
            .custom_inbox_prefix(&config.inbox_prefix)
            .ping_interval(Duration::from_secs(5))
            .connection_timeout(Duration::from_secs(2));
        let (options, servers) = login::prepare(options, config).await?;
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
                        tracing::warn!("events come faster than they are shown; some are left out")
                    }
                    Event::Disconnected => tracing::warn!("the connection to NATS is lost; it is tried again"),
                    event => tracing::debug!("NATS connection: {event}"),
                }
            }
        });
        let nats = match tokio::time::timeout(CONNECT, options.connect(servers)).await {
            Ok(Ok(nats)) => nats,
            Ok(Err(e)) => {
                let advice = no_connection(e.kind(), &url);
                return Err(anyhow::Error::new(e).context(advice));
            }
            Err(_) => anyhow::bail!("{}", no_connection(ConnectErrorKind::TimedOut, &url)),
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
    /// No connection, or the broker forbids it.
    pub async fn events(&self, job_type: &str, state: &str, id: &str) -> anyhow::Result<Subscriber> {
        let job_type = match (&self.scope, job_type) {
            (Some(scope), "*") => scope.as_str(),
            (_, job_type) => job_type,
        };
        let subject = format!("{}.events.{job_type}.{state}.{id}", self.subjects.prefix());
        let listening = tokio::time::timeout(REPLY, self.nats.subscribe(subject.clone())).await;
        let events = listening
            .map_err(|_| anyhow::anyhow!("could not listen on {subject}: no connection to NATS at {}", self.url))?;
        // One connection, read in order: what is asked after this, is asked by somebody who listens already.
        events.with_context(|| format!("could not listen on {subject}"))
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

/// Says what to do about it.
fn no_connection(kind: ConnectErrorKind, url: &str) -> String {
    use ConnectErrorKind::{Authentication, AuthorizationViolation, Tls};
    match kind {
        Authentication | AuthorizationViolation => {
            format!("NATS at {url} does not let us in: check user and password in nats.url, nats.token or nats.creds")
        }
        Tls => format!("no secure connection to NATS at {url}: check nats.tls_ca, nats.tls_cert and nats.tls_key"),
        _ => format!("can't connect to NATS at {url}: is it running? `queue-service dev` starts everything"),
    }
}

/// Decodes an answer.
///
/// # Errors
/// [`CallError::Answer`].
pub fn read<T: DeserializeOwned>(verb: Verb, answer: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(answer).map_err(|source| CallError::Answer { subject: verb.name().to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &'static str) -> Refusal {
        Refusal::read("400", "text", Bytes::from_static(json.as_bytes()))
    }

    #[test]
    fn a_refusal_names_every_fault_once() {
        let one = refusal(
            r#"{"title":"No","code":"invalid_payload","status":400,"detail":"/payload/to: missing","errors":[{"path":"/payload/to","message":"missing"}],"new":1}"#,
        );
        assert_eq!(one.to_string(), "No (400 invalid_payload)\n  /payload/to: missing");
        let other = refusal(r#"{"title":"Wait","code":"overloaded","detail":"too much","retryAfterSeconds":2}"#);
        assert_eq!(other.to_string(), "Wait (400 overloaded)\n  too much\n  worth trying again in 2 s");
    }

    #[test]
    fn a_refusal_without_a_problem_has_the_text_of_the_header() {
        for body in ["", "nonsense", "{}"] {
            assert_eq!(refusal(body).to_string(), "text (400 error)");
        }
    }
}
