//! What is read of streams, and the consumers: made when missing, changed only on a real difference. Their shape is data
//! in `nats/`. The streams themselves are made in `streams.rs`.

use std::{collections::HashMap, sync::atomic::Ordering};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Broker, Error, Subjects,
    findings::{self, Part},
};
use crate::job::Lane;

/// The consumer of the inbox, which all replicas share.
pub(super) const INTAKE: &str = "intake";
const CONSUMER: &str = include_str!("../../nats/consumer.json");

/// JetStream's codes. Source: nats-server `server/errors.json`.
pub(super) const STREAM_NOT_FOUND: u64 = 10059;
pub(super) const CONSUMER_NOT_FOUND: u64 = 10014;
/// "consumer max ack pending exceeds system limit of …": the account's or the server's.
const TOO_MANY_UNANSWERED: u64 = 10121;

/// Never edited on a live consumer: the broker keeps delayed naks as times shifted by it, so it would move them all.
const CONSUMER_FIXED: [&str; 4] = ["ack_wait", "ack_policy", "deliver_policy", "replay_policy"];

#[derive(Deserialize)]
pub(super) struct StreamInfo {
    pub created: String,
    pub config: Value,
    #[serde(default)]
    pub state: StreamState,
}

#[derive(Default, Deserialize)]
pub(super) struct StreamState {
    #[serde(default)]
    messages: u64,
    #[serde(default)]
    pub bytes: u64,
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
    pub(super) fn of(info: StreamInfo) -> Self {
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

    /// Makes or mends the consumers of a type's lanes that are in use; one that fails holds up no other. Those that the
    /// broker refuses are noted, and are no error.
    ///
    /// # Errors
    /// The broker is away, or does not answer now.
    pub async fn ensure_consumers(&self, job_type: &str) -> Result<(), Error> {
        let mut made = Ok(());
        for lane in Lane::ALL.into_iter().filter(|lane| self.is_lane_used(job_type, *lane)) {
            made = made.and(self.ensure_consumer_of(job_type, lane).await.map(|_| ()));
        }
        made
    }

    /// `false`: the broker refuses it.
    pub(super) async fn ensure_consumer_of(&self, job_type: &str, lane: Lane) -> Result<bool, Error> {
        let (name, filter) = (Subjects::consumer(job_type, lane), self.subjects.wake_up(job_type, lane));
        let made = self.ensure_consumer(&self.subjects.jobs_stream(), &name, &filter).await;
        let is_refused = match made {
            Ok(()) => {
                self.findings.clear(Part::Lanes, &name);
                false
            }
            // What the stream lacks is noted there.
            Err(Error::Api { code: STREAM_NOT_FOUND, .. }) => {
                self.suspect();
                return Ok(false);
            }
            Err(e) if e.is_passing() => return Err(e),
            Err(e) => {
                self.findings.note(Part::Lanes, &name, findings::words(&e), findings::advice(&e));
                true
            }
        };
        self.lanes.note_refused(job_type, lane, is_refused);
        Ok(!is_refused)
    }

    /// The subjects of the wake-ups that are there.
    pub(super) async fn subjects_with_messages(&self) -> Result<Vec<String>, Error> {
        let filter = json!({"subjects_filter": self.subjects.wake_up_target("*.*")});
        let info: StreamInfo = self.api(format!("STREAM.INFO.{}", self.subjects.jobs_stream()), &filter).await?;
        Ok(info.state.subjects.unwrap_or_default().into_keys().collect())
    }

    pub(super) async fn ensure_consumer(&self, stream: &str, name: &str, filter: &str) -> Result<(), Error> {
        let make = |config: Value, action: &str| json!({"stream_name": stream, "config": config, "action": action});
        let subject = format!("CONSUMER.CREATE.{stream}.{name}.{filter}");
        let found = match self.api::<ConsumerInfo>(format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
            Err(Error::Api { code: CONSUMER_NOT_FOUND, .. }) => None,
            Ok(info) => Some(info.config),
            Err(e) => return Err(e),
        };
        // Once more, with what the broker allows.
        for _ in 0..2 {
            let mut wanted = self.consumer_config(name, filter)?;
            let request = match &found {
                // No "create" here: of two replicas that race, the second finds the same consumer, which is fine.
                None => make(wanted, ""),
                Some(found) => {
                    if let Value::Object(fields) = &mut wanted {
                        fields.retain(|key, _| !CONSUMER_FIXED.contains(&key.as_str()));
                    }
                    if !differs(&wanted, found) {
                        return Ok(());
                    }
                    make(merged(found.clone(), &wanted), "update")
                }
            };
            match self.api::<Value>(subject.clone(), &request).await {
                Ok(_) => {
                    let done = if found.is_some() { "updated" } else { "made" };
                    tracing::debug!("{done} the consumer {name}");
                    return Ok(());
                }
                Err(e @ Error::Api { code: TOO_MANY_UNANSWERED, .. }) => self.note_unanswered_limit(e)?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// How many messages of a lane may be unanswered: as many as the settings and the broker allow.
    pub(crate) fn max_unanswered(&self) -> usize {
        let allowed = self.lock_allowed().unanswered;
        allowed.map_or(self.settings.max_unanswered, |allowed| allowed.min(self.settings.max_unanswered))
    }

    /// The limit is the account's or the server's, and only the refusal names that of the server.
    fn note_unanswered_limit(&self, refusal: Error) -> Result<(), Error> {
        let Error::Api { description, .. } = &refusal else { return Err(refusal) };
        let limit = description.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok());
        let Some(limit) = limit.filter(|limit| *limit > 0 && *limit < self.max_unanswered()) else {
            return Err(refusal);
        };
        self.lock_allowed().unanswered = Some(limit);
        let why = format!(
            "the broker allows {limit} unanswered messages of a lane, background.max_unanswered is {}",
            self.settings.max_unanswered
        );
        let advice = "When more jobs than that wait for a retry, further ones are kept in the database until they are due. \
                      Raise max_ack_pending of the account or the server, or lower the setting";
        self.findings.note(Part::Limits, "consumers", why, advice.into());
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

    fn consumer_config(&self, name: &str, filter: &str) -> Result<Value, Error> {
        let broken = |source| Error::Topology { name: "consumer", source };
        let mut config: Value = serde_json::from_str(CONSUMER).map_err(broken)?;
        config["durable_name"] = json!(name);
        config["name"] = json!(name);
        config["filter_subject"] = json!(filter);
        config["max_ack_pending"] = json!(self.max_unanswered());
        config["ack_wait"] = json!(self.settings.ack_wait.as_nanos() as u64);
        Ok(config)
    }
}

/// Whether a field that we set has another value there. What the server adds by itself does not count.
pub(super) fn differs(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().any(|(key, value)| differs(value, found.get(key).unwrap_or(&Value::Null)))
        }
        (wanted, found) => wanted != found,
    }
}

pub(super) fn merged(mut found: Value, wanted: &Value) -> Value {
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
