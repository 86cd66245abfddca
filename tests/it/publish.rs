//! Wake-ups on their way to the broker.

use queue_service::{
    broker::{Publisher, publish::Outgoing},
    supervise::Supervisor,
};
use uuid::Uuid;

use crate::harness::Place;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_waits_for_its_turn_and_is_not_taken_for_an_outage() {
    const AT_ONCE: usize = 150;
    const EACH: usize = 1000;
    let mut place = Place::new().await;
    place.config.worker.enabled = false;
    place.config.nats.store = bytesize::ByteSize::mib(128);
    // Makes the streams.
    let service = place.start().await;
    let broker = place.broker().await;
    let publisher = Publisher::start(&broker, &Supervisor::default()).await.unwrap();
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (publisher, subjects) = (publisher.clone(), broker.subjects.clone());
        floods.spawn(async move {
            let wake_up = |_| Outgoing::wake_up(&subjects, Uuid::now_v7(), "probe.normal", None);
            publisher.publish((0..EACH).map(wake_up).collect()).await
        });
    }
    let acked = floods.join_all().await.concat();
    assert_eq!(acked.iter().filter(|acked| **acked).count(), AT_ONCE * EACH);
    assert_eq!(publisher.trouble(), None);
    assert_eq!(service.published().await, (AT_ONCE * EACH) as u64);
    broker.close().await;
    service.stop().await;
}
