//! Jobs that are asked for where there is room start there, without a message, and lose nothing by it.

use std::time::Duration;

use queue_service::{
    config::{AllowPrivate, TypeOverrides},
    store::enqueue::{Key, NewJob, Start},
};
use serde_json::{Value, json};

use crate::{
    books,
    child::Program,
    harness::{Place, Running, start, until},
    receiver::{Call, Receiver},
};

/// Returns when a job has started without a message: before that the worker may not have said that it has room.
pub async fn until_eager(service: &Running) {
    until(|| async {
        let before = service.published().await;
        let id = service.probe(json!({})).await;
        service.finished(&id).await;
        (service.published().await == before).then_some(())
    })
    .await;
}

async fn outbox_is_empty(place: &Place) {
    let database = place.database().await;
    let left = "SELECT count(*) FROM outbox";
    until(|| async { (sqlx::query_scalar::<_, i64>(left).fetch_one(&database).await.unwrap() == 0).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_starts_without_a_message_where_there_is_room_and_is_told_of_as_others() {
    let (place, service) = start().await;
    until_eager(&service).await;
    let before = service.published().await;
    let mut ids = Vec::new();
    for priority in [0, 5, -5] {
        ids.push(service.enqueue(json!({"type": "probe", "payload": {}, "priority": priority})).await);
    }
    books::all_completed_once(&place, &service, &ids).await;
    assert_eq!(service.published().await, before);
    outbox_is_empty(&place).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_written_as_started_where_there_is_room_and_needs_no_claim() {
    let (place, service) = start().await;
    until_eager(&service).await;
    let no_claim_may_happen = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no claims today''; END';
        CREATE TRIGGER refuse BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()";
    sqlx::raw_sql(no_claim_may_happen).execute(&place.database().await).await.unwrap();
    let mut events = service.listen("events.>").await;
    let id = service.probe(json!({})).await;
    let seen = events.until_state("completed").await;
    let seen: Vec<_> = seen.iter().map(|event| (event["state"].as_str().unwrap(), &event["attempt"])).collect();
    assert_eq!(seen, [("enqueued", &json!(0)), ("started", &json!(1)), ("completed", &json!(1))]);
    let keyed = json!({"type": "probe", "payload": {}, "idempotencyKey": "one", "tags": ["a", "b"]});
    let first = service.enqueue(keyed.clone()).await;
    let job = service.finished(&first).await;
    assert_eq!((&job["attempts"], &job["tags"]), (&json!(1), &json!(["a", "b"])));
    assert_eq!(service.enqueue(keyed).await, first, "the same key");
    books::all_completed_once(&place, &service, &[id, first]).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_type_that_was_paused_meanwhile_does_not_start() {
    let mut place = Place::new().await;
    place.config.worker.enabled = false;
    let service = place.start().await;
    service.call("pauseType", json!({"type": "probe"})).await;
    let store = place.store().await;
    for key in [None, Some(Key { text: "one".into(), content_hash: [0; 32], value_hash: [0; 32], max_attempts: None })]
    {
        let jobs = [NewJob { key, ..crate::plans::job(0) }];
        let start = Start { worker_id: "somebody", claim: uuid::Uuid::now_v7(), places: vec![true] };
        let batch = store.enqueue(&jobs, Duration::ZERO, Some(&start)).await.unwrap();
        assert_eq!((batch.started.len(), batch.due), (0, vec![0]));
        let job = service.job(&jobs[0].id.to_string()).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("pending"), &json!(0)));
    }
    store.close().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_whose_turn_does_not_come_go_back_and_have_spent_no_attempt() {
    let mut place = Place::new().await;
    place.config.types.insert("probe".into(), TypeOverrides { concurrency: Some(4), ..TypeOverrides::default() });
    let service = place.start().await;
    // So that quick ends are expected of the next ones as well, and some may wait for them.
    let mut ids = Vec::new();
    for _ in 0..100 {
        let id = service.probe(json!({})).await;
        service.finished(&id).await;
        ids.push(id);
    }
    let probe = |payload: Value| json!({"type": "probe", "payload": payload});
    let mut jobs = vec![probe(json!({"wait": true})); 4];
    jobs.extend(vec![probe(json!({})); 40]);
    ids.extend(service.enqueue_many(jobs).await);
    let database = place.database().await;
    // Runs that have never begun.
    let back = "SELECT count(*) FROM jobs WHERE status = 'pending' AND attempt = 0 AND run > 0";
    until(|| async { (sqlx::query_scalar::<_, i64>(back).fetch_one(&database).await.unwrap() > 0).then_some(()) })
        .await;
    place.journal.release();
    let attempts = books::all_completed_once(&place, &service, &ids).await;
    assert!(attempts.values().all(|attempt| *attempt == 1), "{attempts:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_eager_starts_switched_off_each_job_is_a_message() {
    let mut place = Place::new().await;
    place.config.worker.eager = false;
    let service = place.start().await;
    for n in 1..=20 {
        let id = service.probe(json!({})).await;
        service.finished(&id).await;
        assert_eq!(service.published().await, n);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_found_no_room_start_before_those_that_come_later() {
    let mut place = Place::new().await;
    place.config.types.insert("probe".into(), TypeOverrides { concurrency: Some(1), ..TypeOverrides::default() });
    let service = place.start().await;
    until_eager(&service).await;
    let blocker = service.probe(json!({"wait": true, "note": "blocker"})).await;
    place.journal.until(&blocker, "start").await;
    let before = service.published().await;
    for note in ["1", "2", "3", "4", "5"] {
        service.probe(json!({"note": note, "sleepMs": 30})).await;
    }
    until(|| async { (service.published().await == before + 5).then_some(()) }).await;
    place.journal.release();
    let last = service.probe(json!({"note": "later"})).await;
    service.finished(&last).await;
    let starts: Vec<String> = place.journal.notes("start").into_iter().filter(|note| !note.is_empty()).collect();
    assert_eq!(starts, ["blocker", "1", "2", "3", "4", "5", "later"]);
    outbox_is_empty(&place).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_is_tried_again_when_it_is_due() {
    let (place, service) = start().await;
    until_eager(&service).await;
    let before = service.published().await;
    let id = service.probe(json!({"fail": 2})).await;
    let job = service.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(3)), "{job}");
    // The first attempt had none; the relay sent one for the second, which came again for the third.
    assert_eq!(service.published().await, before + 1);
    outbox_is_empty(&place).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_worker_has_started_without_a_message_runs_elsewhere_long_before_the_next_repair() {
    let mut place = Place::new().await;
    place.config.webhook.allow_private = AllowPrivate::All(true);
    place.config.background.sweep = Duration::from_secs(3600);
    let mut receiver = Receiver::start().await;
    let mut first = Program::serve(&place.config).await;
    let mut held: Vec<(Value, Call)> = Vec::new();
    let nats = async_nats::connect(&place.config.nats.url).await.unwrap();
    let subject = format!("{}.enqueue", place.config.nats.prefix);
    for _ in 0..5 {
        let reply = nats.request(subject.clone(), receiver.held().to_string().into()).await.unwrap();
        held.push((serde_json::from_slice(&reply.payload).unwrap(), receiver.call().await));
    }
    let ids: Vec<String> = held.iter().map(|(reply, _)| reply["jobId"].as_str().unwrap().to_owned()).collect();
    let second = place.start().await;
    let messages = second.stream("background-jobs").await.info().await.unwrap().state.messages;
    assert!(messages < 5, "all of them have a message to come again by");
    first.kill().await;
    for _ in &ids {
        receiver.call().await.answer("from the second");
    }
    for id in &ids {
        let job = second.finished(id).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(2)), "{job}");
        assert_eq!(job["errors"][0]["kind"], "lost");
    }
    books::all_completed_once(&place, &second, &ids).await;
    second.stop().await;
}
