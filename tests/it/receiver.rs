//! The other end of `webhook-delivery`, in the hands of a test: a handler that can be controlled from outside, whatever
//! process runs the job.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    http::HeaderMap,
    routing::post,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::harness::PATIENCE;

/// An HTTP server that writes down which job called how often.
pub struct Receiver {
    address: SocketAddr,
    journal: Arc<Mutex<HashMap<String, usize>>>,
    held: mpsc::UnboundedReceiver<Call>,
    server: tokio::task::JoinHandle<()>,
}

/// A delivery that waits for its answer.
pub struct Call {
    pub job: String,
    answer: oneshot::Sender<String>,
}

#[derive(Clone)]
struct Shared {
    journal: Arc<Mutex<HashMap<String, usize>>>,
    hold: mpsc::UnboundedSender<Call>,
}

impl Receiver {
    pub async fn start() -> Self {
        let (hold, held) = mpsc::unbounded_channel();
        let shared = Shared { journal: Arc::default(), hold };
        let journal = shared.journal.clone();
        let router = Router::new().route("/hold", post(hold_call)).route("/after/{ms}", post(answer_after));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router.with_state(shared)).await.unwrap() });
        Self { address, journal, held, server }
    }

    /// A job whose run goes on until the test answers it.
    pub fn held(&self) -> Value {
        self.job("hold")
    }

    /// A job that takes so long.
    pub fn slow(&self, ms: u64) -> Value {
        self.job(&format!("after/{ms}"))
    }

    fn job(&self, path: &str) -> Value {
        let url = format!("http://{}/{path}", self.address);
        json!({"type": "webhook-delivery", "payload": {"url": url, "body": {}}})
    }

    /// The next delivery that waits for its answer.
    pub async fn call(&mut self) -> Call {
        tokio::time::timeout(PATIENCE, self.held.recv()).await.expect("no delivery came").unwrap()
    }

    /// How often a job was delivered.
    pub fn deliveries(&self, job: &str) -> usize {
        self.journal.lock().unwrap().get(job).copied().unwrap_or_default()
    }

    /// How often any job was delivered.
    pub fn all_deliveries(&self) -> usize {
        self.journal.lock().unwrap().values().sum()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Call {
    /// Ends the run with this text as the receiver's answer.
    pub fn answer(self, text: &str) {
        // The caller may be gone, which some tests are about.
        let _ = self.answer.send(text.to_owned());
    }
}

impl Shared {
    fn note(&self, headers: &HeaderMap) -> String {
        let job = headers["webhook-id"].to_str().unwrap().to_owned();
        *self.journal.lock().unwrap().entry(job.clone()).or_default() += 1;
        job
    }
}

async fn hold_call(State(shared): State<Shared>, headers: HeaderMap) -> String {
    let job = shared.note(&headers);
    let (answer, answered) = oneshot::channel();
    let _ = shared.hold.send(Call { job, answer });
    // Never: the test is over.
    answered.await.unwrap_or_default()
}

async fn answer_after(State(shared): State<Shared>, Path(ms): Path<u64>, headers: HeaderMap) -> &'static str {
    shared.note(&headers);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    "late"
}
