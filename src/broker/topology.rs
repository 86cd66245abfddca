//! Streams and consumers: made when missing, changed only on a real difference. The shapes are data in `nats/`.

use std::{collections::HashMap, sync::atomic::Ordering};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Broker, Error, Subjects};
use crate::job::Lane;

const STREAMS: [(&str, &str); 5] = [
    ("background-jobs", include_str!("../../nats/streams/background-jobs.json")),
    ("background-jobs-dlq", include_str!("../../nats/streams/background-jobs-dlq.json")),
    ("background-jobs-events", include_str!("../../nats/streams/background-jobs-events.json")),
    ("background-jobs-inbox", include_str!("../../nats/streams/background-jobs-inbox.json")),
    ("background-jobs-inbox-dlq", include_str!("../../nats/streams/background-jobs-inbox-dlq.json")),
];
/// The consumer of the inbox, which all replicas share.
const INTAKE: &str = "intake";
const CONSUMER: &str = include_str!("../../nats/consumer.json");

/// JetStream's codes. Source: nats-server `server/errors.json`.
pub(super) const STREAM_NOT_FOUND: u64 = 10059;
pub(super) const CONSUMER_NOT_FOUND: u64 = 10014;

/// Never edited on a live consumer: the broker keeps delayed naks as times shifted by it, so it would move them all.
const CONSUMER_FIXED: [&str; 4] = ["ack_wait", "ack_policy", "deliver_policy", "replay_policy"];

/// Whether the server answers before it has handed a message to the operating system. See docs/adr/0019.
const PERSIST_MODE: &str = "persist_mode";

#[derive(Deserialize)]
struct StreamInfo {
    created: String,
    config: Value,
    #[serde(default)]
    state: StreamState,
}

#[derive(Default, Deserialize)]
struct StreamState {
    #[serde(default)]
    messages: u64,
    #[serde(default)]
    last_seq: u64,
    /// Told only when it is asked for; source: NATS ADR-31 and `subjects_filter` of `STREAM.INFO`.
    subjects: Option<HashMap<String, u64>>,
}

#[derive(Deserialize)]
pub(super) struct ConsumerInfo {
    config: Value,
    #[serde(default)]
    pub num_pending: u64,
    #[serde(default)]
    pub num_ack_pending: u64,
    #[serde(default)]
    pub delivered: Place,
    #[serde(default)]
    pub ack_floor: Place,
}

#[derive(Default, Deserialize)]
pub(super) struct Place {
    pub stream_seq: u64,
}

/// What a look at the work stream found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkStream {
    /// When the server made it. Another value than before means that all messages are gone.
    pub created: String,
    /// Wake-ups in it, running and waiting ones together.
    pub messages: u64,
    /// The place of the newest wake-up, whether it is still there or not.
    pub last_seq: u64,
}

impl WorkStream {
    fn of(info: StreamInfo) -> Self {
        Self { created: info.created, messages: info.state.messages, last_seq: info.state.last_seq }
    }
}

/// How much waits in one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Never delivered yet.
    pub undelivered: u64,
    /// Delivered and not acknowledged: running, or waiting out a retry delay.
    pub unacknowledged: u64,
}

impl Broker {
    /// Makes or mends the streams.
    ///
    /// # Errors
    /// The broker is away or refuses; the next call goes on where this one stopped.
    pub async fn ensure_streams(&self) -> Result<WorkStream, Error> {
        self.check_server()?;
        let connects = self.connects();
        let mut work = WorkStream { created: String::new(), messages: 0, last_seq: 0 };
        for (name, text) in STREAMS {
            let wanted = self.stream_config(name, text)?;
            let stream = self.subjects.stream(name);
            let info = match self.api::<StreamInfo>(format!("STREAM.INFO.{stream}"), &json!({})).await {
                Err(Error::Api { code: STREAM_NOT_FOUND, .. }) => {
                    tracing::info!("making the stream {stream}");
                    self.api(format!("STREAM.CREATE.{stream}"), &wanted).await?
                }
                Ok(info) => self.mend_stream(&stream, info, wanted).await?,
                Err(e) => return Err(e),
            };
            if name == STREAMS[0].0 {
                work = WorkStream::of(info);
            } else if name == STREAMS[3].0 {
                self.note_inbox_life(info.created);
            }
        }
        let inbox = self.subjects.inbox_stream();
        self.ensure_consumer(&inbox, INTAKE, &self.subjects.rebase("queue.inbox.*")).await?;
        self.incarnation.verified.store(connects, Ordering::SeqCst);
        Ok(work)
    }

