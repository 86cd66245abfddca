//! Delayed jobs start when they are due, never early, whatever the distance.

use chrono::{Duration, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::harness::{Place, millis_between, start, time};

fn at(from_now: Duration) -> String {
    (Utc::now() + from_now).to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_delay_starts_after_it_and_not_before() {
    let (_place, service) = start().await;
    for (delay, millis) in [(json!("300ms"), 300.0), (json!(0.2), 200.0), (json!("1ms"), 1.0)] {
        let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": delay})).await;
        let job = service.finished(&id).await;
        assert_eq!(job["status"], "completed");
        assert_eq!(millis_between(&job["createdAt"], &job["runAt"]), millis);
        assert!(time(&job["startedAt"]) >= time(&job["runAt"]), "started early: {job}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_outbox_says_when_it_is_due_and_an_empty_one_says_nothing() {
    let place = Place::new().await;
    let store = place.store().await;
    let database = place.database().await;
    assert_eq!(store.next_outbox(None).await.unwrap(), None);
    let row = "INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
               VALUES (uuid_v7(), 'wake-up', now() + $1 * interval '1 hour', '{}', '{}')";
    sqlx::query(row).bind(2).execute(&database).await.unwrap();
    let next = store.next_outbox(None).await.unwrap().expect("there is one");
    assert!((6900..=7200).contains(&next.as_secs()), "{next:?}");
    sqlx::query(row).bind(-2).execute(&database).await.unwrap();
    assert_eq!(store.next_outbox(None).await.unwrap(), Some(std::time::Duration::ZERO));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_time_starts_at_that_time_and_not_before() {
    let (_place, service) = start().await;
    let wanted = at(Duration::milliseconds(250));
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "runAt": wanted})).await;
    let job = service.finished(&id).await;
    assert_eq!(job["runAt"], wanted);
    assert!(time(&job["startedAt"]) >= time(&job["runAt"]), "started early: {job}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_in_the_past_means_now() {
    let (_place, service) = start().await;
    for past in ["2001-02-03T04:05:06+07:00".to_owned(), "0001-01-01T00:00:00Z".into(), at(-Duration::seconds(1))] {
        let id = service.enqueue(json!({"type": "probe", "payload": {}, "runAt": past})).await;
        let job = service.finished(&id).await;
        assert_eq!(job["runAt"], job["createdAt"], "{past}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_years_ahead_stays_scheduled_and_lays_nothing_on_the_broker() {
    let mut place = Place::new().await;
    place.config.worker.eager = false;
    let service = place.start().await;
    let wanted = at(Duration::days(9 * 365));
    let id = service.enqueue(json!({"type": "probe", "payload": {}, "runAt": wanted})).await;
    // A job behind it, so that all that was to be published has been.
    let other = service.probe(json!({})).await;
    service.finished(&other).await;
    let job = service.job(&id).await;
    assert_eq!((&job["status"], &job["runAt"], &job["attempts"]), (&json!("pending"), &json!(wanted), &json!(0)));
    assert_eq!(service.published().await, 1, "only the other job was published");
    let due: chrono::DateTime<Utc> =
        sqlx::query_scalar("SELECT publish_at FROM outbox WHERE job_ids = ARRAY[$1::uuid]")
            .bind(&id)
            .fetch_one(&place.database().await)
            .await
            .unwrap();
    assert_eq!(due, time(&json!(wanted)));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_far_or_said_twice_is_refused() {
    let (_place, service) = start().await;
    for (field, value) in [("runAt", json!(at(Duration::days(11 * 366)))), ("delay", json!("11years"))] {
        let mut request = json!({"type": "probe", "payload": {}});
        request[field] = value;
        let refused = service.ask("enqueue", request.to_string()).await;
        assert_eq!(refused.code(), Some("invalid_request"));
        assert_eq!(refused.body["errors"][0]["path"], format!("/{field}"));
    }
    let both = json!({"type": "probe", "payload": {}, "delay": "1s", "runAt": at(Duration::seconds(1))});
    assert_eq!(service.ask("enqueue", both.to_string()).await.code(), Some("invalid_request"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_scheduled_shows_what_waits_for_its_time_and_nothing_else() {
    let (place, service) = start().await;
    let later = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    let done = service.probe(json!({})).await;
    service.finished(&done).await;
    let running = service.probe(json!({"wait": true})).await;
    place.journal.until(&running, "start").await;
    let list = service.call("listJobs", json!({"status": "scheduled"})).await;
    let ids: Vec<&Value> = list["jobs"].as_array().unwrap().iter().map(|job| &job["id"]).collect();
    assert_eq!(ids, [&json!(later)]);
    assert_eq!(list["jobs"][0]["status"], "pending");
    place.journal.release();
    service.finished(&running).await;
    service.stop().await;
}
