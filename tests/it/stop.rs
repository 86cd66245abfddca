//! The end of a process that was told to stop: who waits is told at once, nothing new is begun, everything else is answered
//! while running jobs end, and it is over in time whatever is away.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use queue_service::config::AllowPrivate;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    child::Program,
    harness::{Answer, PATIENCE, Place, until},
    own::{OwnNats, OwnPostgres, Places, open_folder},
    receiver::Receiver,
};

/// Who is asked by a client: a process of its own, by the two ways into it.
#[derive(Clone)]
pub struct Caller {
    nats: async_nats::Client,
    prefix: String,
    http: String,
}

impl Caller {
    pub async fn of(place: &Place, program: &Program) -> Self {
        let line = program.logged("HTTP answers").await;
        let http = line.rsplit("address=").next().unwrap().trim().to_owned();
        // Back as soon as the server is.
        let options = async_nats::ConnectOptions::new().reconnect_delay_callback(|_| Duration::from_millis(100));
        let nats = options.connect(&place.config.nats.url).await.unwrap();
        Self { nats, prefix: place.config.nats.prefix.clone(), http: format!("http://{http}") }
    }

    fn subject(&self, rest: &str) -> String {
        format!("{}.{rest}", self.prefix)
    }

    /// `None`: there was no answer.
    pub async fn try_ask(&self, verb: &str, body: Value) -> Option<Answer> {
        let request = async_nats::Request::new().payload(body.to_string().into()).timeout(Some(PATIENCE));
        let message = self.nats.send_request(self.subject(verb), request).await.ok()?;
        Some(Answer { body: serde_json::from_slice(&message.payload).unwrap(), headers: message.headers })
    }

    async fn ask(&self, verb: &str, body: Value) -> Answer {
        self.try_ask(verb, body).await.unwrap_or_else(|| panic!("no answer to {verb}"))
    }

    pub async fn call(&self, verb: &str, body: Value) -> Value {
        let answer = self.ask(verb, body).await;
        assert_eq!(answer.code(), None, "{verb}: {}", answer.body);
        answer.body
    }

    pub async fn enqueue(&self, job: Value) -> String {
        self.call("enqueue", job).await["jobId"].as_str().unwrap().to_owned()
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = reqwest::get(format!("{}{path}", self.http)).await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = reqwest::Client::new().post(format!("{}{path}", self.http)).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Registers a type that programs fetch, and one that is asked over NATS.
    pub async fn register(&self) {
        for (name, handler) in [("fetched", "pull"), ("called", "nats")] {
            self.call("registerType", json!({"type": name, "handler": handler, "timeout": "10m"})).await;
        }
    }

    pub async fn handler(&self) -> Handler {
        let requests = self.nats.queue_subscribe(self.subject("handlers.called"), "workers".into()).await.unwrap();
        self.nats.flush().await.unwrap();
        Handler { nats: self.nats.clone(), requests }
    }

    pub async fn called(&self) -> String {
        self.enqueue(json!({"type": "called", "payload": {}, "maxAttempts": 1})).await
    }

    /// Enqueues a job and fetches it.
    pub async fn fetched(&self, lease_ms: u64) -> Value {
        let id = self.enqueue(json!({"type": "fetched", "payload": {}, "maxAttempts": 1})).await;
        let job = self.call("work.fetch", fetch(lease_ms)).await["jobs"][0].clone();
        assert_eq!(job["id"], json!(id));
        job
    }
}

pub fn fetch(lease_ms: u64) -> Value {
    json!({"types": ["fetched"], "waitMs": 30_000, "workerId": "w", "leaseMs": lease_ms})
}

pub fn run_of(job: &Value) -> Value {
    json!({"jobId": job["id"], "run": job["run"]})
}

/// Who does the work of the type `called`.
pub struct Handler {
    nats: async_nats::Client,
    requests: Subscriber,
}

impl Handler {
    pub async fn next(&mut self) -> Message {
        tokio::time::timeout(PATIENCE, self.requests.next()).await.expect("no request in time").unwrap()
    }

