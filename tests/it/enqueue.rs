//! What is accepted is kept once and runs in the order of its priority; what is refused leaves nothing behind.

use std::time::Duration;

use futures_util::future::join_all;
use queue_service::{config::TypeOverrides, job::Status, ops::EnqueueOptions};
use serde_json::{Value, json};

use crate::harness::{Place, Running, start, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_from_a_request_to_a_recorded_outcome() {
    let (place, service) = start().await;
    let id = service.probe(json!({"note": "hello"})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)));
    assert_eq!(job["result"]["note"], "hello");
    assert_eq!(place.journal.count(&id, "end"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_makes_one_job_also_when_replicas_race() {
    let place = Place::new().await;
    let (left, right) = (place.start().await, place.start().await);
    let body = keyed("order-7", "once").to_string();
    let ask = |service: &Running| {
        let (ops, body) = (service.service.ops().clone(), body.clone());
        async move { ops.enqueue(None, body.as_bytes(), EnqueueOptions::default()).await.unwrap() }
    };
    let calls = (0..40).map(|n| ask(if n % 2 == 0 { &left } else { &right }));
    let replies = join_all(calls).await;
    assert_eq!(replies.iter().filter(|reply| !reply.duplicate).count(), 1);
    assert!(replies.iter().all(|reply| reply.job_id == replies[0].job_id));
    let id = replies[0].job_id.to_string();
    left.finished(&id).await;
    assert_eq!(rows(&place).await, 1);
    assert_eq!(place.journal.count(&id, "start"), 1);
    left.stop().await;
    right.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_told_what_has_become_of_its_job() {
    let (_place, service) = start().await;
    let first = service.call("enqueue", keyed("k", "a")).await;
    assert_eq!((&first["duplicate"], &first["status"]), (&json!(false), &json!("pending")));
    service.finished(first["jobId"].as_str().unwrap()).await;
    // The same content in another order of the fields.
    let text = r#"{"payload": {"note": "a"},  "idempotencyKey": "k", "type": "probe"}"#;
    let again = service.ask("enqueue", text).await.body;
    assert_eq!(again, json!({"jobId": first["jobId"], "status": "completed", "duplicate": true}));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_used_with_other_content_is_a_conflict() {
    let (place, service) = start().await;
    let id = service.enqueue(keyed("k", "a")).await;
    let mut urgent = keyed("k", "a");
    urgent["priority"] = json!(5);
    for other in [keyed("k", "b"), urgent] {
        let refused = service.ask("enqueue", other.to_string()).await;
        assert_eq!(refused.code(), Some("idempotency_conflict"));
        assert!(refused.body["detail"].as_str().unwrap().contains(&id), "{}", refused.body);
    }
    assert_eq!(rows(&place).await, 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_free_again_when_its_job_is_past_its_retention() {
    let (place, service) = start().await;
    let old = service.enqueue(keyed("k", "a")).await;
    service.finished(&old).await;
    let database = place.database().await;
    let past = "SELECT make_finished_partitions((now() - interval '40 days')::date)::text";
    sqlx::query(past).execute(&database).await.unwrap();
    let moved = sqlx::query("UPDATE finished_jobs SET finished_at = finished_at - interval '40 days'");
    assert_eq!(moved.execute(&database).await.unwrap().rows_affected(), 1);
    let store = place.store().await;
    let dropped = store.drop_expired(Status::Completed, Duration::from_secs(30 * 24 * 3600)).await.unwrap();
    assert_eq!(dropped.len(), 1);
    assert_eq!(service.ask("getJob", old.clone()).await.code(), Some("job_not_found"));
    // Other content is no conflict either: there is nothing left to be in conflict with.
    let new = service.call("enqueue", keyed("k", "b")).await;
    assert_eq!(new["duplicate"], false);
    assert_ne!(new["jobId"], json!(old));
    service.finished(new["jobId"].as_str().unwrap()).await;
    store.close().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_is_answered_in_its_order_and_the_bad_ones_harm_no_other() {
    let (place, service) = start().await;
    let jobs = json!([
        {"type": "probe", "payload": {"note": "0"}},
        {"type": "nobody-does-this", "payload": {}},
        {"type": "probe", "payload": {"note": 2}},
        {"type": "probe"},
        keyed("bulk", "4"),
        keyed("bulk", "4"),
        keyed("bulk", "6"),
        {"type": "probe", "payload": {"note": "7"}, "priority": 10},
        {"type": "probe", "payload": {"note": "8"}},
    ]);
    let reply = service.call("enqueueMany", json!({"jobs": jobs})).await;
    let results = reply["results"].as_array().unwrap();
    let codes: Vec<&str> = results.iter().map(|r| r["error"]["code"].as_str().unwrap_or("taken")).collect();
    assert_eq!(
        codes,
        [
            "taken",
            "unknown_type",
            "invalid_payload",
            "invalid_request",
            "taken",
            "taken",
            "idempotency_conflict",
            "invalid_request",
            "taken"
        ]
    );
    assert_eq!((&results[4]["duplicate"], &results[5]["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!(results[4]["jobId"], results[5]["jobId"]);
    for place in [0, 4, 8] {
        let job = service.finished(results[place]["jobId"].as_str().unwrap()).await;
        assert_eq!(job["result"]["note"], place.to_string());
    }
    assert_eq!(rows(&place).await, 3);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_takes_one_to_a_thousand() {
    let (place, service) = start().await;
    let job = |n: usize| json!({"type": "probe", "payload": {"note": n.to_string()}});
    for n in [0, 1001] {
        let jobs: Vec<Value> = (0..n).map(job).collect();
        let refused = service.ask("enqueueMany", json!({"jobs": jobs}).to_string()).await;
        assert_eq!(refused.code(), Some("invalid_request"));
        assert_eq!(refused.body["errors"][0]["path"], "/jobs");
    }
    assert_eq!(rows(&place).await, 0);
    let jobs: Vec<Value> = (0..1000).map(job).collect();
    let reply = service.call("enqueueMany", json!({"jobs": jobs})).await;
    let last = reply["results"][999]["jobId"].as_str().unwrap();
    assert_eq!(service.finished(last).await["result"]["note"], "999");
    let stats =
        until(|| async { Some(service.call("getStats", json!({})).await).filter(|stats| stats["completed"] == 1000) });
    assert_eq!(stats.await["total"], 1000);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn higher_priorities_start_first_when_slots_are_short() {
    let (place, service) = start_with_one_slot().await;
    let blocker = service.probe(json!({"wait": true, "note": "blocker"})).await;
    place.journal.until(&blocker, "start").await;
    let mut last = String::new();
    for (note, priority) in
        [("low", -9), ("normal", 0), ("high", 1), ("low", -1), ("normal", 0), ("high", 9), ("normal", 0), ("high", 5)]
    {
        let request = json!({"type": "probe", "payload": {"note": note, "sleepMs": 40}, "priority": priority});
        let id = service.enqueue(request).await;
        if note == "low" {
            last = id;
        }
    }
    published(&service, 9).await;
    place.journal.release();
    service.finished(&last).await;
    until(|| async { (place.journal.notes("end").len() == 9).then_some(()) }).await;
    let starts = place.journal.notes("start");
    assert_eq!(starts, ["blocker", "high", "high", "high", "normal", "normal", "normal", "low", "low"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lowest_priority_gets_its_share_while_higher_ones_never_end() {
    let (place, service) = start_with_one_slot().await;
    let blocker = service.probe(json!({"wait": true, "note": "blocker"})).await;
    place.journal.until(&blocker, "start").await;
    let low = service.enqueue(json!({"type": "probe", "payload": {"note": "low"}, "priority": -1})).await;
    let high = json!({"type": "probe", "payload": {"note": "high", "sleepMs": 5}, "priority": 1});
    service.call("enqueueMany", json!({"jobs": vec![high; 200]})).await;
    published(&service, 202).await;
    place.journal.release();
    service.finished(&low).await;
    let starts = place.journal.notes("start");
    let turn = starts.iter().position(|note| note == "low").unwrap();
    assert!(turn < 100, "the low one started only as number {turn}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typed_subject_names_the_type_and_must_agree_with_the_body() {
    let (place, service) = start().await;
    let reply = service.call("enqueue.probe", json!({"payload": {"note": "named by the subject"}})).await;
    let job = service.finished(reply["jobId"].as_str().unwrap()).await;
    assert_eq!((&job["type"], &job["result"]["note"]), (&json!("probe"), &json!("named by the subject")));
    service.call("enqueue.probe", json!({"type": "probe", "payload": {}})).await;
    let refused = service.ask("enqueue.send-email", json!({"type": "probe", "payload": {}}).to_string()).await;
    assert_eq!((refused.code(), &refused.body["errors"][0]["path"]), (Some("invalid_request"), &json!("/type")));
    let unknown = service.ask("enqueue.nobody-does-this", json!({"payload": {}}).to_string()).await;
    assert_eq!(unknown.code(), Some("unknown_type"));
    let missing = service.ask("enqueue", json!({"payload": {}}).to_string()).await;
    assert_eq!((missing.code(), &missing.body["errors"][0]["path"]), (Some("invalid_request"), &json!("/type")));
    assert_eq!(rows(&place).await, 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typed_subject_shows_and_touches_jobs_of_its_type_alone() {
    let (_place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    for verb in ["getJob", "retryJob", "cancelJob", "waitJob"] {
        let refused = service.ask(&format!("{verb}.send-email"), id.clone()).await;
        assert_eq!(refused.code(), Some("job_not_found"), "{verb}");
    }
    assert_eq!(service.call("listJobs.send-email", json!({})).await["jobs"], json!([]));
    assert_eq!(service.call("listJobs.probe", json!({})).await["jobs"][0]["id"], json!(id));
    assert_eq!(service.call("listJobs.probe", json!({"type": "send-email"})).await["jobs"], json!([]));
    assert_eq!(service.call("cancelJob.probe", json!({"jobId": id})).await["status"], "cancelled");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_reply_subject_is_carried_out() {
    let (_place, service) = start().await;
    let body = json!({"type": "probe", "payload": {"note": "no answer wanted"}}).to_string();
    service.nats.publish(service.subject("enqueue"), body.into()).await.unwrap();
    let done = until(|| async {
        let list = service.call("listJobs", json!({"status": "completed", "include": "result"})).await;
        list["jobs"].as_array().unwrap().first().cloned()
    });
    assert_eq!(done.await["result"]["note"], "no answer wanted");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_subject_outside_the_inboxes_is_refused() {
    let (place, service) = start().await;
    let mut forged = service.listen("jobs.probe.forged").await;
    let body = json!({"type": "probe", "payload": {}}).to_string();
    let reply = service.subject("jobs.probe.forged");
    service.nats.publish_with_reply(service.subject("enqueue"), reply.clone(), body.into()).await.unwrap();
    let seen = until(|| async {
        let stats =
            service.nats.request(format!("$SRV.STATS.{}", service.config.nats.prefix), "".into()).await.unwrap();
        let stats: Value = serde_json::from_slice(&stats.payload).unwrap();
        let enqueue = stats["endpoints"].as_array().unwrap().iter().find(|e| e["name"] == "enqueue").cloned()?;
        (enqueue["num_errors"] == 1).then_some(enqueue)
    });
    assert!(seen.await["last_error"].as_str().unwrap().starts_with("403:"));
    // Whatever had been sent there would come before this.
    service.nats.publish(reply, json!({"mine": true}).to_string().into()).await.unwrap();
    assert_eq!(forged.next().await.1, json!({"mine": true}));
    assert_eq!(rows(&place).await, 0);
    service.stop().await;
}

fn keyed(key: &str, note: &str) -> Value {
    json!({"type": "probe", "payload": {"note": note}, "idempotencyKey": key})
}

async fn start_with_one_slot() -> (Place, Running) {
    let mut place = Place::new().await;
    place.config.types.insert("probe".into(), TypeOverrides { concurrency: Some(1), ..TypeOverrides::default() });
    // Each job is a message, so that those can be counted.
    place.config.worker.eager = false;
    let service = place.start().await;
    (place, service)
}

/// Waits until `n` wake-ups have reached the broker.
async fn published(service: &Running, n: u64) {
    until(async || (service.published().await >= n).then_some(())).await;
}

async fn rows(place: &Place) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM all_jobs").fetch_one(&place.database().await).await.unwrap()
}
