//! A cluster of three nats-servers with three copies of each stream loses one of them in every way; jobs go on.
//!
//! The third server reaches the other two through a wire of the test's, so that it can be cut off from them.

use std::{net::SocketAddr, time::Duration};

use queue_service::dev::postgres::free_port;
use serde_json::{Value, json};

use crate::{
    books,
    harness::{Place, Running, until},
    load::Load,
    own::OwnNats,
    proxy::{Mode, Proxy},
};

struct Cluster {
    servers: Vec<OwnNats>,
    /// From the third to the others.
    wires: Vec<Proxy>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = [(); 3].map(|()| free_port().unwrap());
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let wires = vec![Proxy::start(local(ports[0])).await, Proxy::start(local(ports[1])).await];
        let routes = [vec![ports[1]], vec![ports[0]], wires.iter().map(|wire| wire.address.port()).collect()];
        let mut servers: Vec<OwnNats> = (0..3)
            .map(|n| {
                let routes: Vec<String> =
                    routes[n].iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
                // What it says of itself leads nowhere: else the others would go round the wire.
                let more = format!(
                    "cluster {{ name: trio, listen: \"127.0.0.1:{}\", advertise: \"127.0.0.1:1\", no_advertise: true, \
                     pool_size: -1, routes: [{}] }}",
                    ports[n],
                    routes.join(",")
                );
                OwnNats::new(&folder.path().join(n.to_string()), &format!("n{n}"), &more)
            })
            .collect();
        for server in &mut servers {
            server.start().await;
        }
        Self { servers, wires, _folder: folder }
    }

    fn url(&self) -> String {
        self.servers.iter().map(OwnNats::url).collect::<Vec<_>>().join(",")
    }

    /// Returns when JetStream answers, which it does when the servers have found one another.
    async fn is_up(&self) {
        let client = async_nats::connect(self.servers.iter().map(OwnNats::url).collect::<Vec<_>>()).await.unwrap();
        until(|| async { client.request("$JS.API.INFO", "".into()).await.is_ok().then_some(()) }).await;
    }

    /// A place on this cluster, and a service there.
    async fn place(&self) -> (Place, Running) {
        let mut place = Place::new().await;
        place.config.nats.url = self.url();
        place.config.nats.replicas = 3;
        // Long enough that nothing is taken over: each run has to end exactly once.
        place.config.worker.lease = Duration::from_secs(30);
        self.is_up().await;
        let service = place.start().await;
        until(|| async { service.cluster_of_work_stream().await.ok() }).await;
        (place, service)
    }
}

impl Running {
    /// What the broker says of the copies of the work stream.
    async fn cluster_of_work_stream(&self) -> Result<Value, String> {
        let subject = format!("$JS.API.STREAM.INFO.{}-background-jobs", self.config.nats.prefix);
        let info = async_nats::Request::new().payload("".into()).timeout(Some(Duration::from_secs(2)));
        let answer = self.nats.send_request(subject, info).await.map_err(|e| e.to_string())?;
        let info: Value = serde_json::from_slice(&answer.payload).unwrap();
        let cluster = info["cluster"].clone();
        cluster["leader"].as_str().filter(|name| !name.is_empty()).ok_or("no leader")?;
        Ok(cluster)
    }

    /// Returns when a stream is set so.
    async fn stream_is_set(&self, name: &str, field: &str, value: Value) {
        let subject = format!("$JS.API.STREAM.INFO.{}-{name}", self.config.nats.prefix);
        until(|| async {
            let answer = self.nats.request(subject.clone(), "".into()).await.ok()?;
            let info: Value = serde_json::from_slice(&answer.payload).unwrap();
            (info["config"][field] == value).then_some(())
        })
        .await;
    }

    async fn leader(&self) -> usize {
        let cluster = until(|| async { self.cluster_of_work_stream().await.ok() }).await;
        cluster["leader"].as_str().unwrap()[1..].parse().unwrap()
    }

