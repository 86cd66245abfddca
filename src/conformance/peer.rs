//! The service's end of the protocol for handlers that are called.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use chrono::{SecondsFormat, Utc};
use futures_util::StreamExt;
use serde_json::{json, value::RawValue};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{ends::Ends, same};
use crate::{
    handlers::Ended,
    job::{JobType, Trace, model::JobId},
    outside::{
        over_nats::said,
        reply::{self, is_of_another_run},
    },
};

pub(super) struct Peer {
    pub nats: Client,
    pub prefix: String,
    pub job_type: JobType,
    pub ends: Arc<Mutex<Ends>>,
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
    /// It was answered with Job-Accepted.
    pub accepted: bool,
    /// It was told as ended by `queue.finish`.
    finished: bool,
    run: i64,
    ends: Arc<Mutex<Ends>>,
}

/// What was told of a run: by its answer, or by `queue.finish` after a promise to do so.
pub(super) struct Told {
    /// [`Ended::Outside`]: the promise was not kept in time.
    pub ended: Ended,
    /// Bytes of the answer's body, or of the result.
    pub size: usize,
    /// `Nats-Service-Error-Code`, where there was an answer.
    pub code: Option<String>,
    pub is_nobody: bool,
    pub is_of_another_run: bool,
}

impl Peer {
    /// # Errors
    /// The connection is closed.
    pub async fn open(nats: Client, prefix: &str, job_type: JobType) -> anyhow::Result<Self> {
        let ends = Arc::new(Mutex::new(Ends::listen(nats.clone(), prefix).await?));
        Ok(Self { nats, prefix: prefix.to_owned(), job_type, ends })
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
        let Self { nats, prefix, job_type, ends } = self;
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
            ("Job-Timeout-Ms", within.as_millis().to_string()),
            ("traceparent", Trace::of_job(id).of_run(id, run).to_string()),
            // A later version of the service may say more.
            ("Job-Of-Later-Versions", "yes".to_owned()),
        ] {
            headers.insert(name, value);
        }
        ends.lock().await.expect((id, run), Instant::now() + within);
        let subject = format!("{prefix}.handlers.{job_type}");
        nats.publish_with_reply_and_headers(subject, reply, headers, body.into()).await?;
        nats.flush().await?;
        let sent = Instant::now();
        let (ends, deadline) = (ends.clone(), sent + within);
        Ok(Run { id, run, answers, signs, sent, deadline, heard: Vec::new(), accepted: false, finished: false, ends })
    }

    /// Tells the handler that a job is cancelled.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn cancel(&self, id: JobId) -> anyhow::Result<()> {
        self.ends.lock().await.cancel(id);
        let body = json!({"jobId": id, "reason": "conformance"}).to_string();
        self.nats.publish(format!("{}.control.cancel.{}.{id}", self.prefix, self.job_type), body.into()).await?;
        Ok(self.nats.flush().await?)
    }
}

/// What came of a run next.
enum Heard {
    Sign,
    Answer(Message),
    Finish,
    Nothing,
}

impl Run {
    /// What is told of the run before `end`; progress is noted meanwhile.
    pub async fn told(&mut self, end: Instant) -> Option<Told> {
        loop {
            if let Some(told) = self.finish().await {
                return Some(told);
            }
            match self.next(end).await {
                Heard::Sign | Heard::Finish => {}
                Heard::Answer(answer) if is_promise(&answer) => self.accepted = true,
                Heard::Answer(answer) => return Some(self.by_answer(&answer)),
                Heard::Nothing if self.accepted => return Some(Told::of(Ended::Outside, 0)),
                Heard::Nothing => return None,
            }
        }
    }

    /// What is told of the run in its time.
    pub async fn told_in_time(&mut self) -> Option<Told> {
        self.told(self.deadline + Duration::from_secs(1)).await
    }

    /// Whether anything else is told of a run that has ended, before `end`.
    pub async fn another(&mut self, end: Instant) -> bool {
        loop {
            match self.next(end).await {
                Heard::Sign => {}
                // It may overtake the answer.
                Heard::Answer(answer) if self.finished && is_promise(&answer) => self.accepted = true,
                Heard::Answer(_) => return true,
                Heard::Finish => {
                    let (ends, key) = (self.ends.lock().await, (self.id, self.run));
                    if ends.is_contradicted(key) || !self.finished && ends.of(key).is_some() {
                        return true;
                    }
                }
                Heard::Nothing => return false,
            }
        }
    }

