//! Publishing in batches and waiting for the broker's acknowledgements.
//!
//! Own accounting instead of the client's request table: an unanswered publish leaves an entry there for good, and a
//! store that is wedged answers none (tried on nats-server 2.15 with a full disk).

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, HeaderValue, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use uuid::Uuid;

use super::{Broker, Subjects, findings::Stream, pull::wake_up_body};
use crate::supervise::Supervisor;

/// Longest wait for the acknowledgements of a window.
const ACK: Duration = Duration::from_secs(2);
/// Messages sent before their acknowledgements are waited for.
const WINDOW: usize = 500;
/// Windows under way at once, over all callers: enough to keep the broker busy, and few enough that [`ACK`] measures the broker
/// and not the queue before it.
const WINDOWS: usize = 8;
/// While acknowledgements are missing, one window in this time is tried.
const PROBE: Duration = Duration::from_secs(1);

/// A message for a stream.
#[derive(Debug)]
pub struct Outgoing {
    pub stream: Stream,
    pub subject: String,
    /// Repetitions within the stream's window are dropped by the broker, which costs it a quarter of its rate.
    pub message_id: Option<String>,
    /// Further headers; their values are of one line.
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

impl Outgoing {
    /// A wake-up for a job; `target` is `<type>.<lane>`, as the outbox has it.
    pub fn wake_up(subjects: &Subjects, id: Uuid, target: &str, message_id: Option<String>) -> Self {
        let (subject, body) = (subjects.wake_up_target(target), wake_up_body(id, target));
        Self { stream: Stream::WakeUps, subject, message_id, headers: Vec::new(), body }
    }
}

/// Publishes to streams. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    broker: Broker,
    /// The names of our streams: an acknowledgement of another one is none.
    streams: [String; Stream::ALL.len()],
    inbox: String,
    next: AtomicU64,
    windows: Mutex<HashMap<u64, Arc<Window>>>,
    turns: Semaphore,
    trouble: Mutex<Option<Trouble>>,
}

/// Since when acknowledgements are missing, and when it was last tried.
struct Trouble {
    since: Instant,
    tried: Instant,
    /// What the broker last said to it, if it says anything.
    why: Option<String>,
}

/// Who took or refused a message.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(default)]
    seq: u64,
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

struct Window {
    state: Mutex<Acks>,
    done: Notify,
}

struct Acks {
    streams: Vec<Stream>,
    acked: Vec<bool>,
    open: usize,
}

