//! Jobs against real sockets: what they share, and what they don't.

use std::{sync::Arc, time::Duration};

use axum::{Json, http::StatusCode, response::IntoResponse};
use serde_json::{json, value::to_raw_value};
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::{
    handlers::{
        AnyHandler,
        clients::ai::testing::{Peer, Seen, vector, vectors},
    },
    job::{FailureKind, JobType},
};

fn handler(peer: &Peer) -> Arc<GenerateEmbedding> {
    let config = peer.config();
    Arc::new(GenerateEmbedding::new(Arc::new(Ai::new(&config).unwrap()), &config, &Default::default()))
}

fn context() -> RunContext {
    RunContext::detached(JobType::new(GenerateEmbedding::TYPE).unwrap(), Duration::from_secs(30))
}

fn payload(text: &str, model: Option<&str>) -> Payload {
    Payload { text: text.into(), model: model.map(str::to_owned) }
}

/// A provider that tells of each request and answers when the door is opened for it.
struct Gated {
    peer: Peer,
    arrivals: mpsc::UnboundedReceiver<Seen>,
    door: Arc<Semaphore>,
}

impl Gated {
    async fn start() -> Self {
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let door = Arc::new(Semaphore::new(0));
        let inner = door.clone();
        let peer = Peer::start(move |seen: Seen| {
            let (arrived, door) = (arrived.clone(), inner.clone());
            async move {
                arrived.send(seen.clone()).unwrap();
                door.acquire().await.unwrap().forget();
                vectors(&seen)
            }
        })
        .await;
        Self { peer, arrivals, door }
    }
}

#[tokio::test]
async fn jobs_that_wait_for_the_same_model_share_requests_and_each_gets_its_own_vector() {
    let gated = Gated::start().await;
    let handler = handler(&gated.peer);
    let jobs: Vec<_> = (1..=60)
        .map(|n| {
            let handler = handler.clone();
            tokio::spawn(async move { handler.run(&context(), payload(&"x".repeat(n), None)).await })
        })
        .collect();
    gated.door.add_permits(60);
    for (n, job) in (1..=60).zip(jobs) {
        let output = job.await.unwrap().unwrap();
        assert_eq!(output.embedding, vector(&"x".repeat(n)));
        assert_eq!((output.model.as_str(), output.dimensions), ("@cf/baai/bge-base-en-v1.5", 2));
    }
    let requests = gated.peer.seen();
    assert!(requests.len() <= 6, "{} requests for 60 jobs", requests.len());
    assert_eq!(requests.iter().map(|seen| seen.texts().len()).sum::<usize>(), 60);
}

#[tokio::test]
async fn different_models_never_share_a_request() {
    let peer = Peer::embedding().await;
    let handler = handler(&peer);
    let jobs: Vec<_> = (0..20)
        .map(|n| {
            let handler = handler.clone();
            tokio::spawn(async move {
                let model = if n % 2 == 0 { "even" } else { "odd" };
                handler.run(&context(), payload(&format!("{model} {n}"), Some(model))).await.unwrap()
            })
        })
        .collect();
    for job in jobs {
        job.await.unwrap();
    }
    for seen in peer.seen() {
        let model = seen.body["model"].as_str().unwrap().to_owned();
        assert!(seen.texts().iter().all(|text| text.starts_with(&model)), "{seen:?}");
    }
}

/// Runs one job per text so that all of them but the first two meet in one request.
async fn run_together(handler: &Arc<GenerateEmbedding>, texts: &[&str]) -> Vec<Result<Output, Failure>> {
    let jobs = texts.iter().map(|text| {
        let (handler, text) = (handler.clone(), (*text).to_owned());
        async move { handler.run(&context(), payload(&text, None)).await }
    });
    futures_util::future::join_all(jobs).await
}

#[tokio::test]
async fn one_text_that_the_provider_refuses_does_not_fail_its_neighbours() {
    let peer = Peer::start(|seen: Seen| async move {
        match seen.texts().iter().any(|text| text.contains("bad")) {
            true => {
                let body = json!({"error": {"message": "maximum context length is 512 tokens"}});
                (StatusCode::BAD_REQUEST, Json(body)).into_response()
            }
            false => vectors(&seen),
        }
    })
    .await;
    let texts: Vec<_> = (0..20).map(|n| if n == 13 { "bad".to_owned() } else { format!("text {n}") }).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let outcomes = run_together(&handler(&peer), &texts).await;
    for (text, outcome) in texts.iter().zip(outcomes) {
        match outcome {
            Ok(output) => assert_eq!(output.embedding, vector(text)),
            Err(failure) => {
                assert_eq!((*text, failure.kind), ("bad", FailureKind::Permanent));
                let end = "maximum context length is 512 tokens; the text has 3 characters";
                assert!(failure.message.ends_with(end), "{}", failure.message);
            }
        }
    }
    assert!(peer.seen().len() < 20, "{} requests", peer.seen().len());
}

