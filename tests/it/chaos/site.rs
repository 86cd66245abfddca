//! Where the work of the jobs is done: an HTTP handler in the hands of the test, which writes down every run.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use chrono::Utc;
use serde_json::{Value, json};

use super::checker::Call;

#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    calls: Vec<Call>,
    /// How often each job has failed by its own doing.
    failures: BTreeMap<String, u64>,
}

/// The handler's server; ends with this.
pub struct Site {
    pub url: String,
    pub journal: Journal,
    server: tokio::task::JoinHandle<()>,
}

impl Site {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/work", listener.local_addr().unwrap());
        let journal = Journal::default();
        let router = Router::new().route("/work", post(work)).with_state(journal.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, journal, server }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Journal {
    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().unwrap().calls.clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().calls.len()
    }

    /// Runs that go on.
    pub fn running(&self) -> usize {
        self.0.lock().unwrap().calls.iter().filter(|call| call.ended > Utc::now()).count()
    }
}

/// Writes the end of a run, also when the caller has gone.
struct Running {
    journal: Journal,
    place: usize,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.journal.0.lock().unwrap().calls[self.place].ended = Utc::now();
    }
}

/// `{"ms": how long, "failures": how often it fails first, "forGood": whether it then fails for good}`.
async fn work(State(journal): State<Journal>, headers: HeaderMap, Json(told): Json<Value>) -> Response {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    let (job, run) = (text("job-id"), text("job-run").parse::<i64>().unwrap());
    let payload = &told["payload"];
    let running = {
        let mut entries = journal.0.lock().unwrap();
        let never = chrono::DateTime::<Utc>::MAX_UTC;
        let attempt = text("job-attempt").parse().unwrap();
        entries.calls.push(Call { job: job.clone(), run, attempt, began: Utc::now(), ended: never });
        Running { journal: journal.clone(), place: entries.calls.len() - 1 }
    };
    tokio::time::sleep(Duration::from_millis(payload["ms"].as_u64().unwrap_or(0))).await;
    let fails = {
        let mut entries = journal.0.lock().unwrap();
        let failures = entries.failures.entry(job).or_default();
        let fails = *failures < payload["failures"].as_u64().unwrap_or(0);
        *failures += u64::from(fails);
        fails
    };
    drop(running);
    match fails {
        true if payload["forGood"] == true => {
            (StatusCode::UNPROCESSABLE_ENTITY, [("Job-Retry", "false")], "never").into_response()
        }
        true => (StatusCode::SERVICE_UNAVAILABLE, "not yet").into_response(),
        false => Json(json!({"run": run})).into_response(),
    }
}
