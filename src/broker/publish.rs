//! Publishing in batches and waiting for the broker's acknowledgements.
//!
//! Own accounting instead of the client's request table: an unanswered publish leaves an entry there for good, and a
//! store that is wedged answers none (tried on nats-server 2.15 with a full disk).

use std::{
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
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use uuid::Uuid;

use super::{Broker, Subjects, pull::wake_up_body};
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
        Self { subject, message_id, headers: Vec::new(), body }
    }
}

/// Publishes to streams. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    broker: Broker,
    shared: Arc<Shared>,
}

struct Shared {
    inbox: String,
    next: AtomicU64,
    windows: Mutex<HashMap<u64, Arc<Window>>>,
    turns: Semaphore,
    trouble: Mutex<Option<Trouble>>,
}

/// Since when acknowledgements are missing, and when it was last tried.
#[derive(Clone, Copy)]
struct Trouble {
    since: Instant,
    tried: Instant,
}

struct Window {
    state: Mutex<Acks>,
    done: Notify,
}

struct Acks {
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
        Ok(Self { broker: broker.clone(), shared })
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
        self.shared.lock_trouble().map(|trouble| trouble.since.elapsed())
    }

    fn may_try(&self) -> bool {
        if !self.broker.is_connected() {
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
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let size = messages.len();
        let window =
            Arc::new(Window { state: Mutex::new(Acks { acked: vec![false; size], open: size }), done: Notify::new() });
        self.shared.lock_windows().insert(number, window.clone());
        let client = &self.broker.jetstream;
        let sent_and_answered = timeout(ACK, async {
            for (index, message) in messages.into_iter().enumerate() {
                self.broker.open_lane_of(&message.subject);
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
        let all = acked.iter().all(|a| *a);
        let mut trouble = self.shared.lock_trouble();
        if all {
            *trouble = None;
        } else if !in_time || trouble.is_some() || acked.iter().all(|a| !*a) {
            let now = Instant::now();
            trouble.get_or_insert(Trouble { since: now, tried: now });
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
        acks.acked[index] = is_ack(message);
        acks.open = acks.open.saturating_sub(1);
        if acks.open == 0 {
            window.done.notify_one();
        }
    }

    fn lock_windows(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Window>>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_trouble(&self) -> std::sync::MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An acknowledgement is `{"stream":…,"seq":…}`; a refusal has `"error"`, a missing stream status 503.
fn is_ack(message: &Message) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        seq: u64,
        error: Option<serde::de::IgnoredAny>,
    }
    message.status.is_none()
        && serde_json::from_slice::<Answer>(&message.payload).is_ok_and(|a| a.error.is_none() && a.seq > 0)
}
