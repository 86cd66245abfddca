//! Jobs that take their worker along, or hold up every thread of it: they harm themselves, and nobody beside them.

use std::time::Duration;

use queue_service::config::AllowPrivate;
use serde_json::{Value, json};

use crate::{
    books,
    child::Program,
    harness::{Place, until},
    receiver::Receiver,
};

fn errors(job: &Value) -> Vec<&str> {
    job["errors"].as_array().unwrap().iter().map(|error| error["kind"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_every_worker_takes_none_of_its_neighbours_along() {
    let mut place = Place::new().await;
    place.config.webhook.allow_private = AllowPrivate::All(true);
    let mut worker = place.config.clone();
    worker.http.enabled = false;
    worker.rpc.enabled = false;
    worker.worker.types = vec!["webhook-delivery".into()];
    place.config.worker.enabled = false;
    let door = place.start().await;
    let mut receiver = Receiver::start().await;
    // All wait when the first worker comes, so that they are in hand together.
    let mut neighbours = Vec::new();
    for _ in 0..6 {
        neighbours.push(door.enqueue(receiver.slow(400)).await);
    }
    let poison = door.enqueue(receiver.held()).await;

    for attempt in 1..=3 {
        let mut victim = Program::serve(&worker).await;
        let call = receiver.call().await;
        assert_eq!(call.job, poison);
        assert_eq!(door.job(&poison).await["attempts"], attempt);
        victim.kill().await;
    }
    let survivor = Program::serve(&worker).await;

    let dead = door.finished(&poison).await;
    assert_eq!((&dead["status"], errors(&dead)), (&json!("failed"), vec!["lost"; 3]), "{dead}");
    let mut harmed = 0;
    for id in &neighbours {
        let job = door.finished(id).await;
        assert_eq!(job["status"], "completed", "{job}");
        harmed += usize::from(errors(&job).len() == 2);
    }
    assert!(harmed > 0, "none was in hand with it twice, so nothing was shown");
    let mut letters = door.stream("background-jobs-dlq").await;
    until(async || (letters.info().await.unwrap().state.messages == 1).then_some(())).await;
    books::numbers_add_up(&place.database().await, &door.call("getStats", json!({})).await).await;
    survivor.stop().await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_block_every_thread_for_longer_than_the_lease_are_not_taken_for_dead() {
    let place = Place::new().await;
    let service = place.start().await;
    let block = place.config.worker.lease * 2 + Duration::from_millis(200);
    // More than the runtime has threads; handed in together, since the first ones keep the service from answering.
    let threads = std::thread::available_parallelism().unwrap().get() + 1;
    let job = json!({"type": "probe", "payload": {"blockMs": block.as_millis() as u64}});
    let ids = service.enqueue_many(vec![job; threads]).await;
    // Nobody else is there to take them over, so this process must not do it itself when it wakes up.
    let attempts = books::all_completed_once(&place, &service, &ids).await;
    assert!(attempts.values().all(|attempt| *attempt == 1), "{attempts:?}");
    place.journal.all_ran_once(&ids);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_outlives_its_timeout_and_its_lease_changes_nothing_any_more() {
    let place = Place::new().await;
    let service = place.start().await;
    let block = place.config.worker.lease * 2;
    let payload = json!({"blockMs": block.as_millis() as u64, "note": "late"});
    let request = json!({"type": "probe", "payload": payload, "timeout": "100ms", "maxAttempts": 2});
    let id = service.enqueue(request).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], errors(&job)), (&json!("failed"), vec!["timeout"; 2]), "{job}");
    // The second one goes on blocking its thread to the end.
    until(async || (place.journal.count(&id, "start") == 2).then_some(())).await;
    let neighbour = service.probe(json!({})).await;
    assert_eq!(service.finished(&neighbour).await["status"], "completed");
    assert_eq!(service.job(&id).await, job);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_messages_that_somebody_changed_by_hand_stop_nobody() {
    let place = Place::new().await;
    let service = place.start().await;
    let database = place.database().await;
    let subject = service.subject("jobs.probe.normal");
    let jetstream = async_nats::jetstream::new(service.nats.clone());
    let foreign = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let bodies = [
        "garbage".to_owned(),
        "{}".to_owned(),
        String::new(),
        json!({"jobId": "not-an-id"}).to_string(),
        // Of nobody, and of a job that is not due.
        json!({"jobId": uuid::Uuid::now_v7()}).to_string(),
        json!({"jobId": foreign}).to_string(),
    ];
    for body in bodies {
        jetstream.publish(subject.clone(), body.into()).await.unwrap().await.unwrap();
    }
    // Another type's subject for a job of this one.
    let wrong = service.subject("jobs.send-email.normal");
    jetstream.publish(wrong, json!({"jobId": foreign}).to_string().into()).await.unwrap().await.unwrap();
    // A payload that no longer fits, a holder that never was, a worker with marks that are none.
    let broken = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h", "maxAttempts": 1})).await;
    let orphan = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let by_hand = [
        format!(
            "UPDATE jobs SET payload = '{{\"no\": \"such field\"}}', run_at = now() - interval '1 minute' WHERE id = '{broken}'"
        ),
        format!(
            "UPDATE jobs SET status = 'processing', worker_id = 'nobody', started_at = now(), attempt = 1, run = 7,
             run_at = now() - interval '1 minute' WHERE id = '{orphan}'"
        ),
        "INSERT INTO workers (id, expires_at, claimed) VALUES ('odd', now(), '{\"probe.normal\": \"-1\"}')".to_owned(),
        "DELETE FROM outbox".to_owned(),
    ];
    for sql in by_hand {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&database).await.unwrap();
    }
    jetstream.publish(subject, json!({"jobId": orphan}).to_string().into()).await.unwrap().await.unwrap();

    let job = service.finished(&broken).await;
    assert_eq!(job["status"], "failed", "{job}");
    let job = service.finished(&orphan).await;
    assert_eq!((&job["status"], errors(&job)), (&json!("completed"), vec!["lost"]), "{job}");
    let good = service.probe(json!({})).await;
    assert_eq!(service.finished(&good).await["status"], "completed");
    assert_eq!(service.job(&foreign).await["status"], "pending", "a message makes no job due");
    service.stop().await;
}
