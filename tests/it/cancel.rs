//! A cancelled job does not run, or stops running, and says why.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Place, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_is_cancelled_at_once_and_keeps_the_reason() {
    let (place, service) = start().await;
    let mut events = service.listen("events.probe.cancelled.*").await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "200ms"})).await;
    let job = service.call("cancelJob", json!({"jobId": id, "reason": "not needed"})).await;
    assert_eq!(
        (&job["status"], &job["error"], &job["attempts"]),
        (&json!("cancelled"), &json!("not needed"), &json!(0))
    );
    assert!(job["finishedAt"].is_string());
    assert_eq!(events.next().await.1["jobId"], json!(id));
    // One that is due after it has run; so would this one have.
    let later = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "250ms"})).await;
    service.finished(&later).await;
    assert_eq!(place.journal.count(&id, "start"), 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_handler_is_told_within_a_tenth_of_a_second() {
    let (place, service) = start().await;
    let mut quickest = Duration::MAX;
    // The best of a few: the machine may be busy with something else.
    for _ in 0..5 {
        let id = service.probe(json!({"wait": true})).await;
        place.journal.until(&id, "start").await;
        let asked = Instant::now();
        let job = service.call("cancelJob", json!({"jobId": id, "reason": "enough"})).await;
        assert_eq!((&job["status"], &job["error"]), (&json!("cancelled"), &json!("enough")));
        assert_eq!(job["errors"], json!([]), "being stopped is no failure");
        quickest = quickest.min(place.journal.until(&id, "stopped").await.at - asked);
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_does_not_listen_is_cut_off_after_the_grace() {
    let (place, service) = start().await;
    let id = service.probe(json!({"sleepMs": 3000})).await;
    place.journal.until(&id, "start").await;
    let asked = Instant::now();
    service.call("cancelJob", json!({"jobId": id})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], &job["error"]), (&json!("cancelled"), &Value::Null));
    assert!(asked.elapsed() >= Duration::from_millis(500), "it was given no time");
    assert!(asked.elapsed() < Duration::from_millis(2900), "it was waited for");
    assert_eq!(place.journal.count(&id, "end"), 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_can_not_be_cancelled() {
    let (_place, service) = start().await;
    let done = service.probe(json!({})).await;
    let failed = service.probe(json!({"permanent": true})).await;
    let cancelled = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    service.call("cancelJob", json!({"jobId": cancelled})).await;
    for (id, status) in [(&done, "completed"), (&failed, "failed"), (&cancelled, "cancelled")] {
        service.finished(id).await;
        let refused = service.ask("cancelJob", id.clone()).await;
        assert_eq!(refused.code(), Some("already_finished"));
        assert_eq!(refused.body["detail"], format!("job {id} is {status} already"));
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_meets_the_end_of_the_run_has_one_winner() {
    let (place, service) = start().await;
    let cancel = async |n: u64| {
        let id = service.probe(json!({"sleepMs": n * 3})).await;
        let answer = service.ask("cancelJob", id.clone()).await;
        let job = service.finished(&id).await;
        match (answer.code(), answer.body["status"].as_str()) {
            (Some(code), _) => assert_eq!((code, &job["status"]), ("already_finished", &json!("completed"))),
            (None, Some("cancelled")) => assert_eq!(job["status"], "cancelled"),
            // It was asked to stop and was done before it heard of that.
            (None, status) => assert_eq!(status, job["status"].as_str()),
        }
        assert!(place.journal.count(&id, "start") <= 1);
        assert_eq!(service.job(&id).await, job, "over is over");
    };
    join_all((0..24).map(cancel)).await;
    let stats = service.call("getStats", json!({})).await;
    assert_eq!((&stats["total"], &stats["processing"], &stats["pending"]), (&json!(24), &json!(0), &json!(0)));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_stop_counts_only_when_the_job_is_to_be_cancelled_and_of_that_type() {
    let (place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {"wait": true}, "maxAttempts": 1})).await;
    place.journal.until(&id, "start").await;
    let signal = async |job_type: &str| {
        let subject = service.subject(&format!("control.cancel.{job_type}.{id}"));
        service.nats.publish(subject, "{}".into()).await.unwrap();
        // Looked at: a job that is cancelled after it, over the same connection, was stopped.
        let other = service.probe(json!({"wait": true})).await;
        place.journal.until(&other, "start").await;
        service.call("cancelJob", json!({"jobId": other})).await;
        place.journal.until(&other, "stopped").await;
    };
    // A late one for an earlier run, for instance, or a forged one.
    signal("probe").await;
    assert_eq!(place.journal.count(&id, "stopped"), 0);
    // The row says so, and the signal got lost.
    let wish = "UPDATE jobs SET cancel_requested_at = now() WHERE id = $1";
    let database = place.database().await;
    sqlx::query(wish).bind(id.parse::<uuid::Uuid>().unwrap()).execute(&database).await.unwrap();
    signal("send-email").await;
    assert_eq!(place.journal.count(&id, "stopped"), 0, "by the subject of another type");
    signal("probe").await;
    place.journal.until(&id, "stopped").await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], &job["errors"]), (&json!("cancelled"), &json!([])));
    assert_eq!(place.journal.count(&id, "start"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_has_a_limit() {
    let (_place, service) = start().await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let refused = service.ask("cancelJob", json!({"jobId": id, "reason": "x".repeat(501)}).to_string()).await;
    assert_eq!((refused.code(), &refused.body["errors"][0]["path"]), (Some("invalid_request"), &json!("/reason")));
    assert_eq!(service.job(&id).await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_told_to_stop_says_so() {
    let mut place = Place::new().await;
    place.config.worker.cancel_grace = Duration::from_secs(3);
    let service = place.start().await;
    for reason in [Value::Null, json!("enough")] {
        let id = service.probe(json!({"sleepMs": 20000})).await;
        place.journal.until(&id, "start").await;
        assert_eq!(service.job(&id).await["note"], Value::Null);
        // It does not listen, so the reply comes first.
        let job = service.call("cancelJob", json!({"jobId": id, "reason": reason})).await;
        assert_eq!(job["status"], "processing", "{job}");
        let told = "somebody has cancelled it, and its run was told to stop";
        assert_eq!((&job["note"], &job["error"]), (&json!(told), &Value::Null));
        let listed = service.call("listJobs", json!({"status": "processing"})).await;
        assert_eq!(listed["jobs"][0]["note"], told, "{listed}");
        let job = service.finished(&id).await;
        assert_eq!((&job["status"], &job["error"], &job["note"]), (&json!("cancelled"), &reason, &Value::Null));
    }
    service.stop().await;
}
