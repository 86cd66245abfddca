//! A leaf node, and the streams on its hub: the service reaches them by the hub's JetStream domain.

use queue_service::dev::postgres::free_port;
use serde_json::{Value, json};

use crate::{
    books,
    harness::{Place, until},
    own::OwnNats,
};

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_hub_are_used_through_a_leaf_node_by_its_domain() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let mut hub = OwnNats::new(&folder.path().join("hub"), "hub", "");
    hub.configure(
        "hub",
        &format!(
            "jetstream {{ store_dir: \"{{store}}\", max_file_store: 2GB, domain: hub }}\n\
             leafnodes {{ listen: \"127.0.0.1:{port}\" }}"
        ),
    );
    let mut leaf = OwnNats::new(&folder.path().join("leaf"), "leaf", "");
    leaf.configure(
        "leaf",
        &format!(
            "jetstream {{ store_dir: \"{{store}}\", max_file_store: 2GB, domain: leaf }}\n\
             leafnodes {{ remotes: [ {{ url: \"nats-leaf://127.0.0.1:{port}\" }} ] }}"
        ),
    );
    hub.start().await;
    leaf.start().await;
    let mut place = Place::new().await;
    place.config.nats.url = leaf.url();
    place.config.nats.domain = Some("hub".into());
    // So that each job is a message.
    place.config.worker.eager = false;
    let client = async_nats::connect(leaf.url()).await.unwrap();
    until(|| async { client.request("$JS.hub.API.INFO", "".into()).await.ok() }).await;

    let service = place.start().await;
    let mut ids = service.enqueue_many(vec![json!({"type": "probe", "payload": {}}); 20]).await;
    for priority in [5, -5] {
        ids.push(service.enqueue(json!({"type": "probe", "payload": {"fail": 1}, "priority": priority})).await);
    }
    // Published to the leaf, kept by the hub, taken in through the leaf.
    let mut events = service.listen("events.*.enqueued.*").await;
    client.publish(service.subject("inbox.probe"), r#"{"payload": {}}"#.into()).await.unwrap();
    let (_, taken) = events.next().await;
    ids.push(taken["jobId"].as_str().unwrap().to_owned());
    books::all_completed_once(&place, &service, &ids).await;

    let streams = |domain: &'static str| {
        let client = client.clone();
        async move {
            let answer = client.request(format!("$JS.{domain}.API.INFO"), "".into()).await.unwrap();
            serde_json::from_slice::<Value>(&answer.payload).unwrap()["streams"].clone()
        }
    };
    assert_eq!((streams("hub").await, streams("leaf").await), (json!(5), json!(0)));
    // Acknowledged in time: else they would come again.
    let name = format!("$JS.hub.API.CONSUMER.INFO.{0}-background-jobs.probe-normal", service.config.nats.prefix);
    until(|| async {
        let answer = client.request(name.clone(), "".into()).await.ok()?;
        let info: Value = serde_json::from_slice(&answer.payload).unwrap();
        (info["num_ack_pending"] == 0 && info["num_pending"] == 0).then_some(())
    })
    .await;
    service.stop().await;
}
