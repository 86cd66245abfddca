//! Pulling wake-ups with exact credit: never more messages on the way than there are free slots for them.
//!
//! Written out over the pull protocol, because the client's batches miss reconnects and lose messages together with
//! heartbeats (tried with async-nats 0.51).

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Broker, Stamp, Subjects, lanes::InUse};
use crate::{job::Lane, supervise};

/// Lifetime of a pull request. Short, since a request may be lost in a reconnect without anyone telling.
const EXPIRES: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Silence after which the broker is held to have forgotten our request.
const SILENCE: Duration = Duration::from_secs(8);
/// Silence after which nothing is on its way to a former inbox any more.
const QUIET: Duration = Duration::from_millis(200);
/// How long a request that was refused is not made again.
const NOT_AT_ONCE: Duration = Duration::from_millis(250);

/// The open pull requests of this process on one consumer.
pub struct LanePull {
    broker: Broker,
    pub lane: Lane,
    /// Nothing is asked for before.
    in_use: InUse,
    subject: String,
    inbox: String,
    messages: Subscriber,
    /// Messages that were asked for and have not come.
    credit: usize,
    /// What the broker still had when it was heard last, and what was published since.
    left: usize,
    heard: Instant,
    /// When the last request was made.
    asked: Instant,
    connects: u64,
    /// Pull again no sooner than this, after a refusal.
    not_before: Instant,
    /// What the server allows in one request.
    batch_max: usize,
}

/// One delivered wake-up.
#[derive(Debug)]
pub struct Delivery {
    pub wake_up: Result<WakeUp, Garbage>,
    ack: AckHandle,
}

/// What a wake-up says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeUp {
    pub id: Uuid,
    pub job_type: String,
    pub lane: Lane,
}

/// A message that somebody wrote by hand.
#[derive(Debug, PartialEq, Eq)]
pub struct Garbage;

/// The right to answer one delivery.
#[derive(Clone, Debug)]
pub struct AckHandle {
    subject: String,
    stamp: Stamp,
}

