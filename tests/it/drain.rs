//! A deploy is not a failure: what still runs is handed back, and another replica goes on.

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{Place, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cut_off_by_a_drain_spends_no_attempt() {
    let place = Place::new().await;
    let old = place.start().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        // These obey at once and call it a failure, which must not count.
        ids.push(old.enqueue(json!({"type": "probe", "payload": {"wait": true}, "maxAttempts": 1})).await);
    }
    for id in &ids {
        place.journal.until(id, "start").await;
    }
    let hurry = CancellationToken::new();
    hurry.cancel();
    old.service.stop(hurry).await.unwrap();
    let new = place.start().await;
    for id in &ids {
        until(|| async { (place.journal.count(id, "start") == 2).then_some(()) }).await;
    }
    place.journal.release();
    for id in &ids {
        let job = new.finished(id).await;
        assert_eq!((&job["status"], &job["attempts"], &job["errors"]), (&json!("completed"), &json!(1), &json!([])));
    }
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_service_lets_its_runs_end() {
    let place = Place::new().await;
    let service = place.start().await;
    let id = service.probe(json!({"sleepMs": 300})).await;
    place.journal.until(&id, "start").await;
    service.stop().await;
    assert_eq!(place.journal.count(&id, "end"), 1);
    let store = place.store().await;
    assert_eq!(store.job(id.parse().unwrap()).await.unwrap().unwrap().status, "completed");
    store.close().await;
}
