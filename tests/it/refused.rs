//! Streams, consumers and sizes that a sane broker refuses: each is told with the broker's words, and costs only what
//! depends on it.

use async_nats::jetstream::stream::Config as StreamConfig;
use serde_json::{Value, json};

use crate::{
    child::Program,
    harness::{Place, Running, until},
    own::OwnNats,
};

/// A place on a server of the test's own.
struct Site {
    place: Place,
    nats: OwnNats,
    _folder: tempfile::TempDir,
}

impl Site {
    /// `limits`: of JetStream. `more`: further settings of the server.
    async fn new(limits: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut nats = OwnNats::new(folder.path(), "own", "");
        nats.configure("own", &format!("jetstream {{ store_dir: \"{{store}}\", {limits} }}\n{more}"));
        nats.start().await;
        let mut place = Place::new().await;
        place.config.nats.url = nats.url();
        Self { place, nats, _folder: folder }
    }

    /// With a stream of somebody else on these subjects below the prefix.
    async fn taken(subjects: &str) -> Self {
        let site = Self::new("max_file_store: 2GB", "").await;
        let subjects = vec![format!("{}.{subjects}", site.place.config.nats.prefix)];
        let foreign = StreamConfig { name: "somebody-elses".into(), subjects, ..StreamConfig::default() };
        site.jetstream().await.create_stream(foreign).await.unwrap();
        site
    }

    /// On an account with these limits.
    async fn account(limits: &str) -> Self {
        let users = "users: [{user: me, password: it}]";
        let account = format!("A {{ jetstream {{ max_file: 4GB, max_mem: 1MB, {limits} }}, {users} }}");
        let more = format!("accounts {{ {account} }}\nno_auth_user: me");
        Self::new("max_file_store: 4GB", &more).await
    }

    async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(async_nats::connect(self.nats.url()).await.unwrap())
    }

    async fn streams(&self) -> Vec<String> {
        use futures_util::TryStreamExt;
        let prefix = format!("{}-", self.place.config.nats.prefix);
        let mut names: Vec<String> = self.jetstream().await.stream_names().try_collect().await.unwrap();
        names.retain(|name| name.starts_with(&prefix));
        names.sort();
        names.iter().map(|name| name.replace(&prefix, "")).collect()
    }

    async fn give_way(&self) {
        self.jetstream().await.delete_stream("somebody-elses").await.unwrap();
    }
}

async fn checks(service: &Running) -> Value {
    let health: Value = reqwest::get(service.url("/health")).await.unwrap().json().await.unwrap();
    health["checks"].clone()
}

/// What health says of one part, once it does.
async fn told(service: &Running, part: &str, words: &[&str]) -> Value {
    let check = until(async || checks(service).await.get(part).cloned()).await;
    let detail = check["detail"].as_str().unwrap();
    words.iter().for_each(|word| assert!(detail.contains(word), "{part} says nothing of {word}: {detail}"));
    check
}

async fn is_well(service: &Running, part: &str) {
    until(async || checks(service).await.get(part).is_none_or(|check| check["status"] == "ok").then_some(())).await;
}