    /// Waits until the handler has shown that it is at work, or `end`. `true`: the run is over already.
    pub async fn at_work(&mut self, end: Instant) -> bool {
        loop {
            match self.next(end).await {
                Heard::Sign | Heard::Nothing => return false,
                Heard::Answer(answer) if is_promise(&answer) => {
                    self.accepted = true;
                    return false;
                }
                Heard::Answer(_) => return true,
                Heard::Finish => {
                    if self.finish().await.is_some() {
                        return true;
                    }
                }
            }
        }
    }

    /// Whether what was told is told again before `end`, after it got no answer.
    pub async fn told_again(&mut self, end: Instant) -> Option<Told> {
        self.ends.lock().await.forget((self.id, self.run));
        self.told(end).await.filter(|told| !matches!(told.ended, Ended::Outside))
    }

    async fn next(&mut self, end: Instant) -> Heard {
        let mut ends = self.ends.lock().await;
        tokio::select! {
            biased;
            Some(sign) = self.signs.next() => {
                self.heard.push((Instant::now(), sign));
                Heard::Sign
            }
            Some(request) = ends.next() => {
                ends.take(request).await;
                Heard::Finish
            }
            answer = timeout_at(end, self.answers.next()) => match answer {
                Ok(Some(answer)) => Heard::Answer(answer),
                Ok(None) | Err(_) => Heard::Nothing,
            },
        }
    }

    async fn finish(&mut self) -> Option<Told> {
        let ends = self.ends.lock().await;
        let end = ends.of((self.id, self.run))?;
        // The promise may still be on its way.
        (self.finished, self.accepted) = (true, true);
        Some(Told::of(end.ended.clone(), end.size))
    }

    fn by_answer(&self, answer: &Message) -> Told {
        let code = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code"));
        Told {
            is_nobody: answer.status == Some(StatusCode::NO_RESPONDERS),
            is_of_another_run: is_of_another_run(&said(answer), &self.id.to_string(), self.run),
            code: code.map(|code| code.as_str().trim().to_owned()),
            ..Told::of(judge(answer), answer.payload.len())
        }
    }
}

impl Told {
    fn of(ended: Ended, size: usize) -> Self {
        Self { ended, size, code: None, is_nobody: false, is_of_another_run: false }
    }
}

fn is_promise(answer: &Message) -> bool {
    answer.status.is_none() && matches!(judge(answer), Ended::Outside)
}

/// Where two ends of the same work differ, as part of a sentence; `None`: they say the same.
pub(super) fn difference(a: &Ended, b: &Ended) -> Option<String> {
    match (a, b) {
        (Ended::Done(a), Ended::Done(b)) => {
            let value = |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_default();
            same::difference(&value(a), &value(b))
                .map(|place| if place.is_empty() { place } else { format!(" at {place}") })
        }
        (Ended::Failed(a), Ended::Failed(b)) => (a.kind != b.kind || a.message != b.message).then(String::new),
        (Ended::Released(_), Ended::Released(_)) | (Ended::Outside, Ended::Outside) => None,
        _ => Some(String::new()),
    }
}

/// What an answer means, as the service judges it.
fn judge(answer: &Message) -> Ended {
    reply::judge(&said(answer), &answer.payload, super::RESULT_MAX)
}

/// In words, for a finding.
pub(super) fn in_words(ended: &Ended) -> String {
    match ended {
        Ended::Done(result) => format!("the result {}", short(result.get())),
        Ended::Failed(failure) => format!("a failure ({}): {}", failure.kind.as_str(), short(&failure.message)),
        Ended::Released(_) => "the job given back".into(),
        Ended::Outside => "a promise to finish it later (Job-Accepted), and no queue.finish in time".into(),
    }
}

pub(super) fn short(text: &str) -> String {
    const MAX: usize = 80;
    match text.len() > MAX {
        true => format!("{}…", &text[..text.floor_char_boundary(MAX)]),
        false => text.to_owned(),
    }
}
