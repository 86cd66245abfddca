//! The service's end of `queue.finish`, for handlers that answer with Job-Accepted.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use futures_util::{StreamExt, stream::SelectAll};
use serde_json::{Value, json, value::RawValue};
use tokio::time::Instant;

use super::same::difference;
use crate::{
    handlers::Ended,
    job::{Failure, FailureKind, model::JobId},
    ops::{input, wire::FinishRequest},
};

/// Clocks differ, and a message takes a moment.
const LENIENT: Duration = Duration::from_secs(1);

type Key = (JobId, i64);

/// What was told of the ends of runs, and what is answered.
pub(super) struct Ends {
    nats: Client,
    requests: SelectAll<Subscriber>,
    runs: HashMap<Key, Run>,
    cancelled: HashSet<JobId>,
    /// As if answers got lost.
    pub silent: bool,
    /// What was wrong with requests.
    pub faults: Vec<String>,
}

struct Run {
    deadline: Instant,
    end: Option<End>,
    /// It was told as ended once more, in another way.
    contradicted: bool,
}

/// How a run ended, as it was told.
#[derive(Clone)]
pub(super) struct End {
    pub ended: Ended,
    /// Bytes of the result.
    pub size: usize,
    /// What is compared when it is told again.
    body: Value,
}

impl Ends {
    /// Listens, unless a service does under this prefix.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn listen(nats: Client, prefix: &str) -> anyhow::Result<Self> {
        let mut requests = SelectAll::new();
        if nats.request(format!("{prefix}.getStats"), "{}".into()).await.is_err() {
            for subject in [format!("{prefix}.finish"), format!("{prefix}.finish.*")] {
                requests.push(nats.subscribe(subject).await?);
            }
            nats.flush().await?;
        }
        let (runs, cancelled, faults) = (HashMap::new(), HashSet::new(), Vec::new());
        Ok(Self { nats, requests, runs, cancelled, silent: false, faults })
    }

    /// Whether anything can be told here.
    pub fn are_heard(&self) -> bool {
        !self.requests.is_empty()
    }

    /// A run begins.
    pub fn expect(&mut self, key: Key, deadline: Instant) {
        self.runs.insert(key, Run { deadline, end: None, contradicted: false });
    }

    pub fn cancel(&mut self, id: JobId) {
        self.cancelled.insert(id);
    }

    /// How the run ended, if that was told.
    pub fn of(&self, key: Key) -> Option<&End> {
        self.runs.get(&key)?.end.as_ref()
    }

    pub fn is_contradicted(&self, key: Key) -> bool {
        self.runs.get(&key).is_some_and(|run| run.contradicted)
    }

    /// As if nothing had been told of the run.
    pub fn forget(&mut self, key: Key) {
        if let Some(run) = self.runs.get_mut(&key) {
            run.end = None;
        }
    }

    /// The next request; what it says is not taken yet, so nothing is lost when this is dropped.
    pub async fn next(&mut self) -> Option<Message> {
        self.requests.next().await
    }

    /// Takes what a request says, and answers it as the service would.
    pub async fn take(&mut self, message: Message) {
        let to = message.reply.clone();
        match read(&message) {
            Ok((key, end)) => {
                let (status, body) = self.record(key, end);
                if !self.silent {
                    self.answer(to, status, &body).await;
                }
            }
            Err(fault) => {
                self.answer(to, Some(400), &problem(400, "invalid_request", &fault)).await;
                self.faults.push(format!("finish: {fault}"));
            }
        }
    }

    /// The status of a refusal, and the body of the answer.
    fn record(&mut self, key: Key, end: End) -> (Option<u16>, Value) {
        let cancelled = self.cancelled.contains(&key.0);
        let Some(run) = self.runs.get_mut(&key) else {
            self.faults.push("finish: names a run that was not given".into());
            return lease_lost();
        };
        let late = Instant::now() > run.deadline + LENIENT;
        let first = run.end.get_or_insert_with(|| end.clone());
        if difference(&first.body, &end.body).is_some() {
            run.contradicted = true;
            return lease_lost();
        }
        if late {
            return lease_lost();
        }
        let status = match &end.ended {
            _ if cancelled => "cancelled",
            Ended::Done(_) => "completed",
            Ended::Failed(failure) if failure.kind == FailureKind::Permanent => "failed",
            Ended::Failed(_) | Ended::Released(_) | Ended::Outside => "pending",
        };
        (None, json!({"jobId": key.0, "status": status}))
    }

    async fn answer(&self, to: Option<Subject>, status: Option<u16>, body: &Value) {
        let Some(to) = to else { return };
        let mut headers = HeaderMap::new();
        if let Some(status) = status {
            headers.insert("Nats-Service-Error-Code", status.to_string());
            headers.insert("Nats-Service-Error", body["code"].as_str().unwrap_or_default());
        }
        let _ = self.nats.publish_with_headers(to, headers, body.to_string().into()).await;
    }
}

fn lease_lost() -> (Option<u16>, Value) {
    let detail = "the run is over: another one has begun, its time was up, or it ended in another way";
    (Some(409), problem(409, "lease_lost", detail))
}

pub(super) fn problem(status: u16, code: &str, detail: &str) -> Value {
    json!({"type": "about:blank", "title": "Refused", "status": status, "code": code, "detail": detail, "errors": []})
}

/// What `queue.finish` says of which run.
pub(super) fn read(message: &Message) -> Result<(Key, End), String> {
    let request: FinishRequest = input::decode(&message.payload).map_err(|refused| refused.detail)?;
    let body = serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
    let FinishRequest { job_id, run, result, error, release, delay } = request;
    let size = result.as_ref().map_or(0, |result| result.get().len());
    let ended = match (result, error, release.unwrap_or_default()) {
        (result, None, false) if delay.is_none() => Ended::Done(match result {
            Some(result) => result,
            None => RawValue::from_string("null".into()).map_err(|e| e.to_string())?,
        }),
        (None, Some(error), false) if delay.is_none() => {
            let kind = if error.retry.unwrap_or(true) { FailureKind::Error } else { FailureKind::Permanent };
            Ended::Failed(Failure::new(kind, error.message).after(error.retry_after.map(|span| span.0)))
        }
        (None, None, true) => Ended::Released(delay.map_or(Duration::ZERO, |span| span.0)),
        _ => return Err("give one of result, error and release; delay goes with release".into()),
    };
    Ok(((job_id.0, run), End { ended, size, body }))
}
