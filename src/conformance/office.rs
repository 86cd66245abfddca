//! The service's end of the protocol for pull workers: gives jobs out, and takes what becomes of them.

use std::{collections::HashMap, time::Duration};

use anyhow::ensure;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use chrono::{SecondsFormat, Utc};
use futures_util::{StreamExt, stream::SelectAll};
use serde_json::{Value, json, value::RawValue};
use tokio::time::{Instant, timeout_at};

use super::ends;
use crate::{
    handlers::Ended,
    job::{FailureKind, JobType, Trace, model::JobId},
    ops::{
        input,
        wire::{CompleteRequest, FailRequest, FetchRequest, HeartbeatRequest, ReleaseRequest},
        work::{self, Bounds},
    },
    supervise,
};

/// An empty answer comes after this or `waitMs`, so that no check has to wait long for the next fetch.
const EMPTY: Duration = Duration::from_millis(200);

pub(super) struct Office {
    nats: Client,
    prefix: String,
    pub job_type: JobType,
    requests: SelectAll<Subscriber>,
    /// What heartbeats of runs are told that are not simply held.
    pub states: HashMap<(JobId, i64), &'static str>,
    /// What was wrong with requests.
    pub faults: Vec<String>,
    /// When which run gave a sign of life.
    pub beats: Vec<(Instant, JobId, i64)>,
    /// The name that the worker gave with its last fetch.
    pub worker: Option<String>,
}

/// A job that was given out.
#[derive(Clone, Copy)]
pub(super) struct Given {
    pub id: JobId,
    pub run: i64,
    pub at: Instant,
    pub lease: Duration,
}

/// What the worker says became of a run.
pub(super) struct Outcome {
    /// `complete`, `fail` or `release`.
    pub verb: String,
    pub body: Value,
    /// Bytes of the result.
    pub size: usize,
    reply: Option<Subject>,
}

enum Asked {
    Fetch { lease: Duration, wait: Duration, reply: Option<Subject> },
    Outcome { id: JobId, run: i64, outcome: Outcome },
}

impl Office {
    /// # Errors
    /// A service answers under the prefix already.
    pub async fn open(nats: Client, prefix: &str, job_type: JobType) -> anyhow::Result<Self> {
        let asked = nats.request(format!("{prefix}.getStats"), "{}".into()).await;
        ensure!(
            asked.is_err(),
            "a service answers under the prefix '{prefix}', and the kit has to be the only one: give both another with --prefix"
        );
        let mut requests = SelectAll::new();
        // A run that was fetched may be ended by either.
        for subject in ["work.>", "finish", "finish.*"] {
            requests.push(nats.subscribe(format!("{prefix}.{subject}")).await?);
        }
        nats.flush().await?;
        let (states, faults, beats) = (HashMap::new(), Vec::new(), Vec::new());
        Ok(Self { nats, prefix: prefix.to_owned(), job_type, requests, states, faults, beats, worker: None })
    }

    /// Gives a job out with the next fetch; `None`: there is none before `end`.
    pub async fn give(&mut self, payload: &RawValue, id: JobId, run: i64, end: Instant) -> Option<Given> {
        loop {
            match self.next(end).await? {
                Asked::Fetch { lease, reply, .. } => {
                    let body = json!({"jobs": [self.job(payload, id, run, lease)]});
                    self.answer(reply, &body).await;
                    return Some(Given { id, run, at: Instant::now(), lease });
                }
                Asked::Outcome { outcome, .. } => self.refuse(&outcome).await,
            }
        }
    }

    /// What becomes of a run, if it is said before `end`. Meanwhile there is no other work.
    pub async fn outcome(&mut self, given: Given, end: Instant) -> Option<Outcome> {
        loop {
            match self.next(end).await? {
                Asked::Fetch { wait, reply, .. } => self.nothing(wait, reply),
                Asked::Outcome { id, run, outcome } if (id, run) == (given.id, given.run) => return Some(outcome),
                Asked::Outcome { outcome, .. } => self.refuse(&outcome).await,
            }
        }
    }