    /// Brings a stream that is there to what is wanted.
    async fn mend_stream(&self, stream: &str, found: StreamInfo, mut wanted: Value) -> Result<StreamInfo, Error> {
        // Fixed for the life of a stream, and refused by the server together with copies. Only news are written that way.
        if found.config[PERSIST_MODE] == "async" && wanted["num_replicas"] != 1 {
            tracing::warn!(
                "making the stream {stream} anew, since it can't have copies as it is; its messages are gone"
            );
            self.api::<Value>(format!("STREAM.DELETE.{stream}"), &json!({})).await?;
            return self.api(format!("STREAM.CREATE.{stream}"), &wanted).await;
        }
        if let Value::Object(fields) = &mut wanted {
            fields.remove(PERSIST_MODE);
        }
        if !differs(&wanted, &found.config) {
            return Ok(found);
        }
        tracing::info!("updating the stream {stream}");
        self.api(format!("STREAM.UPDATE.{stream}"), &merged(found.config, &wanted)).await
    }

    /// A look at the work stream.
    ///
    /// # Errors
    /// The broker is away, or the stream is missing.
    pub async fn work_stream(&self) -> Result<WorkStream, Error> {
        let info: StreamInfo = self.api(format!("STREAM.INFO.{}", self.subjects.jobs_stream()), &json!({})).await?;
        Ok(WorkStream::of(info))
    }

    /// Tells that the work stream is another one than before: acks for its predecessor's messages are dropped from now
    /// on.
    pub fn note_new_incarnation(&self) {
        self.incarnation.number.fetch_add(1, Ordering::SeqCst);
    }

    /// Makes or mends the consumers of a type's lanes that are in use; one that fails holds up no other.
    ///
    /// # Errors
    /// As for [`Broker::ensure_streams`].
    pub async fn ensure_consumers(&self, job_type: &str) -> Result<(), Error> {
        let mut made = Ok(());
        for lane in Lane::ALL.into_iter().filter(|lane| self.is_lane_used(job_type, *lane)) {
            made = made.and(self.ensure_consumer_of(job_type, lane).await);
        }
        made
    }

    pub(super) async fn ensure_consumer_of(&self, job_type: &str, lane: Lane) -> Result<(), Error> {
        let (name, filter) = (Subjects::consumer(job_type, lane), self.subjects.wake_up(job_type, lane));
        self.ensure_consumer(&self.subjects.jobs_stream(), &name, &filter).await
    }

    /// The subjects of the wake-ups that are there.
    pub(super) async fn subjects_with_messages(&self) -> Result<Vec<String>, Error> {
        let filter = json!({"subjects_filter": self.subjects.wake_up_target("*.*")});
        let info: StreamInfo = self.api(format!("STREAM.INFO.{}", self.subjects.jobs_stream()), &filter).await?;
        Ok(info.state.subjects.unwrap_or_default().into_keys().collect())
    }