impl Publisher {
    /// Subscribes to the acknowledgements; the reading task ends with the connection.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn start(broker: &Broker, supervisor: &Supervisor) -> Result<Self, async_nats::SubscribeError> {
        let client = &broker.jetstream;
        let shared = Arc::new(Shared {
            broker: broker.clone(),
            streams: Stream::ALL.map(|stream| broker.subjects.stream(stream.name())),
            inbox: client.new_inbox(),
            next: AtomicU64::new(0),
            windows: Mutex::default(),
            turns: Semaphore::new(WINDOWS),
            trouble: Mutex::default(),
        });
        let answers = client.subscribe(format!("{}.*.*", shared.inbox)).await?;
        let (reader, answers) = (Arc::downgrade(&shared), Arc::new(tokio::sync::Mutex::new(answers)));
        supervisor.tasks().keep_until_done("publisher", move || {
            let (reader, answers) = (reader.clone(), answers.clone());
            async move {
                let mut answers = answers.lock().await;
                while let Some(message) = answers.next().await {
                    let Some(shared) = reader.upgrade() else { return };
                    shared.note(&message);
                }
            }
        });
        Ok(Self { shared })
    }

    /// Publishes all, and says of each whether the broker has acknowledged it. Never takes longer than a few seconds once its turn
    /// has come.
    pub async fn publish(&self, messages: Vec<Outgoing>) -> Vec<bool> {
        let mut acked = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let window: Vec<Outgoing> = messages.by_ref().take(WINDOW).collect();
            let _turn = self.shared.turns.acquire().await;
            if self.may_try() {
                acked.extend(self.publish_window(window).await);
            } else {
                acked.extend(window.iter().map(|_| false));
            }
        }
        acked
    }

    /// For how long acknowledgements have been missing; `None`: all is well.
    pub fn trouble(&self) -> Option<Duration> {
        self.shared.lock_trouble().as_ref().map(|trouble| trouble.since.elapsed())
    }

    /// What the broker says instead of acknowledging; `None` when it says nothing.
    pub fn refusal(&self) -> Option<String> {
        self.shared.lock_trouble().as_ref().and_then(|trouble| trouble.why.clone())
    }

    fn may_try(&self) -> bool {
        if !self.shared.broker.is_connected() {
            return false;
        }
        match &mut *self.shared.lock_trouble() {
            None => true,
            Some(trouble) if trouble.tried.elapsed() >= PROBE => {
                trouble.tried = Instant::now();
                true
            }
            Some(_) => false,
        }
    }

    async fn publish_window(&self, messages: Vec<Outgoing>) -> Vec<bool> {
        let broker = &self.shared.broker;
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        // Nobody would keep the others, or somebody else would.
        let has_stream: Vec<bool> = messages.iter().map(|message| !broker.is_refused(message.stream)).collect();
        let open = has_stream.iter().filter(|has| **has).count();
        if open == 0 {
            return vec![false; messages.len()];
        }
        let streams = messages.iter().map(|message| message.stream).collect();
        let acks = Acks { streams, acked: vec![false; messages.len()], open };
        let window = Arc::new(Window { state: Mutex::new(acks), done: Notify::new() });
        self.shared.lock_windows().insert(number, window.clone());
        let client = &broker.jetstream;
        let sent_and_answered = timeout(ACK, async {
            for (index, message) in messages.into_iter().enumerate().filter(|(index, _)| has_stream[*index]) {
                broker.open_lane_of(&message.subject);
                let reply = format!("{}.{number}.{index}", self.shared.inbox);
                let mut headers = HeaderMap::new();
                let id = message.message_id.map(|id| ("Nats-Msg-Id", id));
                for (name, value) in id.into_iter().chain(message.headers) {
                    if let Ok(value) = value.parse::<HeaderValue>() {
                        headers.insert(name, value);
                    }
                }
                // Only a closed client refuses; then nothing is acknowledged, which says it all.
                let _ = if headers.is_empty() {
                    client.publish_with_reply(message.subject, reply, message.body).await
                } else {
                    client.publish_with_reply_and_headers(message.subject, reply, headers, message.body).await
                };
            }
            window.done.notified().await;
        });
        let in_time = sent_and_answered.await.is_ok();
        self.shared.lock_windows().remove(&number);
        let acked = std::mem::take(&mut window.state.lock().unwrap_or_else(PoisonError::into_inner).acked);
        let taken = acked.iter().filter(|acked| **acked).count();
        let mut trouble = self.shared.lock_trouble();
        if taken == open {
            *trouble = None;
        } else if !in_time || trouble.is_some() || taken == 0 {
            let now = Instant::now();
            let trouble = trouble.get_or_insert(Trouble { since: now, tried: now, why: None });
            if !in_time {
                trouble.why = None;
            }
        }
        acked
    }
}

impl Shared {
    fn note(&self, message: &Message) {
        let mut tokens = message.subject.as_str().rsplit('.');
        let index = tokens.next().and_then(|t| t.parse::<usize>().ok());
        let number = tokens.next().and_then(|t| t.parse::<u64>().ok());
        let (Some(index), Some(number)) = (index, number) else { return };
        let Some(window) = self.lock_windows().get(&number).cloned() else { return };
        let mut acks = window.state.lock().unwrap_or_else(PoisonError::into_inner);
        if index >= acks.acked.len() {
            return;
        }
        let refused = self.refusal(message, acks.streams[index]);
        acks.acked[index] = refused.is_none();
        acks.open = acks.open.saturating_sub(1);
        if acks.open == 0 {
            window.done.notify_one();
        }
        drop(acks);
        if let (Some(why), Some(trouble)) = (refused, &mut *self.lock_trouble()) {
            trouble.why = Some(why);
        }
    }

    /// An acknowledgement is `{"stream":…,"seq":…}`; a refusal has `"error"`, a missing stream status 503. `None`: ours has
    /// taken it.
    fn refusal(&self, message: &Message, stream: Stream) -> Option<String> {
        let ours = &self.streams[stream as usize];
        if message.status.is_some() {
            self.broker.suspect();
            return Some(format!("no stream takes it: {ours} is missing"));
        }
        match serde_json::from_slice::<Answer>(&message.payload) {
            Ok(Answer { error: Some(Refused { err_code, description }), .. }) => {
                Some(format!("{ours}: {description} ({err_code})"))
            }
            Ok(answer) if answer.seq > 0 && answer.stream == ours.as_str() => None,
            Ok(answer) if answer.seq > 0 => {
                self.broker.suspect();
                Some(format!("the stream {} took what is meant for {ours}", answer.stream))
            }
            _ => Some("the answer is not understood".into()),
        }
    }

    fn lock_windows(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Window>>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_trouble(&self) -> std::sync::MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