    /// Waits until the worker asks for work, or says something of `given` again, which is counted and refused.
    pub async fn until_fetch(&mut self, given: Given, end: Instant) -> (bool, usize) {
        let mut repeated = 0;
        while let Some(asked) = self.next(end).await {
            match asked {
                Asked::Fetch { wait, reply, .. } => {
                    self.nothing(wait, reply);
                    return (true, repeated);
                }
                Asked::Outcome { id, run, outcome } => {
                    repeated += usize::from((id, run) == (given.id, given.run));
                    self.refuse(&outcome).await;
                }
            }
        }
        (false, repeated)
    }

    /// Waits for a heartbeat of a run.
    pub async fn beat(&mut self, given: Given, end: Instant) -> Option<Duration> {
        loop {
            let beat = self.beats.iter().find(|(_, id, run)| (*id, *run) == (given.id, given.run));
            if let Some((at, ..)) = beat {
                return Some(*at - given.at);
            }
            match self.next_or_beat(end).await? {
                None => {}
                Some(Asked::Fetch { wait, reply, .. }) => self.nothing(wait, reply),
                // It was over before a heartbeat was due.
                Some(Asked::Outcome { outcome, .. }) => {
                    self.accept(&outcome).await;
                    return None;
                }
            }
        }
    }

    /// Records an outcome, and says so.
    pub async fn accept(&self, outcome: &Outcome) {
        let status = match outcome.verb.as_str() {
            "complete" => "completed",
            "fail" if outcome.body["retry"] == false => "failed",
            _ => "pending",
        };
        self.answer(outcome.reply.clone(), &json!({"jobId": outcome.body["jobId"], "status": status})).await;
    }

    /// Says that the run is not the worker's any more.
    pub async fn refuse(&self, outcome: &Outcome) {
        let detail = "the run is over: another one has begun, its time was up, or somebody cancelled it";
        self.say_no(outcome.reply.clone(), 409, "lease_lost", detail).await;
    }

    async fn say_no(&self, to: Option<Subject>, status: u16, code: &str, detail: &str) {
        let problem = ends::problem(status, code, detail);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", status.to_string());
        headers.insert("Nats-Service-Error", code);
        if let Some(to) = to {
            let _ = self.nats.publish_with_headers(to, headers, problem.to_string().into()).await;
        }
    }

    async fn next(&mut self, end: Instant) -> Option<Asked> {
        loop {
            if let Some(asked) = self.next_or_beat(end).await? {
                return Some(asked);
            }
        }
    }

    /// The next request; heartbeats are answered and come out as `Some(None)`, as do those that are not understood.
    async fn next_or_beat(&mut self, end: Instant) -> Option<Option<Asked>> {
        let message = timeout_at(end, self.requests.next()).await.ok().flatten()?;
        let rest = &message.subject[self.prefix.len() + 1..];
        let verb = rest.strip_prefix("work.").unwrap_or(rest).split('.').next().unwrap_or_default().to_owned();
        let asked = match verb.as_str() {
            "fetch" => self.fetch(&message),
            "heartbeat" => match input::decode::<HeartbeatRequest>(&message.payload) {
                Ok(request) => {
                    self.heartbeat(&request, message.reply.clone()).await;
                    Ok(None)
                }
                Err(refused) => Err(refused.detail),
            },
            "complete" | "fail" | "release" => outcome(&verb, &message).map(Some),
            "finish" => finish(&message).map(Some),
            _ => Err("there is no such request".into()),
        };
        match asked {
            Ok(asked) => Some(asked),
            Err(fault) => {
                self.say_no(message.reply.clone(), 400, "invalid_request", &fault).await;
                let verb = if verb == "finish" { verb } else { format!("work.{verb}") };
                self.faults.push(format!("{verb}: {fault}"));
                Some(None)
            }
        }
    }

