//! Thousands of handlers: hundreds of types that are found on the bus, two thousand handlers of one type, and nobody else
//! is held up by any of them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{
    StreamExt,
    future::join_all,
    stream::{self, select_all},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::harness::{Running, start, until};

/// Programs, each a micro-service with an endpoint for each of so many types.
const PROGRAMS: usize = 20;
const ENDPOINTS: usize = 10;
/// Handlers of the type `shared`.
const SIBLINGS: usize = 2000;
/// Requests of this test that are under way at a time.
const AT_ONCE: usize = 50;

fn name(program: usize, endpoint: usize) -> String {
    format!("many-{program}-{endpoint}")
}

/// A program that introduces itself, and answers each job with the name of its type.
async fn program(service: &Running, n: usize) {
    let nats = async_nats::connect(&service.config.nats.url).await.unwrap();
    let subject = |endpoint| service.subject(&format!("handlers.{}", name(n, endpoint)));
    let endpoint = |e| json!({"name": name(n, e), "subject": subject(e), "metadata": {"queue.type": name(n, e)}});
    let info = json!({
        "type": "io.nats.micro.v1.info_response", "name": format!("many-{n}"), "id": n.to_string(), "version": "1.0.0",
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
    });
    let mut questions = nats.subscribe("$SRV.INFO").await.unwrap();
    let jobs = join_all((0..ENDPOINTS).map(|e| nats.queue_subscribe(subject(e), "w".into()))).await;
    let mut jobs = select_all(jobs.into_iter().map(Result::unwrap));
    nats.flush().await.unwrap();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(question) = questions.next() => {
                    nats.publish(question.reply.unwrap(), info.to_string().into()).await.unwrap();
                }
                Some(job) = jobs.next() => {
                    let name = job.subject.rsplit('.').next().unwrap();
                    nats.publish(job.reply.unwrap(), json!(name).to_string().into()).await.unwrap();
                }
                else => return,
            }
        }
    });
}

/// Handlers that hold their jobs until the gate is opened; gives how many jobs they have begun.
async fn siblings(service: &Running, gate: &watch::Receiver<bool>) -> Arc<AtomicUsize> {
    let nats = async_nats::connect(&service.config.nats.url).await.unwrap();
    let begun = Arc::new(AtomicUsize::new(0));
    for _ in 0..SIBLINGS {
        let mut jobs = nats.queue_subscribe(service.subject("handlers.shared"), "w".into()).await.unwrap();
        let (nats, gate, begun) = (nats.clone(), gate.clone(), begun.clone());
        tokio::spawn(async move {
            while let Some(job) = jobs.next().await {
                begun.fetch_add(1, Ordering::Relaxed);
                let (nats, mut gate) = (nats.clone(), gate.clone());
                tokio::spawn(async move {
                    let _ = gate.wait_for(|open| *open).await;
                    nats.publish(job.reply.unwrap(), "1".into()).await.unwrap();
                });
            }
        });
    }
    nats.flush().await.unwrap();
    begun
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_types_that_were_found_all_get_their_jobs_done() {
    let (_place, service) = start().await;
    join_all((0..PROGRAMS).map(|n| program(&service, n))).await;
    let names: Vec<String> = (0..PROGRAMS).flat_map(|n| (0..ENDPOINTS).map(move |e| name(n, e))).collect();
    until(|| async {
        let found = service.call("listTypes", json!({})).await;
        let found = found["types"].as_array().unwrap().iter().filter(|known| known["origin"] == "discovered").count();
        (found == names.len()).then_some(())
    })
    .await;
    let ids = service.enqueue_many(names.iter().map(|name| json!({"type": name, "payload": {}})).collect()).await;
    let done: Vec<Value> = stream::iter(&ids).map(|id| service.finished(id)).buffered(AT_ONCE).collect().await;
    for (name, job) in names.iter().zip(&done) {
        assert_eq!((&job["status"], &job["result"], &job["attempts"]), (&json!("completed"), &json!(name), &json!(1)));
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_handlers_that_are_all_stuck_hold_up_no_other_type() {
    let (_place, service) = start().await;
    service.call("registerType", json!({"type": "shared", "handler": "nats", "timeout": "10m"})).await;
    let (open, gate) = watch::channel(false);
    let begun = siblings(&service, &gate).await;
    let ids = service.enqueue_many(vec![json!({"type": "shared", "payload": {}}); SIBLINGS]).await;
    // As many as one process runs of a type at a time.
    let limit = service.config.worker.concurrency;
    until(|| async { (begun.load(Ordering::Relaxed) >= limit).then_some(()) }).await;
    for _ in 0..20 {
        let probe = service.probe(json!({})).await;
        assert_eq!(service.finished(&probe).await["status"], "completed");
    }
    assert_eq!(begun.load(Ordering::Relaxed), limit);
    open.send_replace(true);
    let done: Vec<Value> = stream::iter(&ids).map(|id| service.finished(id)).buffered(AT_ONCE).collect().await;
    assert!(done.iter().all(|job| job["status"] == "completed" && job["attempts"] == 1));
    assert_eq!(begun.load(Ordering::Relaxed), SIBLINGS, "a job was done twice");
    service.stop().await;
}