    pub async fn reply(&self, request: Message, headers: &[(&str, &str)], body: &'static str) {
        let mut map = async_nats::HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        self.nats.publish_with_headers(request.reply.unwrap(), map, body.into()).await.unwrap();
        self.nats.flush().await.unwrap();
    }
}

/// Begins a request, and says how long its answer took from `Instant` on.
fn begin<T: Send + 'static>(request: impl Future<Output = T> + Send + 'static) -> JoinHandle<(T, Instant)> {
    tokio::spawn(async move { (request.await, Instant::now()) })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_at_once_nothing_new_is_begun_and_everything_else_is_answered_until_the_drain_ends() {
    let mut place = Place::new().await;
    place.config.worker.drain = Duration::from_secs(60);
    place.config.webhook.allow_private = AllowPrivate::All(true);
    let (mut program, receiver) = (Program::serve(&place.config).await, Receiver::start().await);
    let caller = Caller::of(&place, &program).await;
    caller.register().await;
    let mut handler = caller.handler().await;
    let fetched = caller.fetched(60_000).await;
    let accepted = caller.called().await;
    let request = handler.next().await;
    handler.reply(request, &[("Job-Accepted", "true")], "").await;
    let running = caller.called().await;
    let request = handler.next().await;
    // Each is there before the signal.
    let waits = json!({"jobId": running, "timeoutMs": 60_000});
    let (one, two, three, four) = (caller.clone(), caller.clone(), caller.clone(), caller.clone());
    let (id, wait) = (running.clone(), waits.clone());
    let over_nats = [
        begin(async move { one.ask("waitJob", wait).await }),
        begin(async move { two.ask("work.fetch", fetch(1000)).await }),
    ];
    let over_http = [
        begin(async move { three.get(&format!("/jobs/{id}?wait=60s")).await }),
        begin(async move { four.post("/work/fetch", fetch(1000)).await }),
    ];
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(caller.get("/health/ready").await.0, 200);

    let told = Instant::now();
    program.signal(Signal::TERM);
    for answer in over_nats {
        let (answer, at) = answer.await.unwrap();
        assert_eq!(answer.code(), Some("unavailable"), "{}", answer.body);
        assert!(answer.body["retryAfterSeconds"].is_number(), "{}", answer.body);
        assert!(at - told < Duration::from_secs(1), "told after {:?}", at - told);
    }
    for answer in over_http {
        let ((status, body), at) = answer.await.unwrap();
        assert_eq!((status, &body["code"]), (503, &json!("unavailable")), "{body}");
        assert!(at - told < Duration::from_secs(1), "told after {:?}", at - told);
    }
    let (status, ready) = caller.get("/health/ready").await;
    assert!(status == 503 && ready["detail"].as_str().unwrap().contains("stopping"), "{ready}");
    assert_eq!(caller.post("/work/fetch", fetch(1000)).await.0, 503);
    assert_eq!(caller.get(&format!("/jobs/{running}?wait=60s")).await.0, 503);

    // Taken and kept for others: neither one that would start here at once, nor one that comes by a message.
    let mut waiting = vec![caller.called().await, caller.enqueue(receiver.slow(0)).await];
    waiting.push(caller.post("/jobs", receiver.slow(0)).await.1["jobId"].as_str().unwrap().to_owned());
    let beat = caller.call("work.heartbeat", json!({"workerId": "w", "runs": [run_of(&fetched)]})).await;
    assert_eq!(beat["runs"][0]["state"], "held", "{beat}");
    let finish = json!({"jobId": accepted, "run": 1, "result": 1});
    assert_eq!(caller.call("finish", finish.clone()).await["status"], "completed");
    assert_eq!(caller.call("work.complete", run_of(&fetched)).await["status"], "completed");
    assert_eq!(caller.call("getJob", json!({"jobId": running})).await["status"], "processing");
    // Longer than the sweep and the relay take.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for id in &waiting {
        let job = caller.call("getJob", json!({"jobId": id})).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("pending"), &json!(0)), "{job}");
    }
    assert_eq!(receiver.all_deliveries(), 0);

    handler.reply(request, &[], "2").await;
    let status = program.ended().await;
    let log = program.log();
    assert!(status.success() && log.contains("left nothing behind"), "{status}: {log}");
    let store = place.store().await;
    let job = store.job(running.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.attempt), ("completed", 1));
    store.close().await;
}

/// What does not answer while the process stops.
#[derive(Clone, Copy, PartialEq)]
enum Away {
    No,
    Frozen,
    Gone,
}

const DRAIN: Duration = Duration::from_secs(2);
/// What a stop may take. See docs/operations.md.
const LONGEST: Duration = Duration::from_secs(12);

