//! Workers ask the broker for messages without a gap, however long none comes.

use std::{collections::HashSet, time::Duration};

use queue_service::{broker::pull::LanePull, job::Lane};
use serde_json::json;

use crate::harness::{PATIENCE, Place};

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
