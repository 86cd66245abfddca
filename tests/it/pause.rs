//! A paused type takes jobs and starts none, whoever is asked and however often the service is restarted.

use serde_json::{Value, json};

use crate::harness::{Place, Running, start, until};

async fn is_paused(service: &Running) -> Value {
    service.call("listTypes.probe", json!({})).await["types"][0]["paused"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_for_all_replicas_and_across_restarts_until_somebody_resumes() {
    let place = Place::new().await;
    let (first, second) = (place.start().await, place.start().await);
    let info = first.call("pauseType", json!({"type": "probe"})).await;
    assert_eq!((&info["type"], &info["paused"]), (&json!("probe"), &json!(true)));
    first.call("pauseType", json!({"type": "probe"})).await;
    assert_eq!(is_paused(&second).await, true);
    let id = second.probe(json!({})).await;
    // Another type goes on; its end shows that there was time enough.
    let import = json!({"type": "batch-import", "payload": {"items": [{"id": "a", "data": 1}]}});
    let other = first.enqueue(import.clone()).await;
    first.finished(&other).await;
    first.stop().await;
    second.stop().await;

    let third = place.start().await;
    assert_eq!(is_paused(&third).await, true);
    let other = third.enqueue(import).await;
    third.finished(&other).await;
    let job = third.job(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("pending"), &json!(0)));
    assert_eq!(place.journal.count(&id, "start"), 0);
    assert_eq!(third.call("resumeType.probe", json!({})).await["paused"], false);
    let job = third.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)));
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_already_is_not_touched_by_a_pause() {
    let (place, service) = start().await;
    let id = service.probe(json!({"wait": true})).await;
    place.journal.until(&id, "start").await;
    service.call("pauseType.probe", json!({"type": "probe"})).await;
    place.journal.release();
    assert_eq!(service.finished(&id).await["status"], "completed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_known_types_can_be_paused() {
    let (_place, service) = start().await;
    for verb in ["pauseType", "resumeType"] {
        let refused = service.ask(verb, json!({"type": "nobody-does-this"}).to_string()).await;
        assert_eq!(refused.code(), Some("unknown_type"));
        assert_eq!(service.ask(verb, "{}").await.code(), Some("invalid_request"));
        let other = service.ask(&format!("{verb}.probe"), json!({"type": "send-email"}).to_string()).await;
        assert_eq!(other.code(), Some("invalid_request"));
    }
    assert_eq!(is_paused(&service).await, false);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_paused_type_stay_at_the_broker_instead_of_being_looked_up_one_by_one() {
    let (_place, service) = start().await;
    service.call("pauseType", json!({"type": "probe"})).await;
    let stream = service.stream("background-jobs").await;
    let consumer = async || stream.consumer_info("probe-normal").await.unwrap();
    // What the worker had asked for is taken back.
    until(|| async { (consumer().await.num_waiting == 0).then_some(()) }).await;
    for _ in 0..20 {
        service.probe(json!({})).await;
    }
    until(|| async {
        let info = consumer().await;
        (info.num_pending == 20 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    service.call("resumeType", json!({"type": "probe"})).await;
    until(|| async { (service.call("getStats", json!({})).await["byType"]["probe"]["completed"] == 20).then_some(()) })
        .await;
    service.stop().await;
}
