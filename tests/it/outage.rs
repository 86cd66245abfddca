//! The broker and the database go away, come back, and forget; no job is lost by it, and none completes twice.
//!
//! What is killed here belongs to the test alone: a nats-server each, and one Postgres.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use queue_service::{
    dev::{
        nats::{Nats, PortChoice},
        postgres::{Durability, Postgres, free_port},
    },
    service::Service,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::{Instant as Tokio, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    books,
    harness::{PATIENCE, Place, until},
    load::{Load, post},
    probe::Probe,
    proxy::{Mode, Proxy},
};

/// A child of ours is started again only when it had run for 2 s: sooner, it would be held to be unable to start.
const STARTED_WELL: Duration = Duration::from_millis(2_200);
/// What callers are promised while the database is away.
const ANSWER: Duration = Duration::from_secs(2);

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// A place whose broker is the test's own.
async fn place_with_nats(folder: &tempfile::TempDir) -> (Place, Nats) {
    let mut place = Place::new().await;
    let nats = Nats::start(folder.path(), PortChoice::Any).await.unwrap();
    place.config.nats.url = nats.url();
    (place, nats)
}

/// A place whose way to the database is the test's to close.
async fn place_behind_proxy() -> (Place, Proxy) {
    let mut place = Place::new().await;
    let mut url: url::Url = place.config.database.url.parse().unwrap();
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()))).await;
    url.set_port(Some(proxy.address.port())).unwrap();
    place.config.database.url = url.into();
    (place, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_under_load_costs_no_job_and_no_second_run() {
    let folder = tempfile::tempdir().unwrap();
    let (place, nats) = place_with_nats(&folder).await;
    let may_die = Tokio::now() + STARTED_WELL;
    let service = place.start().await;
    let load = Load::start(service.url(""), "probe", |n| json!({"sleepMs": n % 5 * 20}));
    load.accepts(40).await;
    sleep_until(may_die).await;

    kill(nats.pid().unwrap());
    load.accepts(100).await;
    let told = load.stop().await;

    assert_eq!(told.refused, [""; 0], "a broker that is away is no reason to refuse a job");
    books::all_ran_once(&place, &service, &told.accepted).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_forgot_everything_is_told_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut place, nats) = place_with_nats(&folder).await;
    place.config.worker.concurrency = 4;
    place.config.retry.max = Duration::from_secs(3);
    let service = place.start().await;
    let mut ids = Vec::new();
    // Told to come again in three seconds, which only the broker knows.
    for _ in 0..2 {
        let id = service.probe(json!({"fail": 1, "retryAfterMs": 3000})).await;
        service.until_status(&id, "pending").await;
        until(|| async { (place.journal.count(&id, "end") == 1).then_some(()) }).await;
        ids.push(id);
    }
    // In hand while the broker forgets: their acks must not remove somebody else's message.
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(service.probe(json!({"wait": true})).await);
    }
    for id in &running {
        until(|| async { (place.journal.count(id, "start") == 1).then_some(()) }).await;
    }
    let mut waiting = Vec::new();
    for n in 0..60 {
        let request = json!({"type": "probe", "payload": {}, "priority": n % 3 - 1});
        waiting.push(service.enqueue(request).await);
    }

    let port = nats.url().rsplit(':').next().unwrap().parse().unwrap();
    nats.stop();
    std::fs::remove_dir_all(folder.path().join("store")).unwrap();
    let _nats = Nats::start(folder.path(), PortChoice::Exactly(port)).await.unwrap();
    until(|| async { service.nats.flush().await.ok() }).await;
    place.journal.release();

    ids.extend(running.iter().chain(&waiting).cloned());
    books::all_completed_once(&place, &service, &ids).await;
    place.journal.all_ran_once(&running);
    place.journal.all_ran_once(&waiting);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_taken_while_the_broker_is_away_and_run_when_it_comes() {
    let mut place = Place::new().await;
    let port = free_port().unwrap();
    place.config.nats.url = format!("nats://127.0.0.1:{port}");
    let probe = Probe { journal: place.journal.clone() };
    let service =
        Service::start_with(place.config.clone(), axum::Router::new(), |types| Ok(types.with(probe)?)).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, service.ready()).await.unwrap(), "a start that needs no broker");
    let base = format!("http://{}", service.http_address().unwrap());
    let client = reqwest::Client::new();
    let mut ids = Vec::new();
    for _ in 0..20 {
        let (status, answer) = post(&client, &base, &json!({"type": "probe", "payload": {}})).await;
        assert_eq!(status, 201, "{answer}");
        ids.push(answer["jobId"].as_str().unwrap().to_owned());
    }
    let health: Value = client.get(format!("{base}/health")).send().await.unwrap().json().await.unwrap();
    assert_eq!((&health["status"], &health["checks"]["nats"]["status"]), (&json!("degraded"), &json!("degraded")));

    let folder = tempfile::tempdir().unwrap();
    let _nats = Nats::start(folder.path(), PortChoice::Exactly(port)).await.unwrap();
    let database = place.database().await;
    until(|| async {
        let completed = "SELECT count(*) FROM finished_jobs WHERE status = 'completed'";
        let n: i64 = sqlx::query_scalar(completed).fetch_one(&database).await.unwrap();
        (n == 20).then_some(())
    })
    .await;
    place.journal.all_ran_once(&ids);
    service.stop(CancellationToken::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_killed_under_load_loses_no_accepted_job_and_no_result() {
    let folder = tempfile::tempdir().unwrap();
    // Postgres runs as another user when we are root, and must get in.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let mut place = Place::new().await;
    let postgres = Postgres::start(&folder.path().join("postgres"), Durability::Durable).await.unwrap();
    let may_die = Tokio::now() + STARTED_WELL;
    place.config.database.url = postgres.url("queue");
    // Long enough to outlive the restart: then no run is taken over, and each has to end exactly once.
    place.config.worker.lease = Duration::from_secs(20);
    let service = place.start().await;
    let load = Load::start(service.url(""), "probe", |n| json!({"sleepMs": n % 5 * 20}));
    load.accepts(40).await;
    sleep_until(may_die).await;

    kill(postgres.pid().unwrap());
    load.accepts(100).await;
    let told = load.stop().await;

    assert!(told.refused.iter().all(|code| code == "unavailable"), "{:?}", told.refused);
    assert!(told.longest < ANSWER + Duration::from_millis(500), "an answer took {:?}", told.longest);
    books::all_ran_once(&place, &service, &told.accepted).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_a_silent_database_are_answered_within_two_seconds_and_it_recovers_by_itself() {
    let (place, proxy) = place_behind_proxy().await;
    let service = place.start().await;
    let warm = service.probe(json!({})).await;
    service.finished(&warm).await;

    proxy.set(Mode::Blackhole);
    let request = json!({"type": "probe", "payload": {}}).to_string();
    let id = json!({"jobId": warm}).to_string();
    // Several at once, so that they don't all meet the one connection that is tried first.
    let ask = async |verb: &str, body: &str| {
        let began = Instant::now();
        let answer = service.ask(verb, body).await;
        assert_eq!(answer.code(), Some("unavailable"), "{verb}: {}", answer.body);
        assert!(began.elapsed() < ANSWER, "{verb} was answered after {:?}", began.elapsed());
    };
    tokio::join!(
        ask("enqueue", &request),
        ask("enqueue", &request),
        ask("enqueue", &request),
        ask("getJob", &id),
        ask("getJob", &id),
        ask("listJobs", "{}"),
        ask("getStats", "{}"),
        ask("cancelJob", &id),
        ask("retryJob", &id),
    );

    // The connections that went silent stay so; only new ones work.
    proxy.set(Mode::Pass);
    let began = Instant::now();
    let id = until(|| async {
        let answer = service.ask("enqueue", request.as_str()).await;
        answer.code().is_none().then(|| answer.body["jobId"].as_str().unwrap().to_owned())
    })
    .await;
    let job = service.finished(&id).await;
    assert_eq!(job["status"], "completed");
    assert!(began.elapsed() < Duration::from_secs(8), "recovered after {:?}", began.elapsed());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_again_and_again_lose_no_job() {
    let (mut place, proxy) = place_behind_proxy().await;
    place.config.worker.lease = Duration::from_secs(20);
    let service = place.start().await;
    let load = Load::start(service.url(""), "probe", |n| json!({"sleepMs": n % 5 * 20}));
    for _ in 0..5 {
        load.accepts(20).await;
        proxy.set(Mode::Cut);
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.set(Mode::Pass);
    }
    let told = load.stop().await;
    assert!(told.refused.iter().all(|code| code == "unavailable"), "{:?}", told.refused);
    books::all_ran_once(&place, &service, &told.accepted).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_intake_refuses_at_once() {
    let (mut place, proxy) = place_behind_proxy().await;
    place.config.limits.intake = 3;
    let service = place.start().await;
    let warm = service.probe(json!({})).await;
    service.finished(&warm).await;

    proxy.set(Mode::Blackhole);
    let request = json!({"type": "probe", "payload": {}}).to_string();
    let began = Instant::now();
    let ask = async || (service.ask("enqueue", request.as_str()).await, began.elapsed());
    let (a, b, c, d, e) = tokio::join!(ask(), ask(), ask(), ask(), ask());
    let answers = [a, b, c, d, e];
    let with = |code| answers.iter().filter(move |(answer, _)| answer.code() == Some(code));
    assert_eq!((with("unavailable").count(), with("overloaded").count()), (3, 2), "{answers:?}");
    for (answer, after) in with("overloaded") {
        assert!(*after < Duration::from_millis(500), "refused after {after:?}");
        assert!(answer.body["retryAfterSeconds"].as_u64().is_some(), "{}", answer.body);
    }
    proxy.set(Mode::Cut);
    proxy.set(Mode::Pass);
    until(|| async { service.ask("enqueue", request.as_str()).await.code().is_none().then_some(()) }).await;
    service.stop().await;
}