/// Stops a process that has three jobs in hand, one of which ends while `postgres` and `nats` are as they are said to be.
/// Gives its last words.
async fn stop_without(postgres: Away, nats: Away) -> String {
    let folder = open_folder();
    let mut own = OwnPostgres::new(&folder.path().join("postgres"), &[], Places::Together).await;
    let mut broker = OwnNats::new(&folder.path().join("nats"), "own", "");
    tokio::join!(own.start(), broker.start());
    own.run("CREATE DATABASE queue").await;
    let mut place = Place::new().await;
    (place.config.database.url, place.config.nats.url) = (own.url("queue"), broker.url());
    place.config.webhook.allow_private = AllowPrivate::All(true);
    (place.config.worker.drain, place.config.worker.lease) = (DRAIN, Duration::from_secs(30));
    let (mut program, mut receiver) = (Program::serve(&place.config).await, Receiver::start().await);
    let caller = Caller::of(&place, &program).await;
    caller.register().await;
    let mut handler = caller.handler().await;
    caller.enqueue(receiver.held()).await;
    let ends = receiver.call().await;
    caller.enqueue(receiver.held()).await;
    let _goes_on = receiver.call().await;
    caller.called().await;
    let _silent = handler.next().await;

    let _frozen = (postgres == Away::Frozen).then(|| own.freeze());
    let _frozen_too = (nats == Away::Frozen).then(|| broker.freeze());
    if nats == Away::Gone {
        broker.kill().await;
    }
    let began = Instant::now();
    program.signal(Signal::TERM);
    ends.answer("done");
    let status = program.ended().await;
    let took = began.elapsed();
    let log = program.log();
    assert!(status.success(), "{status}: {log}");
    assert!(took < LONGEST + Duration::from_millis(300), "it took {took:?}: {log}");
    let last = log.lines().find(|line| line.contains("stopped after")).unwrap_or_else(|| panic!("{log}")).to_owned();
    println!("a stop with a drain of {DRAIN:?} took {took:?}: {last}");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_with_a_silent_database_ends_in_time_and_says_what_it_left() {
    let last = stop_without(Away::Frozen, Away::No).await;
    assert!(last.contains("1 runs that did not end, 2 outcomes that were not written"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_a_broker_ends_in_time_and_leaves_nothing() {
    let last = stop_without(Away::No, Away::Gone).await;
    assert!(last.contains("left nothing behind"), "{last}");
    let last = stop_without(Away::No, Away::Frozen).await;
    assert!(last.contains("left nothing behind"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_with_nobody_there_ends_in_time_and_says_what_it_left() {
    let last = stop_without(Away::Frozen, Away::Frozen).await;
    assert!(last.contains("1 runs that did not end, 2 outcomes that were not written"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_left_outside_is_answered_by_whoever_stops() {
    let mut place = Place::new().await;
    (place.config.worker.drain, place.config.worker.cancel_grace) =
        (Duration::from_millis(300), Duration::from_secs(4));
    let mut program = Program::serve_with(&place.config, &[("QUEUE_FAULT_HANDLER", "1".into())]).await;
    let caller = Caller::of(&place, &program).await;
    caller.register().await;
    let mut handler = caller.handler().await;
    let id = caller.called().await;
    let request = handler.next().await;
    // Keeps the process for as long as it may take to stop.
    let deaf = caller.enqueue(json!({"type": "misbehave", "payload": {"do": "ignore-everything"}})).await;
    until(async || (caller.call("getJob", json!({"jobId": deaf})).await["status"] == "processing").then_some(())).await;
    program.signal(Signal::TERM);
    program.logged("handing back the jobs that still run").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    handler.reply(request, &[], "1").await;
    program.logged("took the answer for job").await;
    assert!(program.ended().await.success(), "{}", program.log());
    let store = place.store().await;
    let job = store.job(id.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.attempt), ("completed", 1));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_hurried_does_not_wait_for_the_drain() {
    let mut place = Place::new().await;
    place.config.worker.drain = Duration::from_secs(600);
    place.config.webhook.allow_private = AllowPrivate::All(true);
    let (mut program, mut receiver) = (Program::serve(&place.config).await, Receiver::start().await);
    let caller = Caller::of(&place, &program).await;
    let id = caller.enqueue(receiver.held()).await;
    let _call = receiver.call().await;
    program.signal(Signal::TERM);
    until(async || (caller.get("/health/ready").await.0 == 503).then_some(())).await;
    let began = Instant::now();
    program.signal(Signal::TERM);
    assert!(program.ended().await.success(), "{}", program.log());
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    let store = place.store().await;
    let job = store.job(id.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.attempt), ("pending", 0));
    store.close().await;
}