#[tokio::test]
async fn a_provider_that_answers_too_few_vectors_is_asked_for_each_text_alone() {
    let peer = Peer::start(|seen: Seen| async move {
        let first = vector(&seen.texts()[0]);
        Json(json!({"data": [{"index": 0, "embedding": first}]})).into_response()
    })
    .await;
    for (text, outcome) in
        ["a", "bb", "ccc", "dddd"].iter().zip(run_together(&handler(&peer), &["a", "bb", "ccc", "dddd"]).await)
    {
        assert_eq!(outcome.unwrap().embedding, vector(text));
    }
}

#[tokio::test]
async fn a_busy_provider_fails_all_jobs_of_the_request_with_its_wish() {
    let answer = (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "11")]);
    let peer = Peer::always(answer).await;
    for outcome in run_together(&handler(&peer), &["a", "b", "c", "d", "e", "f"]).await {
        let failure = outcome.unwrap_err();
        assert_eq!((failure.kind, failure.retry_after), (FailureKind::Error, Some(Duration::from_secs(11))));
    }
    assert!(peer.seen().len() <= 3, "a busy provider is not asked again in parts");
}

#[tokio::test]
async fn a_job_that_goes_away_spoils_nothing_for_those_that_share_its_request() {
    let mut gated = Gated::start().await;
    let handler = handler(&gated.peer);
    // Two lanes: these two keep them busy, so that the others meet.
    let run = |text: &'static str| {
        let handler = handler.clone();
        tokio::spawn(async move { handler.run(&context(), payload(text, None)).await })
    };
    let first = [run("1"), run("22")];
    let mut met = gated.arrivals.recv().await.unwrap().texts().len();
    while met < 2 {
        met += gated.arrivals.recv().await.unwrap().texts().len();
    }
    let ctx = context();
    let cancelled = {
        let (handler, ctx) = (handler.clone(), ctx.clone());
        tokio::spawn(async move { handler.run(&ctx, payload("cancelled", None)).await })
    };
    let (aborted, kept) = (run("aborted"), run("kept"));
    gated.door.add_permits(1);
    let shared = loop {
        let seen = gated.arrivals.recv().await.unwrap();
        if seen.texts().iter().any(|text| text == "kept") {
            break seen;
        }
        gated.door.add_permits(1);
    };
    assert_eq!(shared.texts(), ["cancelled", "aborted", "kept"]);
    ctx.cancel.cancel();
    aborted.abort();
    assert!(cancelled.await.unwrap().unwrap_err().message.contains("stopped"));
    assert!(aborted.await.unwrap_err().is_cancelled());
    gated.door.add_permits(10);
    assert_eq!(kept.await.unwrap().unwrap().embedding, vector("kept"));
    for job in first {
        job.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn lines_of_models_that_nobody_asks_for_any_more_are_forgotten() {
    let peer = Peer::embedding().await;
    let handler = handler(&peer);
    for n in 0..50 {
        handler.run(&context(), payload("x", Some(&format!("model-{n}")))).await.unwrap();
    }
    assert!(handler.embedder.lines() <= 1);
}

#[test]
fn payloads_are_checked_at_enqueue() {
    let config = config::Ai::default();
    let any =
        AnyHandler::new(GenerateEmbedding::new(Arc::new(Ai::new(&config).unwrap()), &config, &Default::default()))
            .unwrap();
    let check = |value| any.check(&to_raw_value(&value).unwrap());
    assert!(check(json!({"text": " "})).is_empty());
    assert!(check(json!({"text": "a", "model": "@cf/baai/bge-base-en-v1.5"})).is_empty());
    for (value, pointer) in [
        (json!({"text": ""}), "/text"),
        (json!({"text": "a", "model": "a/../b"}), "/model"),
        (json!({"text": "a", "model": "a\r\nb"}), "/model"),
        (json!({"text": 1}), "/text"),
    ] {
        let faults = check(value.clone());
        assert_eq!(faults.0.first().map(|fault| fault.0.as_str()), Some(pointer), "{value}");
    }
    assert!(!check(json!({"text": "a", "extra": 1})).is_empty());
    assert!(!check(json!({})).is_empty());
}