impl LanePull {
    /// One for each lane of a type, from the highest on.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn open_all(broker: &Broker, job_type: &str) -> Result<[Self; 3], async_nats::SubscribeError> {
        Ok([
            Self::open(broker, job_type, Lane::High).await?,
            Self::open(broker, job_type, Lane::Normal).await?,
            Self::open(broker, job_type, Lane::Low).await?,
        ])
    }

    async fn open(broker: &Broker, job_type: &str, lane: Lane) -> Result<Self, async_nats::SubscribeError> {
        let (stream, name) = (broker.subjects.jobs_stream(), Subjects::consumer(job_type, lane));
        let in_use = broker.lanes.of(job_type, lane);
        let subject = broker.api_subject(&format!("CONSUMER.MSG.NEXT.{stream}.{name}"));
        Self::on(broker, subject, lane, in_use).await
    }

    async fn on(
        broker: &Broker,
        subject: String,
        lane: Lane,
        in_use: InUse,
    ) -> Result<Self, async_nats::SubscribeError> {
        let inbox = broker.jetstream.new_inbox();
        Ok(Self {
            lane,
            in_use,
            subject,
            messages: broker.jetstream.subscribe(inbox.clone()).await?,
            inbox,
            credit: 0,
            left: 0,
            heard: Instant::now(),
            asked: Instant::now(),
            connects: broker.connects(),
            not_before: Instant::now(),
            batch_max: usize::MAX,
            broker: broker.clone(),
        })
    }

    /// The open pull requests of this process on the inbox.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn of_inbox(broker: &Broker) -> Result<Self, async_nats::SubscribeError> {
        Self::on(broker, broker.inbox_pull(), Lane::Normal, broker.lanes.inbox()).await
    }

    /// Messages that are on their way.
    pub fn credit(&self) -> usize {
        self.credit
    }

    /// Messages that are there and have been asked for already; `None`: more are there, or may be.
    pub fn on_the_way(&self) -> Option<usize> {
        // What the broker may hold can't be had, so nobody waits for it.
        if self.in_use.is_refused() {
            return Some(0);
        }
        if !self.in_use.is() {
            return Some(self.left);
        }
        (self.left <= self.credit && self.credit > 0).then_some(self.left)
    }

    /// So many were published of which the broker has not told yet.
    pub fn note_published(&mut self, n: usize) {
        self.left += n;
    }

    /// Asks for `n` more.
    pub async fn request(&mut self, n: usize) {
        let n = n.min(self.batch_max);
        let can_come = self.in_use.is() && !self.in_use.is_refused() && self.broker.is_connected();
        if n == 0 || !can_come || Instant::now() < self.not_before {
            return;
        }
        let body = json!({
            "batch": n,
            "expires": EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        let sent = self.broker.jetstream.publish_with_reply(
            self.subject.clone(),
            self.inbox.clone(),
            Bytes::from(body.to_string()),
        );
        // A client whose queue is full has lost its connection; the tick asks again.
        if tokio::time::timeout(Duration::from_millis(500), sent).await.is_ok_and(|sent| sent.is_ok()) {
            self.credit += n;
            self.heard = Instant::now();
            self.asked = self.heard;
        }
    }

    /// Takes all open requests back: what they still bring goes back to the broker at once, and nothing more comes here.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn withdraw(&mut self) -> Result<(), async_nats::SubscribeError> {
        if self.credit == 0 {
            return Ok(());
        }
        // The broker forgets requests whose inbox nobody listens to. But a client that ends a subscription drops what is on
        // its way, even when it is told to drain it (tried with async-nats 0.51), and until `ack_wait` nobody would have
        // that: so somebody goes on listening until it is quiet, or the last request has expired.
        let inbox = self.broker.jetstream.new_inbox();
        let messages = self.broker.jetstream.subscribe(inbox.clone()).await?;
        let mut former = std::mem::replace(&mut self.messages, messages);
        (self.inbox, self.credit) = (inbox, 0);
        let (broker, expired) = (self.broker.clone(), self.asked + EXPIRES + QUIET);
        let listening = async move {
            while let Ok(Some(message)) = tokio::time::timeout(QUIET, former.next()).await {
                if message.status.is_none() {
                    AckHandle::of(&message, &broker).nak(&broker, Duration::ZERO).await;
                }
            }
        };
        supervise::spawn("withdrawal", tokio::time::timeout_at(expired.into(), listening));
        Ok(())
    }

    /// The next message, or `Some(None)` when some that were asked for won't come and may be asked for again. Pending while
    /// there is neither, and while the lane is not in use; safe to drop and call again. `None`: the client is closed.
    pub async fn next(&mut self) -> Option<Option<Delivery>> {
        let Some((message, ack)) = self.next_message().await? else { return Some(None) };
        Some(Some(Delivery { wake_up: self.parse(&message).ok_or(Garbage), ack }))
    }

    /// As [`LanePull::next`], for messages that are no wake-ups.
    pub async fn next_message(&mut self) -> Option<Option<(Message, AckHandle)>> {
        if !self.in_use.is() {
            return std::future::pending().await;
        }
        loop {
            let message = self.messages.next().await?;
            self.heard = Instant::now();
            if message.status.is_some() {
                let credit = self.credit;
                self.note_status(&message);
                if self.credit < credit {
                    return Some(None);
                }
            } else {
                self.credit = self.credit.saturating_sub(1);
                let ack = AckHandle::of(&message, &self.broker);
                self.left = ack.left_behind().unwrap_or_default();
                return Some(Some((message, ack)));
            }
        }
    }

    /// Forgets requests that can't be answered any more. To be called every second or so.
    pub fn tick(&mut self) {
        let connects = self.broker.connects();
        if connects != self.connects || (self.credit > 0 && self.heard.elapsed() > SILENCE) {
            self.connects = connects;
            self.credit = 0;
            self.heard = Instant::now();
        }
    }

    fn note_status(&mut self, message: &Message) {
        let code = message.status.map_or(0, |status| status.as_u16());
        let header = |name: &str| message.headers.as_ref()?.get(name)?.as_str().parse::<usize>().ok();
        match code {
            // Still there, nothing to deliver.
            100 => self.left = 0,
            // No such consumer, or nobody who could know: it is looked for, and made again.
            404 | 503 => {
                self.broker.suspect();
                self.credit = 0;
                self.not_before = Instant::now() + NOT_AT_ONCE;
            }
            409 if let Some(limit) = batch_limit(message) => {
                self.batch_max = limit;
                self.credit = 0;
            }
            // Among them "Consumer Deleted"; the count says how much of the request is void.
            409 => {
                self.broker.suspect();
                self.credit = header("Nats-Pending-Messages").map_or(0, |left| self.credit.saturating_sub(left));
                self.not_before = Instant::now() + NOT_AT_ONCE;
            }
            _ => self.credit = header("Nats-Pending-Messages").map_or(0, |left| self.credit.saturating_sub(left)),
        }
    }

    fn parse(&self, message: &Message) -> Option<WakeUp> {
        let id = job_id_of(&message.payload)?;
        let mut tokens = message.subject.as_str().rsplit('.');
        let (_lane, job_type) = (tokens.next()?, tokens.next()?);
        Some(WakeUp { id, job_type: job_type.to_owned(), lane: self.lane })
    }
}

