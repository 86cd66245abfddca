//! Callers that go on asking through an outage, as careful clients do: over HTTP, with a key for each job, until it is
//! accepted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{PATIENCE, until};

/// Jobs that are being enqueued, one after the other by each of several callers.
pub struct Load {
    accepted: Arc<AtomicUsize>,
    stop: CancellationToken,
    callers: Vec<tokio::task::JoinHandle<Told>>,
}

/// What the callers were told.
#[derive(Default)]
pub struct Told {
    pub accepted: Vec<String>,
    /// Codes of refusals.
    pub refused: Vec<String>,
    /// Longest wait for any answer.
    pub longest: Duration,
}

impl Load {
    /// `payload` gives the payload of a caller's n-th job.
    pub fn start(
        base: String,
        job_type: &'static str,
        payload: impl Fn(usize) -> Value + Clone + Send + 'static,
    ) -> Self {
        let (accepted, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let caller = |name: usize| {
            let caller = Caller { base: base.clone(), name, accepted: accepted.clone(), stop: stop.clone() };
            tokio::spawn(caller.work(job_type, payload.clone()))
        };
        let callers = (0..4).map(caller).collect();
        Self { accepted, stop, callers }
    }

    /// Returns when `n` more jobs have been accepted.
    pub async fn accepts(&self, n: usize) {
        let goal = self.accepted.load(Ordering::SeqCst) + n;
        until(|| async { (self.accepted.load(Ordering::SeqCst) >= goal).then_some(()) }).await;
    }

    pub async fn stop(self) -> Told {
        self.stop.cancel();
        let mut all = Told::default();
        for caller in self.callers {
            let told = caller.await.unwrap();
            all.accepted.extend(told.accepted);
            all.refused.extend(told.refused);
            all.longest = all.longest.max(told.longest);
        }
        all
    }
}

struct Caller {
    base: String,
    name: usize,
    accepted: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Caller {
    async fn work(self, job_type: &str, payload: impl Fn(usize) -> Value) -> Told {
        let client = reqwest::Client::new();
        let mut told = Told::default();
        for n in 0.. {
            let body = json!({"type": job_type, "payload": payload(n), "idempotencyKey": format!("{}-{n}", self.name)});
            // The last one as well is asked for until it is accepted.
            loop {
                let began = Instant::now();
                let (status, answer) = post(&client, &self.base, &body).await;
                told.longest = told.longest.max(began.elapsed());
                if status == 201 || status == 200 {
                    told.accepted.push(answer["jobId"].as_str().unwrap().to_owned());
                    self.accepted.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                told.refused.push(answer["code"].as_str().unwrap().to_owned());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if self.stop.is_cancelled() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        told
    }
}

/// Status and body of one enqueue.
pub async fn post(client: &reqwest::Client, base: &str, body: &Value) -> (u16, Value) {
    let answer = client.post(format!("{base}/jobs")).json(body).timeout(PATIENCE).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}
