//! The repair sweep publishes what the broker has lost, all of it and nothing else.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::{Place, Running, until};

/// Whose jobs nobody fetches unless the test does.
const PULLED: &str = "pulled";

/// Sweeps often, and every job goes by the broker.
async fn place() -> Place {
    let mut place = Place::new().await;
    place.config.worker.eager = false;
    place.config.background.sweep = Duration::from_millis(150);
    place.config.background.overdue = Duration::from_millis(300);
    // On a busy machine the relay would publish what is being published.
    place.config.background.publish_grace = Duration::from_secs(10);
    place
}

/// Returns when so many sweeps have come to their end that began after this.
async fn sweeps(database: &PgPool, n: i64) {
    let since: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(database).await.unwrap();
    until(async || {
        let marks = "SELECT count(*) FROM sweep_marks WHERE at > $1";
        let marks: i64 = sqlx::query_scalar(marks).bind(since).fetch_one(database).await.unwrap();
        // The last of them may still be under way.
        (marks > n).then_some(())
    })
    .await;
}

/// The lanes of which the sweep has ever put anything back.
async fn rearmed(database: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT lane FROM rearmed_lanes ORDER BY lane").fetch_all(database).await.unwrap()
}

/// Returns when the broker has everything that was in the outbox, and a sweep knows of it.
async fn published_all(database: &PgPool) {
    until(async || {
        let left = "SELECT count(*) FROM outbox WHERE publish_at < now() + interval '1 minute'";
        let left: i64 = sqlx::query_scalar(left).fetch_one(database).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    sweeps(database, 1).await;
}

/// Returns when every job is completed.
async fn all_completed(database: &PgPool, jobs: usize) {
    until(async || {
        let over = "SELECT count(*) FROM finished_jobs WHERE status = 'completed'";
        let over: i64 = sqlx::query_scalar(over).fetch_one(database).await.unwrap();
        (over == jobs as i64).then_some(())
    })
    .await;
}

/// Removes the messages of these jobs from the stream, as an operator may do by hand.
async fn delete_messages(service: &Running, jobs: &[String]) {
    let stream = service.stream("background-jobs").await;
    let last = service.published().await;
    let mut left: HashSet<&str> = jobs.iter().map(String::as_str).collect();
    for seq in 1..=last {
        let Ok(message) = stream.get_raw_message(seq).await else { continue };
        let body: Value = serde_json::from_slice(&message.payload).unwrap();
        if left.remove(body["jobId"].as_str().unwrap()) {
            stream.delete_message(seq).await.unwrap();
        }
    }
    assert!(left.is_empty(), "{} messages were not there", left.len());
}

fn probes(n: usize, payload: &Value) -> Vec<Value> {
    vec![json!({"type": "probe", "payload": payload}); n]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_with_retries_is_published_once() {
    const JOBS: usize = 1_200;
    let mut place = place().await;
    place.config.worker.concurrency = 4;
    let service = place.start().await;
    let database = place.database().await;
    let mut jobs = probes(JOBS, &json!({"sleepMs": 5}));
    for n in 0..12 {
        jobs[n * 100 + 7] = json!({"type": "probe", "payload": {"fail": 1}});
    }
    service.enqueue_many(jobs).await;
    all_completed(&database, JOBS).await;
    assert_eq!(rearmed(&database).await, [""; 0]);
    let published = service.published().await;
    assert!(published <= (JOBS as f64 * 1.05) as u64, "{published} messages for {JOBS} jobs");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_another_reason_is_not_published_again() {
    let place = place().await;
    let service = place.start().await;
    let database = place.database().await;
    service.call("registerType", json!({"type": PULLED, "handler": "pull"})).await;
    let mut expected = 0;

    // Nobody fetches them; one was fetched and given back.
    for n in 0..6 {
        service.enqueue(json!({"type": PULLED, "payload": {}, "priority": n % 3 - 1})).await;
    }
    let wish = json!({"types": [PULLED], "max": 1, "waitMs": 30_000, "workerId": "w", "leaseMs": 60_000});
    let fetched = service.call("work.fetch", wish).await["jobs"][0].clone();
    service.call("work.release", json!({"jobId": fetched["id"], "run": fetched["run"]})).await;
    expected += 7;

    // Paused after it was delivered, and before.
    service.enqueue(json!({"type": "probe", "payload": {"fail": 1, "retryAfterMs": 600}})).await;
    until(async || (!place.journal.lines().is_empty()).then_some(())).await;
    service.call("pauseType.probe", json!({})).await;
    for n in 0..6 {
        service.enqueue(json!({"type": "probe", "payload": {}, "priority": n % 3 - 1})).await;
    }
    // Comes due while its type is paused.
    service.enqueue(json!({"type": "probe", "payload": {}, "delay": "200ms"})).await;
    expected += 8;

    // Handed in by a transaction that takes longer than anybody waits.
    let mut slow = database.begin().await.unwrap();
    sqlx::query("SELECT enqueue('probe', '{}')").execute(&mut *slow).await.unwrap();
    sweeps(&database, 5).await;
    slow.commit().await.unwrap();
    expected += 1;

    sweeps(&database, 5).await;
    published_all(&database).await;
    assert_eq!(rearmed(&database).await, [""; 0]);
    assert_eq!(service.published().await, expected);
    service.call("resumeType.probe", json!({})).await;
    all_completed(&database, 9).await;
    assert_eq!(service.published().await, expected);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_jobs_whose_messages_were_deleted_are_published_again() {
    let place = place().await;
    let service = place.start().await;
    let database = place.database().await;
    service.call("pauseType.probe", json!({})).await;
    let ids = service.enqueue_many(probes(60, &json!({}))).await;
    published_all(&database).await;
    delete_messages(&service, &ids[20..30]).await;
    // Also while nobody would run them.
    until(async || (service.published().await == 70).then_some(())).await;
    sweeps(&database, 5).await;
    assert_eq!((service.published().await, rearmed(&database).await), (70, vec!["probe.normal".to_owned()]));
    service.call("resumeType.probe", json!({})).await;
    all_completed(&database, ids.len()).await;
    place.journal.all_ran_once(&ids);
    assert_eq!(service.published().await, 70);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_too_many_hide_none_that_is_missing() {
    let place = place().await;
    let service = place.start().await;
    let database = place.database().await;
    service.call("pauseType.probe", json!({})).await;
    let ids = service.enqueue_many(probes(30, &json!({}))).await;
    published_all(&database).await;
    // Of jobs that are over, and of one that waits.
    for id in &ids[20..] {
        service.call("cancelJob", json!({"jobId": id})).await;
    }
    let body = json!({"jobId": ids[0], "type": "probe", "lane": "normal"}).to_string();
    for _ in 0..10 {
        service.nats.publish(service.subject("jobs.probe.normal"), body.clone().into()).await.unwrap();
    }
    service.nats.flush().await.unwrap();
    delete_messages(&service, &ids[5..10]).await;
    sweeps(&database, 5).await;
    service.call("resumeType.probe", json!({})).await;
    all_completed(&database, 20).await;
    place.journal.all_ran_once(&ids[..20]);
    assert_eq!(service.published().await, 30 + 10 + 5);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_whose_message_was_deleted_comes_back() {
    let place = place().await;
    let service = place.start().await;
    let id = service.probe(json!({"fail": 1, "retryAfterMs": 500})).await;
    service.until_status(&id, "pending").await;
    until(async || (place.journal.count(&id, "end") == 1).then_some(())).await;
    service.stream("background-jobs").await.purge().await.unwrap();
    assert_eq!(service.finished(&id).await["status"], "completed");
    assert_eq!(service.published().await, 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_that_was_purged_is_published_once_by_two_replicas() {
    const JOBS: usize = 7_000;
    let mut place = place().await;
    place.config.nats.store = bytesize::ByteSize::mib(64);
    let (service, other) = (place.start().await, place.start().await);
    let database = place.database().await;
    service.call("pauseType.probe", json!({})).await;
    let jobs = (0..JOBS).map(|n| json!({"type": "probe", "payload": {}, "priority": n as i64 % 3 - 1})).collect();
    let ids = service.enqueue_many(jobs).await;
    published_all(&database).await;
    service.stream("background-jobs").await.purge().await.unwrap();
    until(async || (service.published().await >= 2 * JOBS as u64).then_some(())).await;
    sweeps(&database, 4).await;
    assert_eq!(service.published().await, 2 * JOBS as u64);

    // A stream that is another one: both see it at once.
    let context = async_nats::jetstream::new(service.nats.clone());
    context.delete_stream(format!("{}-background-jobs", place.config.nats.prefix)).await.unwrap();
    until(async || {
        let name = format!("{}-background-jobs", place.config.nats.prefix);
        let mut stream = context.get_stream(name).await.ok()?;
        (stream.info().await.ok()?.state.messages >= JOBS as u64).then_some(())
    })
    .await;
    sweeps(&database, 4).await;
    assert_eq!(service.published().await, JOBS as u64);
    service.call("resumeType.probe", json!({})).await;
    all_completed(&database, JOBS).await;
    place.journal.all_ran_once(&ids);
    assert_eq!(service.published().await, JOBS as u64);
    other.stop().await;
    service.stop().await;
}