/// From "Exceeded MaxRequestBatch of …", which the server may be set to.
fn batch_limit(message: &Message) -> Option<usize> {
    let limit = message.description.as_ref()?.strip_prefix("Exceeded MaxRequestBatch of ")?.parse().ok();
    limit.filter(|limit| *limit > 0)
}

impl Delivery {
    pub fn split(self) -> (Result<WakeUp, Garbage>, AckHandle) {
        (self.wake_up, self.ack)
    }
}

/// The body of a wake-up, readable with the NATS CLI.
pub fn wake_up_body(id: Uuid, target: &str) -> Bytes {
    let (job_type, lane) = target.rsplit_once('.').unwrap_or((target, "normal"));
    Bytes::from(format!(r#"{{"jobId":"{id}","type":"{job_type}","lane":"{lane}"}}"#))
}

/// The job that a wake-up names; `None` where somebody wrote it by hand.
pub(super) fn job_id_of(body: &[u8]) -> Option<Uuid> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "jobId")]
        job_id: Uuid,
    }
    serde_json::from_slice::<Body>(body).ok().map(|body| body.job_id)
}

impl AckHandle {
    fn of(message: &Message, broker: &Broker) -> Self {
        let subject = message.reply.as_ref().map(ToString::to_string).unwrap_or_default();
        Self { subject, stamp: broker.stamp() }
    }

    /// How often the message was delivered, this time as well.
    pub fn deliveries(&self) -> u32 {
        self.number(4).unwrap_or(1)
    }

    /// The message's place in its stream. Source of the form: NATS ADR-15, `$JS.ACK…<delivered>.<stream seq>.<consumer
    /// seq>.<time>.<left>`, with or without domain and account before.
    pub fn stream_sequence(&self) -> Option<u64> {
        self.number(5)
    }

    /// How many messages of its consumer were still to be delivered after this one.
    fn left_behind(&self) -> Option<usize> {
        self.number(8)
    }

    /// The token at this place of the form without domain.
    fn number<T: FromStr>(&self, at: usize) -> Option<T> {
        let domain = if self.subject.split('.').count() >= 11 { 2 } else { 0 };
        self.subject.split('.').nth(at + domain)?.parse().ok()
    }

    /// The message has done its work.
    pub async fn ack(&self, broker: &Broker) {
        self.send(broker, Bytes::from_static(b"+ACK")).await;
    }

    /// Deliver it again after `delay`.
    pub async fn nak(&self, broker: &Broker, delay: Duration) {
        let body = if delay.is_zero() {
            Bytes::from_static(b"-NAK")
        } else {
            Bytes::from(format!(r#"-NAK {{"delay":{}}}"#, delay.as_nanos().min(i64::MAX as u128)))
        };
        self.send(broker, body).await;
    }

    /// Still at work: the broker waits another `ack_wait`. Never after a nak, whose delay it would cancel.
    pub async fn progress(&self, broker: &Broker) {
        self.send(broker, Bytes::from_static(b"+WPI")).await;
    }

    /// The message makes no sense and shall not come again.
    pub async fn term(&self, broker: &Broker, reason: &str) {
        self.send(broker, Bytes::from(format!("+TERM {reason}"))).await;
    }

    /// An answer that gets lost is harmless: the message comes again and its claim is refused.
    async fn send(&self, broker: &Broker, body: Bytes) {
        if self.subject.is_empty() || !broker.still_valid(self.stamp) {
            return;
        }
        let sent = broker.jetstream.publish(self.subject.clone(), body);
        if tokio::time::timeout(Duration::from_secs(1), sent).await.is_err() {
            tracing::debug!("an acknowledgement could not be sent in time");
        }
    }
}