    /// Returns when this test's client reaches the service, which may be on another server: one that has just come back
    /// learns only bit by bit who listens at the others.
    async fn is_reached(&self) {
        until(|| async { self.nats.request(self.subject("getStats"), "{}".into()).await.ok() }).await;
    }

    /// Returns when all three copies are whole.
    async fn copies_are_current(&self) {
        until(|| async {
            let cluster = self.cluster_of_work_stream().await.ok()?;
            let others = cluster["replicas"].as_array()?;
            (others.len() == 2 && others.iter().all(|other| other["current"] == true)).then_some(())
        })
        .await;
    }
}

fn load(service: &Running) -> Load {
    Load::start(service.url(""), "probe", |n| json!({"sleepMs": n % 5 * 20}))
}

/// Every accepted job has run to its end once, and the broker was no reason to refuse one.
async fn all_went_well(place: &Place, service: Running, load: Load) {
    let told = load.stop().await;
    assert_eq!(told.refused, [""; 0]);
    service.is_reached().await;
    books::all_ran_once(place, &service, &told.accepted).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_server_get_copies_when_the_settings_ask_for_them() {
    let cluster = Cluster::start().await;
    cluster.is_up().await;
    let mut place = Place::new().await;
    place.config.nats.url = cluster.url();
    async fn some_jobs(place: &Place, service: Running) {
        let load = load(&service);
        load.accepts(10).await;
        all_went_well(place, service, load).await;
    }
    let alone = place.start().await;
    alone.stream_is_set("background-jobs-events", "persist_mode", json!("async")).await;
    some_jobs(&place, alone).await;
    place.config.nats.replicas = 3;
    let copied = place.start().await;
    for stream in ["background-jobs", "background-jobs-dlq", "background-jobs-events"] {
        copied.stream_is_set(stream, "num_replicas", json!(3)).await;
    }
    copied.copies_are_current().await;
    some_jobs(&place, copied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_when_the_leader_of_a_cluster_is_killed() {
    let mut cluster = Cluster::start().await;
    let (place, service) = cluster.place().await;
    let load = load(&service);
    load.accepts(40).await;
    let leader = service.leader().await;
    cluster.servers[leader].kill().await;
    assert_ne!(service.leader().await, leader);
    load.accepts(40).await;
    cluster.servers[leader].start().await;
    all_went_well(&place, service, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_when_a_server_is_cut_off_from_its_cluster_and_comes_back() {
    let cluster = Cluster::start().await;
    let (place, service) = cluster.place().await;
    let load = load(&service);
    load.accepts(40).await;
    cluster.wires.iter().for_each(|wire| wire.set(Mode::Blackhole));
    load.accepts(200).await;
    cluster.wires.iter().for_each(|wire| wire.set(Mode::Cut));
    cluster.wires.iter().for_each(|wire| wire.set(Mode::Pass));
    service.copies_are_current().await;
    all_went_well(&place, service, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_while_the_servers_of_a_cluster_are_replaced_one_by_one() {
    let mut cluster = Cluster::start().await;
    let (place, service) = cluster.place().await;
    let load = load(&service);
    for n in 0..3 {
        load.accepts(20).await;
        cluster.servers[n].stop().await;
        load.accepts(20).await;
        cluster.servers[n].start().await;
        service.copies_are_current().await;
    }
    all_went_well(&place, service, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_a_cluster_that_lost_its_store_gets_it_back_from_the_others() {
    let mut cluster = Cluster::start().await;
    let (place, service) = cluster.place().await;
    let load = load(&service);
    load.accepts(40).await;
    let leader = service.leader().await;
    cluster.servers[leader].kill().await;
    std::fs::remove_dir_all(cluster.servers[leader].store()).unwrap();
    load.accepts(40).await;
    cluster.servers[leader].start().await;
    service.copies_are_current().await;
    all_went_well(&place, service, load).await;
}
