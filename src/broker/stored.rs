//! What the work stream has of a lane, read without taking it: for the repair sweep, which must not guess.

use std::collections::HashSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    Broker, Error, Subjects,
    pull::job_id_of,
    topology::{Backlog, CONSUMER_NOT_FOUND, ConsumerInfo, STREAM_NOT_FOUND},
};
use crate::job::Lane;

/// No message fits. Source: nats-server `server/errors.json`.
const NO_MESSAGE_FOUND: u64 = 10037;

/// How far the consumer of a lane has come, in sequence numbers of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last one that was delivered.
    pub delivered: u64,
    /// All up to this one are acknowledged: what the stream should still have of them is never delivered again.
    pub acknowledged: u64,
    pub backlog: Backlog,
}

/// A wake-up in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub seq: u64,
    /// `None`: it was written by hand, and is no wake-up.
    pub id: Option<Uuid>,
}

impl Broker {
    /// How far a lane has come. Nothing was delivered where there is no consumer.
    ///
    /// # Errors
    /// As for [`Broker::ensure_streams`].
    pub async fn progress(&self, job_type: &str, lane: Lane) -> Result<Progress, Error> {
        let (stream, name) = (self.subjects.jobs_stream(), Subjects::consumer(job_type, lane));
        match self.api::<ConsumerInfo>(format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
            Ok(info) => Ok(Progress {
                delivered: info.delivered.stream_seq,
                acknowledged: info.ack_floor.stream_seq,
                backlog: Backlog { undelivered: info.num_pending, unacknowledged: info.num_ack_pending },
            }),
            Err(Error::Api { code: CONSUMER_NOT_FOUND | STREAM_NOT_FOUND, .. }) => Ok(Progress::default()),
            Err(e) => Err(e),
        }
    }

    /// The first message of a lane at `from` or after. The leader of the stream answers: a copy may lag behind.
    ///
    /// # Errors
    /// As for [`Broker::ensure_streams`].
    pub async fn next_stored(&self, job_type: &str, lane: Lane, from: u64) -> Result<Option<Stored>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            message: Message,
        }
        #[derive(Deserialize)]
        struct Message {
            seq: u64,
            #[serde(default)]
            data: String,
        }
        let request = json!({"seq": from, "next_by_subj": self.subjects.wake_up(job_type, lane)});
        match self.api::<Answer>(format!("STREAM.MSG.GET.{}", self.subjects.jobs_stream()), &request).await {
            Ok(Answer { message }) => {
                let body = BASE64_STANDARD.decode(&message.data).unwrap_or_default();
                Ok(Some(Stored { seq: message.seq, id: job_id_of(&body) }))
            }
            Err(Error::Api { code: NO_MESSAGE_FOUND, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The jobs of which the stream has a wake-up in a lane, after one place and up to another.
    ///
    /// # Errors
    /// As for [`Broker::ensure_streams`].
    pub async fn stored(&self, job_type: &str, lane: Lane, after: u64, upto: u64) -> Result<HashSet<Uuid>, Error> {
        let (mut ids, mut from) = (HashSet::new(), after + 1);
        while let Some(stored) = self.next_stored(job_type, lane, from).await?.filter(|stored| stored.seq <= upto) {
            ids.extend(stored.id);
            from = stored.seq + 1;
        }
        Ok(ids)
    }
}