    fn fetch(&mut self, message: &Message) -> Result<Option<Asked>, String> {
        let request: FetchRequest = input::decode(&message.payload).map_err(|refused| refused.detail)?;
        let scoped = message.subject.ends_with(&format!(".fetch.{}", self.job_type));
        let named = request.types.as_ref().is_some_and(|types| types.iter().any(|name| name == self.job_type.as_str()));
        if !named && !scoped {
            return Err(format!("/types does not name '{}'", self.job_type));
        }
        let Bounds { wait, lease, .. } = work::check(&request).map_err(|refused| refused.detail)?;
        self.worker = Some(request.worker_id);
        Ok(Some(Asked::Fetch { lease, wait, reply: message.reply.clone() }))
    }

    async fn heartbeat(&mut self, request: &HeartbeatRequest, reply: Option<Subject>) {
        if self.worker.as_ref().is_some_and(|name| *name != request.worker_id) {
            self.faults.push("work.heartbeat: workerId is not that of the fetch".into());
        }
        let mut runs = Vec::new();
        for beat in &request.runs {
            self.beats.push((Instant::now(), beat.job_id.0, beat.run));
            let state = self.states.get(&(beat.job_id.0, beat.run)).copied().unwrap_or("held");
            runs.push(json!({"jobId": beat.job_id.0, "run": beat.run, "state": state}));
        }
        self.answer(reply, &json!({"runs": runs})).await;
    }

    fn job(&self, payload: &RawValue, id: JobId, run: i64, lease: Duration) -> Value {
        const LEFT: Duration = Duration::from_secs(300);
        let deadline = (Utc::now() + LEFT).to_rfc3339_opts(SecondsFormat::Micros, true);
        let mut job = super::job(&self.job_type, id, payload, None);
        job["workerId"] = self.worker.clone().into();
        job["run"] = run.into();
        job["deadline"] = deadline.into();
        job["timeoutMs"] = (LEFT.as_millis() as u64).into();
        job["leaseMs"] = (lease.as_millis() as u64).into();
        job["traceparent"] = Trace::of_job(id).of_run(id, run).to_string().into();
        job
    }

    /// An empty answer, later.
    fn nothing(&self, wait: Duration, reply: Option<Subject>) {
        let (nats, wait) = (self.nats.clone(), wait.min(EMPTY));
        supervise::spawn("empty answer", async move {
            tokio::time::sleep(wait).await;
            if let Some(to) = reply {
                let _ = nats.publish(to, json!({"jobs": []}).to_string().into()).await;
            }
        });
    }

    async fn answer(&self, to: Option<Subject>, body: &Value) {
        if let Some(to) = to {
            let _ = self.nats.publish(to, body.to_string().into()).await;
        }
    }
}

/// What `queue.finish` says, as the request of pull workers that says the same.
fn finish(message: &Message) -> Result<Asked, String> {
    let ((id, run), end) = ends::read(message)?;
    let mut body: Value = serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
    let verb = match end.ended {
        Ended::Failed(failure) => {
            body["message"] = failure.message.into();
            body["retry"] = (failure.kind != FailureKind::Permanent).into();
            "fail"
        }
        Ended::Released(_) => "release",
        Ended::Done(_) | Ended::Outside => "complete",
    };
    let outcome = Outcome { verb: verb.to_owned(), body, size: end.size, reply: message.reply.clone() };
    Ok(Asked::Outcome { id, run, outcome })
}

fn outcome(verb: &str, message: &Message) -> Result<Asked, String> {
    let (id, run, size) = match verb {
        "complete" => {
            let request: CompleteRequest = input::decode(&message.payload).map_err(|refused| refused.detail)?;
            (request.job_id.0, request.run, request.result.map_or(0, |result| result.get().len()))
        }
        "fail" => {
            let request: FailRequest = input::decode(&message.payload).map_err(|refused| refused.detail)?;
            (request.job_id.0, request.run, 0)
        }
        _ => {
            let request: ReleaseRequest = input::decode(&message.payload).map_err(|refused| refused.detail)?;
            (request.job_id.0, request.run, 0)
        }
    };
    let body = serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
    Ok(Asked::Outcome { id, run, outcome: Outcome { verb: verb.to_owned(), body, size, reply: message.reply.clone() } })
}
