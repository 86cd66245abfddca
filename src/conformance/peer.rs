//! The service's end of the protocol for handlers that are called.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use chrono::{SecondsFormat, Utc};
use futures_util::StreamExt;
use serde_json::{json, value::RawValue};
use tokio::time::{Instant, timeout_at};

use crate::{
    handlers::Ended,
    job::{JobType, Trace, model::JobId},
    outside::{over_nats::said, reply},
};

pub(super) struct Peer {
    pub nats: Client,
    pub prefix: String,
    pub job_type: JobType,
}

/// A run that is to be asked for.
pub(super) struct Order<'a> {
    pub payload: &'a RawValue,
    pub id: JobId,
    pub run: i64,
    pub checkpoint: Option<&'a RawValue>,
    /// How long the run may take.
    pub within: Duration,
}

/// A run that was asked for.
pub(super) struct Run {
    pub id: JobId,
    answers: Subscriber,
    signs: Subscriber,
    pub sent: Instant,
    pub deadline: Instant,
    /// Everything that was published as progress of the job, and when.
    pub heard: Vec<(Instant, Message)>,
}

impl Peer {
    pub fn new(nats: Client, prefix: &str, job_type: JobType) -> Self {
        Self { nats, prefix: prefix.to_owned(), job_type }
    }

    /// Asks for a run.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn ask(&self, order: Order<'_>) -> anyhow::Result<Run> {
        let job = super::job(&self.job_type, order.id, order.payload, order.checkpoint);
        self.ask_with(order, job.to_string().into_bytes()).await
    }

    /// Asks with a body that may be anything.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn ask_with(&self, order: Order<'_>, body: Vec<u8>) -> anyhow::Result<Run> {
        let Self { nats, prefix, job_type } = self;
        let Order { id, run, within, .. } = order;
        let reply = format!("{prefix}.reply.conformance.{job_type}.{id}.{run}");
        let answers = nats.subscribe(reply.clone()).await?;
        let signs = nats.subscribe(format!("{prefix}.progress.{job_type}.{id}")).await?;
        let deadline = (Utc::now() + within).to_rfc3339_opts(SecondsFormat::Millis, true);
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("Job-Id", id.to_string()),
            ("Job-Type", job_type.to_string()),
            // As when the record of a run was lost that had spent none.
            ("Job-Attempt", "1".to_owned()),
            ("Job-Run", run.to_string()),
            ("Job-Deadline", deadline),
            ("traceparent", Trace::of_job(id).of_run(id, run).to_string()),
            // A later version of the service may say more.
            ("Job-Of-Later-Versions", "yes".to_owned()),
        ] {
            headers.insert(name, value);
        }
        let subject = format!("{prefix}.handlers.{job_type}");
        nats.publish_with_reply_and_headers(subject, reply, headers, body.into()).await?;
        nats.flush().await?;
        let sent = Instant::now();
        Ok(Run { id, answers, signs, sent, deadline: sent + within, heard: Vec::new() })
    }

    /// Tells the handler that a job is cancelled.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn cancel(&self, id: JobId) -> anyhow::Result<()> {
        let body = json!({"jobId": id, "reason": "conformance"}).to_string();
        self.nats.publish(format!("{}.control.cancel.{}.{id}", self.prefix, self.job_type), body.into()).await?;
        Ok(self.nats.flush().await?)
    }
}

impl Run {
    /// The next answer, if one comes before `end`; progress is noted meanwhile.
    pub async fn answer(&mut self, end: Instant) -> Option<Message> {
        loop {
            tokio::select! {
                biased;
                Some(sign) = self.signs.next() => self.heard.push((Instant::now(), sign)),
                answer = timeout_at(end, self.answers.next()) => return answer.ok().flatten(),
            }
        }
    }

    /// The answer within the run's time.
    pub async fn answer_in_time(&mut self) -> Option<Message> {
        self.answer(self.deadline + Duration::from_secs(1)).await
    }

    /// Waits until the handler has shown that it is at work, or `end`.
    pub async fn at_work(&mut self, end: Instant) -> Option<Message> {
        tokio::select! {
            Some(sign) = self.signs.next() => {
                self.heard.push((Instant::now(), sign));
                None
            }
            answer = timeout_at(end, self.answers.next()) => answer.ok().flatten(),
        }
    }
}

/// Whether the broker says that nobody listens.
pub(super) fn is_nobody(answer: &Message) -> bool {
    answer.status == Some(StatusCode::NO_RESPONDERS)
}

/// What an answer means, as the service judges it.
pub(super) fn judge(answer: &Message) -> Ended {
    reply::judge(&said(answer), &answer.payload, super::RESULT_MAX)
}

/// In words, for a finding.
pub(super) fn in_words(ended: &Ended) -> String {
    match ended {
        Ended::Done(result) => format!("the result {}", short(result.get())),
        Ended::Failed(failure) => format!("a failure ({}): {}", failure.kind.as_str(), short(&failure.message)),
        Ended::Released(_) => "the job given back".into(),
        Ended::Outside => "a promise to finish it later (Job-Accepted)".into(),
    }
}

pub(super) fn short(text: &str) -> String {
    const MAX: usize = 80;
    match text.len() > MAX {
        true => format!("{}…", &text[..text.floor_char_boundary(MAX)]),
        false => text.to_owned(),
    }
}
