//! Waiting tells the end of a job as soon as it is there, and the state of things when it takes too long.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::harness::{start, until};

#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_are_told_when_the_job_ends() {
    let (place, service) = start().await;
    let id = service.probe(json!({"wait": true, "note": "w"})).await;
    place.journal.until(&id, "start").await;
    let waits = join_all((0..10).map(|_| service.finished(&id)));
    let end = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        place.journal.release();
        Instant::now()
    };
    let (jobs, ended) = tokio::join!(waits, end);
    assert!(ended.elapsed() < Duration::from_millis(900), "told by the event, not by looking once a second");
    assert!(jobs.iter().all(|job| job["status"] == "completed" && job["result"]["note"] == "w"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_what_is_over_is_answered_at_once() {
    let (_place, service) = start().await;
    let id = service.probe(json!({"permanent": true})).await;
    service.finished(&id).await;
    let job = service.call("waitJob", json!({"jobId": id, "timeoutMs": 0})).await;
    assert_eq!(job, service.job(&id).await);
    assert_eq!(service.ask("waitJob", id).await.body, job, "the bare id is a request, too");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_takes_too_long_is_told_how_the_job_is() {
    let (_place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let answer = service.ask("waitJob", json!({"jobId": id, "timeoutMs": 150}).to_string()).await;
    assert_eq!((answer.code(), &answer.body["status"]), (Some("wait_timeout"), &json!(408)));
    assert_eq!(answer.body["job"], service.job(&id).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_reads_the_job_at_its_end_and_not_at_each_of_its_news() {
    const NEWS: usize = 300;
    let (place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let database = place.database().await;
    let looks = "SELECT sum(idx_scan)::int8 FROM pg_stat_user_indexes WHERE indexrelname = 'jobs_pkey'";
    let subject = service.subject(&format!("events.probe.progress.{id}"));
    let news = async {
        for _ in 0..NEWS {
            service.nats.publish(subject.clone(), "{}".into()).await.unwrap();
            service.nats.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let wait = service.ask("waitJob", json!({"jobId": id, "timeoutMs": 4000}).to_string());
    let (answer, ()) = tokio::join!(wait, news);
    assert_eq!(answer.code(), Some("wait_timeout"));
    // What connections have counted is told when they end.
    service.stop().await;
    until(async || {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'queue-service'";
        (sqlx::query_scalar::<_, i64>(left).fetch_one(&database).await.unwrap() == 0).then_some(())
    })
    .await;
    let read: i64 = sqlx::query_scalar(looks).fetch_one(&database).await.unwrap();
    assert!(read < NEWS as i64 / 2, "the job was looked up {read} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_has_bounds_and_needs_a_job() {
    let (_place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    for ms in [-1, 300_001] {
        let refused = service.ask("waitJob", json!({"jobId": id, "timeoutMs": ms}).to_string()).await;
        assert_eq!(
            (refused.code(), &refused.body["errors"][0]["path"]),
            (Some("invalid_request"), &json!("/timeoutMs"))
        );
    }
    let unknown = uuid::Uuid::now_v7().to_string();
    assert_eq!(service.ask("waitJob", unknown).await.code(), Some("job_not_found"));
    service.stop().await;
}
