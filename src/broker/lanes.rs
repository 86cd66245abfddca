//! Which lanes are in use, and so have a consumer: those of normal jobs always, those of high and low priority from their
//! first job on. For each acknowledgement the broker looks at every consumer of the stream, so those that nobody needs
//! would slow down all. See docs/adr/0025.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_nats::{SubscribeError, Subscriber};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::{Broker, Error, Subjects};
use crate::{job::Lane, supervise};

/// As far as this process knows. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Lanes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    changed: watch::Sender<()>,
    /// Whether the broker refuses the stream of wake-ups.
    stream_refused: Arc<AtomicBool>,
    inbox: InUse,
}

#[derive(Default)]
struct Known {
    /// By the names of their consumers: whether they are in use.
    lanes: HashMap<String, InUse>,
    /// Whose consumers are being made.
    opening: HashSet<String>,
}

/// Whether one lane is in use, and whether its consumer can be had. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct InUse {
    /// Once it is, it stays so.
    used: Arc<AtomicBool>,
    /// The broker refuses its consumer.
    refused: Arc<AtomicBool>,
    stream_refused: Arc<AtomicBool>,
}

impl Lanes {
    pub fn of(&self, job_type: &str, lane: Lane) -> InUse {
        let in_use = self.entry(Subjects::consumer(job_type, lane));
        if lane == Lane::Normal {
            in_use.used.store(true, Ordering::SeqCst);
        }
        in_use
    }

    /// The inbox needs no first job.
    pub fn inbox(&self) -> InUse {
        self.0.inbox.used.store(true, Ordering::SeqCst);
        self.0.inbox.clone()
    }

    pub fn note_inbox_refused(&self, is_refused: bool) {
        self.0.inbox.refused.store(is_refused, Ordering::SeqCst);
    }

    /// Whether the broker refuses the consumer of a lane.
    pub fn note_refused(&self, job_type: &str, lane: Lane, is_refused: bool) {
        let was = self.of(job_type, lane).refused.swap(is_refused, Ordering::SeqCst);
        self.told(was, is_refused);
    }

    /// Whether the broker refuses the stream of all lanes.
    pub fn note_stream_refused(&self, is_refused: bool) {
        let was = self.0.stream_refused.swap(is_refused, Ordering::SeqCst);
        self.told(was, is_refused);
    }

    /// Whoever asks for messages has to know: those that can't come are not waited for.
    fn told(&self, was: bool, is: bool) {
        if was != is {
            self.0.changed.send_replace(());
        }
    }

    fn note(&self, consumer: String) {
        let is_new = !self.entry(consumer).used.swap(true, Ordering::SeqCst);
        if is_new {
            self.0.changed.send_replace(());
        }
    }

    fn entry(&self, consumer: String) -> InUse {
        let new = || InUse { stream_refused: self.0.stream_refused.clone(), ..InUse::default() };
        self.lock().lanes.entry(consumer).or_insert_with(new).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InUse {
    pub fn is(&self) -> bool {
        self.used.load(Ordering::SeqCst)
    }

    /// Nothing can come from it, whatever waits there.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::SeqCst) || self.stream_refused.load(Ordering::SeqCst)
    }
}

impl Broker {
    /// Whether a lane has a consumer, as far as this process knows.
    pub fn is_lane_used(&self, job_type: &str, lane: Lane) -> bool {
        self.lanes.of(job_type, lane).is()
    }

    /// Changes whenever a lane comes into use, so that it may be asked for messages.
    pub fn lanes_in_use(&self) -> watch::Receiver<()> {
        self.lanes.0.changed.subscribe()
    }

    /// Sees to it that somebody hears of a message with this subject: makes the consumer of a lane with its first wake-up. In the
    /// background, since the stream keeps the message meanwhile.
    pub(super) fn open_lane_of(&self, subject: &str) {
        let Some((job_type, lane)) = self.subjects.lane_of(subject).filter(|(_, lane)| *lane != Lane::Normal) else {
            return;
        };
        let consumer = Subjects::consumer(job_type, lane);
        {
            let mut known = self.lanes.lock();
            if known.lanes.get(&consumer).is_some_and(InUse::is) || !known.opening.insert(consumer.clone()) {
                return;
            }
        }
        let (broker, job_type) = (self.clone(), job_type.to_owned());
        supervise::spawn("consumer of a lane", async move {
            let made = broker.ensure_consumer_of(&job_type, lane).await;
            broker.lanes.lock().opening.remove(&consumer);
            match made {
                // It was noted why.
                Ok(false) => {}
                Ok(true) => {
                    broker.lanes.note(consumer);
                    broker.signal_lane_used(&job_type, lane).await;
                }
                // Its messages are found with the next look at the streams.
                Err(e) => {
                    tracing::debug!("the consumer {consumer} comes later: {e}");
                    broker.suspect();
                }
            }
        });
    }

    /// Takes note of a lane that another process has begun to use.
    pub fn note_lane(&self, signal: &[u8]) {
        #[derive(Deserialize)]
        struct Signal {
            r#type: String,
            lane: Lane,
        }
        if let Ok(Signal { r#type, lane }) = serde_json::from_slice(signal) {
            self.lanes.note(Subjects::consumer(&r#type, lane));
        }
    }

    /// Takes note of all lanes that have a consumer or messages.
    ///
    /// # Errors
    /// As for [`Broker::ensure_streams`].
    pub async fn look_for_lanes(&self) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Names {
            total: usize,
            consumers: Option<Vec<String>>,
        }
        let stream = self.subjects.jobs_stream();
        let mut seen = 0;
        loop {
            let page: Names = self.api(format!("CONSUMER.NAMES.{stream}"), &json!({"offset": seen})).await?;
            let names = page.consumers.unwrap_or_default();
            seen += names.len();
            let is_last = names.is_empty() || seen >= page.total;
            names.into_iter().for_each(|name| self.lanes.note(name));
            if is_last {
                break;
            }
        }
        for subject in self.subjects_with_messages().await? {
            if let Some((job_type, lane)) = self.subjects.lane_of(&subject) {
                self.lanes.note(Subjects::consumer(job_type, lane));
            }
        }
        Ok(())
    }

    /// # Errors
    /// The client is closed.
    pub async fn lane_signals(&self) -> Result<Subscriber, SubscribeError> {
        self.jetstream.subscribe(self.subjects.lanes_used()).await
    }

    async fn signal_lane_used(&self, job_type: &str, lane: Lane) {
        self.signal(self.subjects.lanes_used(), json!({"type": job_type, "lane": lane.as_str()}).to_string()).await;
    }
}
