//! Every job that fails for good is published once, complete, also when the broker was away at that moment.

use std::time::Duration;

use queue_service::{
    job::{Failure, JobType, Priority, Verdict},
    store::{
        Store,
        claim::Claim,
        enqueue::{Due, NewJob},
        finish::{Recorded, Retried, Settlement, WakeUp},
    },
};
use serde_json::{Value, json, value::RawValue};

use crate::harness::{Place, Running, start, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_is_a_complete_message_with_an_id_of_job_and_run() {
    let (_place, service) = start().await;
    let request =
        json!({"type": "probe", "payload": {"fail": 9, "note": "all of it"}, "maxAttempts": 2, "tags": ["a"]});
    let id = service.enqueue(request).await;
    let job = service.finished(&id).await;
    let letters = letters(&service, 1).await;
    assert_eq!(letters, [(format!("{id}:2"), job)]);
    service.call("retryJob", json!({"jobId": id})).await;
    let again = service.finished(&id).await;
    assert_eq!(self::letters(&service, 2).await[1], (format!("{id}:4"), again), "a second failure is a second letter");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_do_not_fail_are_no_dead_letters() {
    let (_place, service) = start().await;
    let done = service.probe(json!({"fail": 1})).await;
    let cancelled = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    service.call("cancelJob", json!({"jobId": cancelled})).await;
    service.finished(&done).await;
    let failed = service.probe(json!({"permanent": true})).await;
    service.finished(&failed).await;
    assert_eq!(letters(&service, 1).await[0].0, format!("{failed}:1"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_while_the_broker_was_away_is_published_when_it_is_back() {
    let place = Place::new().await;
    let store = place.store().await;
    // Nobody has a connection to the broker yet: as if it were away.
    let id = fail(&store, json!({}), &["no"]).await;
    let service = place.start().await;
    let letters = letters(&service, 1).await;
    assert_eq!(letters[0].0, format!("{id}:1"));
    assert_eq!(letters[0].1["error"], "no");
    store.close().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_beyond_the_brokers_limit_goes_without_its_payload() {
    let place = Place::new().await;
    let store = place.store().await;
    // Each character needs six in JSON.
    let error = "\u{1}".repeat(2000);
    let id = fail(&store, json!({"note": "x".repeat(500_000)}), &vec![&*error; 60]).await;
    let service = place.start().await;
    let letters = letters(&service, 1).await;
    assert_eq!(letters[0].0, format!("{id}:60"));
    assert_eq!(letters[0].1["payload"], Value::Null);
    assert_eq!(letters[0].1["errors"].as_array().unwrap().len(), 60);
    store.close().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_beyond_the_brokers_limit_is_cut_to_its_end() {
    let place = Place::new().await;
    let store = place.store().await;
    let error = "\u{1}".repeat(2000);
    let id = fail(&store, json!({}), &vec![&*error; 100]).await;
    let service = place.start().await;
    let letters = letters(&service, 1).await;
    assert_eq!(letters[0].0, format!("{id}:100"));
    let errors = letters[0].1["errors"].as_array().unwrap();
    assert_eq!(errors.last().unwrap()["attempt"], 100, "the newest are kept");
    assert!(errors.len() < 100);
    store.close().await;
    service.stop().await;
}

/// Message ids and bodies of the first `n` dead letters; there must not be more.
async fn letters(service: &Running, n: u64) -> Vec<(String, Value)> {
    let mut stream = service.stream("background-jobs-dlq").await;
    until(async || (stream.info().await.unwrap().state.messages >= n).then_some(())).await;
    let mut letters = Vec::new();
    for sequence in 1..=n {
        let letter = stream.get_raw_message(sequence).await.unwrap();
        assert_eq!(letter.subject.as_str(), service.subject("dlq.probe"));
        let id = letter.headers.get("Nats-Msg-Id").unwrap().to_string();
        letters.push((id, serde_json::from_slice(&letter.payload).unwrap()));
    }
    // A row stays until it is told, so nothing more can come.
    let pool = sqlx::PgPool::connect_with(options(service)).await.unwrap();
    until(|| async {
        let open = "SELECT count(*) FROM outbox WHERE kind = 'dead-letter'";
        let open: i64 = sqlx::query_scalar(open).fetch_one(&pool).await.unwrap();
        (open == 0).then_some(())
    })
    .await;
    assert_eq!(stream.info().await.unwrap().state.messages, n);
    letters
}

fn options(service: &Running) -> sqlx::postgres::PgConnectOptions {
    let options: sqlx::postgres::PgConnectOptions = service.config.database.url.parse().unwrap();
    options.options([("search_path", service.config.database.schema.as_str())])
}

/// A job that failed with these errors, the last one for good.
async fn fail(store: &Store, payload: Value, errors: &[&str]) -> uuid::Uuid {
    let id = uuid::Uuid::now_v7();
    let job = NewJob {
        id,
        job_type: JobType::new("probe").unwrap(),
        payload: RawValue::from_string(payload.to_string()).unwrap(),
        priority: Priority::default(),
        max_attempts: errors.len() as u16,
        timeout: None,
        due: Due::Now,
        tags: Vec::new(),
        key: None,
        trace: None,
    };
    store.enqueue(&[job], Duration::from_secs(60), None).await.unwrap();
    for (i, error) in errors.iter().enumerate() {
        let claims = store.claim(&[(id, "probe".into())], "nobody").await.unwrap().claims;
        let [Claim::Won(job)] = &claims[..] else { panic!("{claims:?}") };
        let verdict = if i + 1 < errors.len() {
            Verdict::Retry { failure: Failure::retry(*error), delay: Duration::ZERO }
        } else {
            Verdict::DeadLetter { failure: Failure::permanent(*error) }
        };
        let settlement = Settlement { id, run: job.run, verdict, wake_up: WakeUp::NotNeeded, end: None };
        let recorded = store.finish(&[settlement], Retried::No).await.unwrap();
        assert!(matches!(recorded[..], [Recorded::As(_)]), "{recorded:?}");
    }
    id
}
