//! The broker's store goes back in time, as it does when the power goes between two flushes of its own; or a part of it is silent,
//! as a consumer without a leader is.

use std::{path::Path, time::Duration};

use serde_json::json;

use crate::{
    books,
    harness::{Place, Running, until},
    own::OwnNats,
};

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// Returns when requests over the broker are answered again: both sides have to connect to it first.
async fn answers(service: &Running) {
    let subject = service.subject("getStats");
    until(|| async { service.nats.request(subject.clone(), "".into()).await.ok().map(|_| ()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_went_back_in_time_gets_its_wake_ups_again_and_runs_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut place = Place::new().await;
    let mut nats = OwnNats::new(folder.path(), "past", "");
    nats.start().await;
    place.config.nats.url = nats.url();
    place.config.worker.concurrency = 10;
    place.config.worker.lease = Duration::from_secs(30);
    let service = place.start().await;
    // These are known to the copy as waiting or in hand, and are over when it comes back.
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(service.probe(json!({"wait": true})).await);
    }
    for id in &ids[..10] {
        place.journal.until(id, "start").await;
    }
    // Taken while the server is still, as a disk is when the power goes.
    nats.stop().await;
    copy(&nats.store(), &folder.path().join("copy"));
    nats.start().await;
    answers(&service).await;
    until(|| async {
        place.journal.release();
        let over = ids.iter().filter(|id| place.journal.count(id, "end") == 1).count();
        (over == ids.len()).then_some(())
    })
    .await;
    for id in &ids {
        service.finished(id).await;
    }
    // These the copy has never heard of. Ten are in hand, the others wait in the broker.
    for _ in 0..60 {
        ids.push(service.probe(json!({"wait": true})).await);
    }
    for id in &ids[30..40] {
        place.journal.until(id, "start").await;
    }
    let database = place.database().await;
    until(|| async {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&database).await.unwrap();
        (left == 0).then_some(())
    })
    .await;

    nats.kill().await;
    std::fs::remove_dir_all(nats.store()).unwrap();
    std::fs::rename(folder.path().join("copy"), nats.store()).unwrap();
    nats.start().await;

    until(|| async {
        place.journal.release();
        let over = ids.iter().filter(|id| place.journal.count(id, "end") >= 1).count();
        (over == ids.len()).then_some(())
    })
    .await;

    books::all_ran_once(&place, &service, &ids).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_does_not_answer_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut place = Place::new().await;
    // Requests that are forbidden are not answered.
    let silent = "permissions: { publish: { deny: \"$JS.API.CONSUMER.INFO.*.crawl-website-high\" } }";
    let more = format!("authorization {{ users: [{{ user: us, password: secret, {silent} }}] }}\nno_auth_user: us");
    let mut nats = OwnNats::new(folder.path(), "silent", &more);
    nats.start().await;
    place.config.nats.url = nats.url();
    let service = place.start().await;
    service.enqueue(json!({"type": "crawl-website", "payload": {"url": "https://example.org/"}, "delay": "1h"})).await;
    let id = service.probe(json!({})).await;
    service.finished(&id).await;

    service.call("pauseType.probe", json!({})).await;
    let id = service.probe(json!({})).await;
    service.stream("background-jobs").await.purge().await.unwrap();
    service.call("resumeType.probe", json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    service.stop().await;
}
