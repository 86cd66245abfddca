//! Lanes: they have consumers from their first job on, and workers ask those for messages without a gap, however long none comes.

use std::{collections::HashSet, time::Duration};

use futures_util::StreamExt;
use queue_service::{broker::pull::LanePull, job::Lane};
use serde_json::json;

use crate::harness::{PATIENCE, Place, Running, until};

async fn lanes_with_consumers(service: &Running) -> Vec<String> {
    let stream = service.stream("background-jobs").await;
    let names =
        stream.consumer_names().filter_map(async |name| name.unwrap().strip_prefix("probe-").map(str::to_owned));
    let mut lanes: Vec<String> = names.collect().await;
    lanes.sort();
    lanes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_of_high_or_low_priority_has_a_consumer_from_its_first_job_on() {
    let mut place = Place::new().await;
    // Jobs that start where they are asked for need no lane.
    place.config.worker.eager = false;
    // The signal shall be enough.
    place.config.background.sweep = Duration::from_secs(3600);
    place.config.worker.enabled = false;
    let door = place.start().await;
    place.config.worker.enabled = true;
    let worker = place.start().await;
    assert_eq!(lanes_with_consumers(&door).await, ["normal"]);
    let low = door.enqueue(json!({"type": "probe", "payload": {}, "priority": -1})).await;
    door.finished(&low).await;
    assert_eq!(lanes_with_consumers(&door).await, ["low", "normal"]);
    let high = door.enqueue_many(vec![json!({"type": "probe", "payload": {}, "priority": 9}); 20]).await;
    for id in high {
        door.finished(&id).await;
    }
    assert_eq!(lanes_with_consumers(&door).await, ["high", "low", "normal"]);
    worker.stop().await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_nobody_told_of_is_found_by_its_consumer_or_its_messages() {
    let mut place = Place::new().await;
    place.config.worker.enabled = false;
    let service = place.start().await;
    let broker = place.broker().await;
    let used = || [Lane::High, Lane::Normal, Lane::Low].map(|lane| broker.is_lane_used("probe", lane));
    broker.look_for_lanes().await.unwrap();
    assert_eq!(used(), [false, true, false]);
    let jetstream = async_nats::jetstream::new(service.nats.clone());
    let sent = jetstream.publish(service.subject("jobs.probe.high"), "of a process without this version".into()).await;
    sent.unwrap().await.unwrap();
    broker.look_for_lanes().await.unwrap();
    assert_eq!(used(), [true, true, false]);
    service.enqueue(json!({"type": "probe", "payload": {}, "priority": -1})).await;
    until(async || {
        broker.look_for_lanes().await.unwrap();
        (used() == [true, true, true]).then_some(())
    })
    .await;
    broker.close().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_found_nothing_says_so_and_is_made_again_at_once() {
    let mut place = Place::new().await;
    place.config.worker.enabled = false;
    let service = place.start().await;
    let broker = place.broker().await;
    let [_, mut normal, _] = LanePull::open_all(&broker, "probe").await.unwrap();
    normal.request(1).await;
    assert_eq!((normal.lane, normal.credit()), (Lane::Normal, 1));
    // The broker forgets it after five seconds.
    let lapsed = tokio::time::timeout(Duration::from_secs(60), normal.next()).await.expect("nobody was told");
    let lapsed = lapsed.unwrap();
    assert!(lapsed.is_none(), "{lapsed:?}");
    assert_eq!(normal.credit(), 0);
    normal.request(1).await;
    let id = service.enqueue(json!({"type": "probe", "payload": {}})).await;
    let delivery = normal.next().await.unwrap().unwrap();
    assert_eq!(delivery.wake_up.unwrap().id.to_string(), id);
    broker.close().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_when_requests_are_taken_back_is_there_again_at_once() {
    let mut place = Place::new().await;
    place.config.worker.enabled = false;
    // What got lost on its way would come again far too late.
    place.config.background.ack_wait = Duration::from_secs(3600);
    let service = place.start().await;
    service.enqueue_many(vec![json!({"type": "probe", "payload": {}}); 4000]).await;
    let broker = place.broker().await;
    let [_, mut normal, _] = LanePull::open_all(&broker, "probe").await.unwrap();
    let mut seen = HashSet::new();
    for _ in 0..4 {
        normal.request(4000).await;
        seen.insert(normal.next().await.unwrap().unwrap().wake_up.unwrap().id);
        normal.withdraw().await.unwrap();
    }
    let all = async {
        while seen.len() < 4000 {
            normal.request(4000 - normal.credit()).await;
            if let Some(delivery) = normal.next().await.unwrap() {
                seen.insert(delivery.wake_up.unwrap().id);
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("some messages got lost");
    broker.close().await;
    service.stop().await;
}
