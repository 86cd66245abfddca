//! Workers die, freeze and are told to go, and no job suffers for it more than its contract says.
//!
//! Each worker is a process of its own; the job is a webhook, whose other end is in the test's hands.

use std::time::Duration;

use queue_service::config::{AllowPrivate, Config};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    books,
    child::Program,
    harness::{Place, Running, servers, until},
    receiver::Receiver,
};

/// A place with a service that takes jobs and runs none, and the settings of the workers to start beside it.
async fn place() -> (Place, Running, Config) {
    let mut place = Place::new().await;
    place.config.webhook.allow_private = AllowPrivate::All(true);
    let mut worker = place.config.clone();
    worker.http.enabled = false;
    worker.rpc.enabled = false;
    worker.worker.types = vec!["webhook-delivery".into()];
    place.config.worker.enabled = false;
    let door = place.start().await;
    (place, door, worker)
}

fn errors(job: &Value) -> Vec<&str> {
    job["errors"].as_array().unwrap().iter().map(|error| error["kind"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_worker_is_killed_is_run_by_another_and_the_lost_attempt_counts() {
    let (place, door, worker) = place().await;
    let mut receiver = Receiver::start().await;
    let mut first = Program::serve(&worker).await;
    let id = door.enqueue(receiver.held()).await;
    let _lost = receiver.call().await;
    let second = Program::serve(&worker).await;

    first.kill().await;
    receiver.call().await.answer("from the second");

    let job = door.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(2)), "{job}");
    assert_eq!(job["result"]["body"], "from the second");
    assert_eq!(errors(&job), ["lost"], "{job}");
    assert_eq!(receiver.deliveries(&id), 2);
    books::all_completed_once(&place, &door, &[id]).await;
    second.stop().await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_every_worker_ends_as_failed() {
    let (_place, door, worker) = place().await;
    let mut receiver = Receiver::start().await;
    let mut request = receiver.held();
    request["maxAttempts"] = json!(2);
    let mut first = Program::serve(&worker).await;
    let mut second = Program::serve(&worker).await;
    let id = door.enqueue(request).await;
    let _once = receiver.call().await;
    // Both may have taken it: whoever did not run it first does so next.
    let holder = door.job(&id).await["workerId"].as_str().unwrap().to_owned();
    let first_holds = holder.contains(&format!("-{}-", first.pid()));
    let (holder, other) = if first_holds { (&mut first, &mut second) } else { (&mut second, &mut first) };
    holder.kill().await;
    let _twice = receiver.call().await;
    other.kill().await;
    let third = Program::serve(&worker).await;

    let job = door.finished(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("failed"), &json!(2)), "{job}");
    assert_eq!(errors(&job), ["lost", "lost"], "{job}");
    assert_eq!(receiver.deliveries(&id), 2, "a third run would be one too many");
    third.stop().await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_that_wakes_up_late_can_not_overwrite_the_run_that_replaced_it() {
    let (place, door, worker) = place().await;
    let mut receiver = Receiver::start().await;
    let first = Program::serve(&worker).await;
    let id = door.enqueue(receiver.held()).await;
    let stale = receiver.call().await;
    let second = Program::serve(&worker).await;

    first.signal(Signal::STOP);
    let replacement = receiver.call().await;
    assert_eq!(stale.job, replacement.job);
    first.signal(Signal::CONT);
    stale.answer("stale");
    first.logged("lost the lease of job").await;
    // The stale outcome came first and is dropped all the same; the message is still the second worker's.
    assert_eq!(door.job(&id).await["status"], "processing");
    replacement.answer("fresh");

    let job = door.finished(&id).await;
    assert_eq!((&job["result"]["body"], &job["attempts"]), (&json!("fresh"), &json!(2)), "{job}");
    books::all_completed_once(&place, &door, &[id]).await;
    first.stop().await;
    second.stop().await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_spends_no_attempt_and_loses_no_result() {
    let (place, door, worker) = place().await;
    let receiver = Receiver::start().await;
    let first = Program::serve(&worker).await;
    let second = Program::serve(&worker).await;
    let load = async {
        let mut ids = Vec::new();
        for _ in 0..150 {
            ids.push(door.enqueue(receiver.slow(120)).await);
        }
        ids
    };
    let restart = async {
        until(|| async { (receiver.all_deliveries() > 20).then_some(()) }).await;
        first.stop().await;
        let third = Program::serve(&worker).await;
        second.stop().await;
        third
    };
    let (ids, third) = tokio::join!(load, restart);

    let attempts = books::all_completed_once(&place, &door, &ids).await;
    assert!(attempts.values().all(|attempt| *attempt == 1), "{attempts:?}");
    for id in &ids {
        assert_eq!(receiver.deliveries(id), 1, "job {id} was running when its worker was told to go, and could end");
    }
    third.stop().await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_outlasts_the_drain_is_handed_back_without_spending_its_attempt() {
    let (place, door, mut worker) = place().await;
    worker.worker.drain = Duration::from_millis(200);
    let mut receiver = Receiver::start().await;
    let first = Program::serve(&worker).await;
    let id = door.enqueue(receiver.held()).await;
    let _interrupted = receiver.call().await;
    first.stop().await;
    let job = door.job(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("pending"), &json!(0)), "{job}");

    let second = Program::serve(&worker).await;
    receiver.call().await.answer("done");
    let job = door.finished(&id).await;
    assert_eq!((&job["attempts"], errors(&job).len()), (&json!(1), 0), "{job}");
    books::all_completed_once(&place, &door, &[id]).await;
    second.stop().await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_again_and_again_lose_no_job() {
    let (place, door, worker) = place().await;
    let receiver = Receiver::start().await;
    let mut workers = vec![Program::serve(&worker).await, Program::serve(&worker).await];
    let load = async {
        let mut ids = Vec::new();
        for n in 0..120 {
            let mut request = receiver.slow(20 + n % 7 * 20);
            request["maxAttempts"] = json!(20);
            ids.push(door.enqueue(request).await);
        }
        ids
    };
    let murder = async {
        for round in 1..=3 {
            until(|| async { (receiver.all_deliveries() > round * 25).then_some(()) }).await;
            workers.remove(0).kill().await;
            workers.push(Program::serve(&worker).await);
        }
    };
    let (ids, ()) = tokio::join!(load, murder);

    let attempts = books::all_completed_once(&place, &door, &ids).await;
    for (id, attempts) in attempts {
        let delivered = receiver.deliveries(&id);
        assert!((1..=attempts as usize).contains(&delivered), "{id}: {delivered} deliveries in {attempts} attempts");
    }
    for worker in workers {
        worker.stop().await;
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_migrators_and_two_replicas_that_start_at_once_make_one_schema() {
    let mut place = Place::new().await;
    let postgres = &servers().await.postgres;
    let name = format!("{}_empty", place.config.nats.prefix);
    postgres.create_database(&name).await.unwrap();
    place.config.database.url = postgres.url(&name);
    let migrators: Vec<Program> = (0..10).map(|_| Program::start(&["migrate"], Some(&place.config))).collect();
    let (one, two) = tokio::join!(Program::serve(&place.config), Program::serve(&place.config));
    for mut migrator in migrators {
        let status = migrator.ended().await;
        assert!(status.success(), "{status}:\n{}", migrator.log());
    }

    let sql = "SELECT count(*) FILTER (WHERE success), count(*) FROM _sqlx_migrations";
    let applied: (i64, i64) = sqlx::query_as(sql).fetch_one(&place.database().await).await.unwrap();
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap().count() as i64;
    assert_eq!(applied, (files, files));
    one.stop().await;
    two.stop().await;
}