    async fn ensure_consumer(&self, stream: &str, name: &str, filter: &str) -> Result<(), Error> {
        let wanted = self.consumer_config(name, filter)?;
        let make = |config: Value, action: &str| json!({"stream_name": stream, "config": config, "action": action});
        let subject = format!("CONSUMER.CREATE.{stream}.{name}.{filter}");
        match self.api::<ConsumerInfo>(format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
            // No "create" here: of two replicas that race, the second finds the same consumer, which is fine.
            Err(Error::Api { code: CONSUMER_NOT_FOUND, .. }) => {
                self.api::<Value>(subject, &make(wanted, "")).await?;
            }
            Ok(info) => {
                let mut wanted = wanted;
                if let Value::Object(fields) = &mut wanted {
                    fields.retain(|key, _| !CONSUMER_FIXED.contains(&key.as_str()));
                }
                if differs(&wanted, &info.config) {
                    tracing::info!("updating the consumer {name}");
                    self.api::<Value>(subject, &make(merged(info.config, &wanted), "update")).await?;
                }
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// The subject on which the consumer of the inbox is asked for messages.
    pub(crate) fn inbox_pull(&self) -> String {
        self.api_subject(&format!("CONSUMER.MSG.NEXT.{}.{INTAKE}", self.subjects.inbox_stream()))
    }

    /// How much waits in a lane: nothing while it is not in use. `None` when its consumer is missing.
    ///
    /// # Errors
    /// As for [`Broker::ensure_streams`].
    pub async fn backlog(&self, job_type: &str, lane: Lane) -> Result<Option<Backlog>, Error> {
        if !self.is_lane_used(job_type, lane) {
            return Ok(Some(Backlog { undelivered: 0, unacknowledged: 0 }));
        }
        let (stream, name) = (self.subjects.jobs_stream(), Subjects::consumer(job_type, lane));
        match self.api::<ConsumerInfo>(format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
            Ok(info) => Ok(Some(Backlog { undelivered: info.num_pending, unacknowledged: info.num_ack_pending })),
            Err(Error::Api { code: CONSUMER_NOT_FOUND | STREAM_NOT_FOUND, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn stream_config(&self, name: &'static str, text: &str) -> Result<Value, Error> {
        let mut config: Value = serde_json::from_str(text).map_err(|source| Error::Topology { name, source })?;
        config["name"] = json!(self.subjects.stream(name));
        config["num_replicas"] = json!(self.settings.replicas);
        if let (Value::Object(fields), 2..) = (&mut config, self.settings.replicas) {
            // Copies are written in the background anyhow, and the server refuses both together.
            fields.remove(PERSIST_MODE);
        }
        // The files share out 2 GiB; another total is shared out in the same proportion.
        let share = config["max_bytes"].as_u64().unwrap_or_default() as f64 / (2u64 << 30) as f64;
        config["max_bytes"] = json!((self.settings.store_bytes as f64 * share) as u64);
        if let Value::Array(subjects) = &mut config["subjects"] {
            subjects.iter_mut().for_each(|s| *s = json!(self.subjects.rebase(s.as_str().unwrap_or_default())));
        }
        if let Some(Value::Object(transform)) = config.get_mut("subject_transform") {
            transform.values_mut().for_each(|s| *s = json!(self.subjects.rebase(s.as_str().unwrap_or_default())));
        }
        Ok(config)
    }

    fn consumer_config(&self, name: &str, filter: &str) -> Result<Value, Error> {
        let broken = |source| Error::Topology { name: "consumer", source };
        let mut config: Value = serde_json::from_str(CONSUMER).map_err(broken)?;
        config["durable_name"] = json!(name);
        config["name"] = json!(name);
        config["filter_subject"] = json!(filter);
        config["max_ack_pending"] = json!(self.settings.max_unanswered);
        config["ack_wait"] = json!(self.settings.ack_wait.as_nanos() as u64);
        Ok(config)
    }
}

/// Whether a field that we set has another value there. What the server adds by itself does not count.
fn differs(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().any(|(key, value)| differs(value, found.get(key).unwrap_or(&Value::Null)))
        }
        (wanted, found) => wanted != found,
    }
}

fn merged(mut found: Value, wanted: &Value) -> Value {
    if let (Value::Object(found), Value::Object(wanted)) = (&mut found, wanted) {
        found.extend(wanted.clone());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_we_set_is_compared() {
        let wanted = json!({"a": 1, "t": {"src": "x"}});
        assert!(!differs(&wanted, &json!({"a": 1, "t": {"src": "x", "more": 1}, "_nats.level": 3})));
        assert!(differs(&wanted, &json!({"a": 2, "t": {"src": "x"}})));
        assert!(differs(&wanted, &json!({"a": 1})));
    }
}