/// By way of the broker, of each lane.
async fn jobs_run(service: &Running) {
    for priority in [0, 5, -5] {
        let id = service.enqueue(json!({"type": "probe", "payload": {}, "priority": priority})).await;
        assert_eq!(service.finished(&id).await["status"], "completed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_stream_on_the_events_costs_their_replay_alone() {
    let mut site = Site::taken("events.>").await;
    site.place.config.worker.eager = false;
    let service = site.place.start().await;
    let check = told(&service, "events", &["subjects overlap", "10065", "somebody-elses", "nats.prefix"]).await;
    assert_eq!(check["status"], "degraded");
    let mut events = service.listen("events.probe.*.*").await;
    jobs_run(&service).await;
    events.until_state("completed").await;
    assert_eq!(checks(&service).await["jetstream"]["status"], "ok");
    site.give_way().await;
    is_well(&service, "events").await;
    assert_eq!(site.streams().await.len(), 5);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_stream_on_the_dead_letters_gets_none_and_they_wait_for_ours() {
    let mut site = Site::taken("dlq.>").await;
    site.place.config.worker.eager = false;
    let service = site.place.start().await;
    told(&service, "dead-letters", &["subjects overlap", "somebody-elses", "wait in the database"]).await;
    jobs_run(&service).await;
    let id = service.enqueue(json!({"type": "probe", "payload": {"fail": 1}, "maxAttempts": 1})).await;
    assert_eq!(service.finished(&id).await["status"], "failed");
    jobs_run(&service).await;
    let mut foreign = site.jetstream().await.get_stream("somebody-elses").await.unwrap();
    assert_eq!(foreign.info().await.unwrap().state.messages, 0);
    site.give_way().await;
    let jetstream = site.jetstream().await;
    let name = format!("{}-background-jobs-dlq", service.config.nats.prefix);
    until(async || {
        let mut stream = jetstream.get_stream(&name).await.ok()?;
        (stream.info().await.ok()?.state.messages == 1).then_some(())
    })
    .await;
    is_well(&service, "dead-letters").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_stream_on_the_inbox_costs_the_inbox_alone() {
    let mut site = Site::taken("inbox.*").await;
    site.place.config.worker.eager = false;
    let service = site.place.start().await;
    told(&service, "inbox", &["subjects overlap", "somebody-elses", "not taken in"]).await;
    jobs_run(&service).await;
    site.give_way().await;
    is_well(&service, "inbox").await;
    let inbox = service.subject("inbox.probe");
    let jetstream = site.jetstream().await;
    jetstream.publish(inbox, "{\"payload\": {}}".into()).await.unwrap().await.unwrap();
    let done = async || service.call("getStats", json!({})).await["byType"]["probe"]["completed"] == 4;
    until(async || done().await.then_some(())).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_work_stream_jobs_run_that_start_here_and_the_cause_is_told_once() {
    let site = Site::taken("jobs.>").await;
    let service = site.place.start().await;
    let words = ["subjects overlap", "somebody-elses", "run only where a worker can start them"];
    let check = told(&service, "jetstream", &words).await;
    assert_eq!(check["status"], "degraded");
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed", "there is room for it here");
    // More than there is room for: the rest waits for the stream, and nothing of it is given to the other one.
    let ids =
        service.enqueue_many((0..100).map(|_| json!({"type": "probe", "payload": {"sleepMs": 50}})).collect()).await;
    let mut foreign = site.jetstream().await.get_stream("somebody-elses").await.unwrap();
    assert_eq!(foreign.info().await.unwrap().state.messages, 0);
    let program = Program::serve(&site.place.config).await;
    until(async || (program.log().matches("subjects overlap").count() > 0).then_some(())).await;
    site.give_way().await;
    for id in ids {
        assert_eq!(service.finished(&id).await["status"], "completed");
    }
    is_well(&service, "jetstream").await;
    program.logged("background-jobs is there now").await;
    let log = program.log();
    assert_eq!(log.lines().filter(|line| line.contains(" WARN ") && line.contains("overlap")).count(), 1, "{log}");
    program.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn little_storage_is_shared_out_also_with_a_second_prefix() {
    let mut site = Site::new("max_file_store: 1500MB", "").await;
    site.place.config.worker.eager = false;
    let mut second = Place::new().await;
    for config in [&mut site.place.config, &mut second.config] {
        config.nats.url = site.nats.url();
        config.nats.store = bytesize::ByteSize::gib(2);
        config.worker.eager = false;
    }
    let service = site.place.start().await;
    let check = told(&service, "limits", &["nats.store", "no room for more"]).await;
    assert_eq!(check["status"], "ok", "all runs");
    assert_eq!(site.streams().await.len(), 5);
    jobs_run(&service).await;
    let other = second.start().await;
    jobs_run(&other).await;
    other.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_room_jobs_run_that_start_here_and_the_cause_is_told() {
    let mut site = Site::new("max_file_store: 1MB", "").await;
    site.place.config.nats.store = bytesize::ByteSize::gib(2);
    let service = site.place.start().await;
    told(&service, "jetstream", &["insufficient storage", "10047", "max_file_store", "nats.store"]).await;
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    site.nats.stop().await;
    site.nats.configure("own", "jetstream { store_dir: \"{store}\", max_file_store: 2GB }");
    site.nats.start().await;
    is_well(&service, "jetstream").await;
    let ids = service.enqueue_many((0..100).map(|_| json!({"type": "probe", "payload": {}})).collect()).await;
    for id in ids {
        assert_eq!(service.finished(&id).await["status"], "completed");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_of_three_streams_has_those_that_matter_most() {
    let mut site = Site::account("max_streams: 3").await;
    site.place.config.worker.eager = false;
    let service = site.place.start().await;
    jobs_run(&service).await;
    assert_eq!(site.streams().await.len(), 3);
    let checks = checks(&service).await;
    assert_eq!(checks["jetstream"]["status"], "ok");
    let refused: Vec<&str> = ["dead-letters", "events", "inbox", "inbox-dead-letters"]
        .into_iter()
        .filter(|part| checks.get(part).is_some())
        .collect();
    assert_eq!(refused.len(), 2, "{checks}");
    for part in refused {
        told(&service, part, &["maximum number of streams reached", "10027", "five streams"]).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_account_are_taken_over() {
    for limits in ["max_ack_pending: 1000", "max_consumers: 500"] {
        let mut site = Site::account(limits).await;
        site.place.config.worker.eager = false;
        let service = site.place.start().await;
        jobs_run(&service).await;
        assert_eq!(site.streams().await.len(), 5, "{limits}");
        let checks = checks(&service).await;
        assert!(checks.as_object().unwrap().values().all(|check| check["status"] == "ok"), "{limits}: {checks}");
        if limits.contains("ack") {
            told(&service, "limits", &["1000", "background.max_unanswered"]).await;
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_server_are_taken_over() {
    let limits = "max_file_store: 2GB, limits: { max_ack_pending: 1000, max_request_batch: 5, duplicate_window: 20s }";
    let mut site = Site::new(limits, "").await;
    site.place.config.worker.eager = false;
    let service = site.place.start().await;
    jobs_run(&service).await;
    assert_eq!(site.streams().await.len(), 5);
    let ids = service.enqueue_many((0..100).map(|_| json!({"type": "probe", "payload": {}})).collect()).await;
    for id in ids {
        assert_eq!(service.finished(&id).await["status"], "completed");
    }
    let checks = checks(&service).await;
    assert!(checks.as_object().unwrap().values().all(|check| check["status"] == "ok"), "{checks}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_are_refused_cost_their_lanes_alone() {
    let site = Site::account("max_consumers: 3").await;
    let service = site.place.start().await;
    let check = told(&service, "consumers", &["maximum consumers limit", "10026", "max_consumers"]).await;
    assert_eq!(check["status"], "degraded");
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    service.stop().await;
}
