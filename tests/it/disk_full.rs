//! Disks run full, of the broker and of the database; what was promised stays true, and nobody has to help but by making
//! room.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use crate::{
    books,
    disk::SmallDisk,
    harness::{Place, Running, until},
    own::{OwnNats, OwnPostgres, Places, open_folder},
};

async fn health(service: &Running) -> Value {
    let answer = reqwest::get(service.url("/health")).await.unwrap();
    answer.json().await.unwrap()
}

/// Enqueues until `n` are accepted.
async fn accepted(service: &Running, n: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..n {
        ids.push(service.probe(json!({})).await);
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_taken_while_the_disk_of_the_broker_is_full_and_run_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut place = Place::new().await;
    let disk = SmallDisk::mount(&folder.path().join("small"), 24);
    let mut nats = OwnNats::on_disk(folder.path(), "full", "", disk);
    nats.start().await;
    place.config.nats.url = nats.url();
    // Else there would be nothing to store.
    place.config.worker.eager = false;
    let service = place.start().await;
    let mut ids = accepted(&service, 5).await;
    books::all_ran_once(&place, &service, &ids).await;

    nats.fill();
    ids.extend(accepted(&service, 200).await);
    // It says what is wrong and goes on taking jobs.
    until(async || {
        let health = health(&service).await;
        ids.push(service.probe(json!({})).await);
        (health["checks"]["jetstream"]["status"] == "degraded" && health["status"] == "degraded").then_some(())
    })
    .await;

    nats.make_room();
    // The broker's own demand: a server whose disk was full stores nothing until it is started again.
    nats.stop().await;
    nats.start().await;
    books::all_ran_once(&place, &service, &ids).await;
    until(async || (health(&service).await["status"] == "ok").then_some(())).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_taken_while_the_stream_of_wake_ups_is_full_and_run_as_it_drains() {
    let mut place = Place::new().await;
    // Half of it is for wake-ups: some hundreds.
    place.config.nats.store = bytesize::ByteSize::kib(128);
    place.config.worker.enabled = false;
    let door = place.start().await;
    let ids = door.enqueue_many(vec![json!({"type": "probe", "payload": {}}); 2000]).await;
    place.config.worker.enabled = true;
    place.config.worker.concurrency = 500;
    let worker = place.start().await;
    books::all_ran_once(&place, &worker, &ids).await;
    worker.stop().await;
    door.stop().await;
}

/// A place whose database is the test's own.
async fn place_on(postgres: &OwnPostgres) -> Place {
    let mut place = Place::new().await;
    postgres.run("CREATE DATABASE queue").await;
    place.config.database.url = postgres.url("queue");
    place.config.worker.lease = Duration::from_secs(30);
    place
}

/// Asks with one key until it is accepted; gives the codes of all refusals before.
async fn until_accepted(service: &Running, key: &str) -> (String, Vec<String>) {
    let mut refused = Vec::new();
    let request = json!({"type": "probe", "payload": {"note": "x".repeat(4000)}, "idempotencyKey": key}).to_string();
    let id = until(async || {
        let answer = service.ask("enqueue", request.as_str()).await;
        if let Some(code) = answer.code() {
            refused.push(code.to_owned());
            return None;
        }
        Some(answer.body["jobId"].as_str().unwrap().to_owned())
    })
    .await;
    (id, refused)
}

/// Enqueues until somebody is refused, and holds that refusal to be the right one.
async fn until_refused(service: &Running, ids: &mut Vec<String>) {
    for n in 0..20_000 {
        let request =
            json!({"type": "probe", "payload": {"note": "x".repeat(4000)}, "idempotencyKey": format!("k{n}")});
        let answer = service.ask("enqueue", request.to_string()).await;
        match answer.code() {
            None => ids.push(answer.body["jobId"].as_str().unwrap().to_owned()),
            Some(code) => {
                assert_eq!(code, "unavailable", "{}", answer.body);
                return;
            }
        }
    }
    panic!("the disk does not fill up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_room_for_rows_refuses_jobs_and_goes_on_when_there_is_room() {
    let folder = open_folder();
    let small = folder.path().join("small");
    let Some(disk) = SmallDisk::mount(&small, 120) else { return refused_by_the_database_itself().await };
    let mut postgres = OwnPostgres::new(&folder.path().join("own"), &[], Places::SmallData(disk)).await;
    postgres.start().await;
    let place = place_on(&postgres).await;
    let service = place.start().await;
    let held = service.probe(json!({"wait": true})).await;
    place.journal.until(&held, "start").await;
    let mut ids = vec![held];

    postgres.disk().fill();
    until_refused(&service, &mut ids).await;
    // Finished now, and written when that is possible.
    place.journal.release();
    postgres.disk().make_room();
    let (id, _) = until_accepted(&service, "last").await;
    ids.push(id);
    books::all_ran_once(&place, &service, &ids).await;
    service.stop().await;
}

/// As a full disk does, for every statement that adds a row of a job.
async fn refused_by_the_database_itself() {
    let place = Place::new().await;
    let service = place.start().await;
    let database = place.database().await;
    let run = async |sql: &str| run(&database, sql).await;
    run("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$")
    .await;
    run("CREATE TRIGGER full_disk BEFORE INSERT ON jobs EXECUTE FUNCTION full_disk()").await;
    let mut ids = Vec::new();
    until_refused(&service, &mut ids).await;
    run("DROP TRIGGER full_disk ON jobs").await;
    ids.push(until_accepted(&service, "last").await.0);
    books::all_ran_once(&place, &service, &ids).await;
    service.stop().await;
}

async fn run(database: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(database).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stopped_for_want_of_room_for_its_log_loses_nothing_that_was_accepted() {
    let folder = open_folder();
    // Where nothing can be mounted, it is stopped by the test; the rest is the same.
    let disk = SmallDisk::mount(&folder.path().join("small"), 40);
    let small = disk.is_some();
    let places = disk.map_or(Places::Together, Places::SmallLog);
    // Kept, so that each piece of it needs new room; used again they might go round on what there is.
    let settings = ["min_wal_size=2MB", "max_wal_size=4MB", "wal_keep_size=1GB"];
    let mut postgres = OwnPostgres::new(&folder.path().join("own"), &settings, places).await;
    postgres.start().await;
    let place = place_on(&postgres).await;
    let service = place.start().await;
    let held = service.probe(json!({"wait": true})).await;
    place.journal.until(&held, "start").await;
    let mut ids = vec![held];

    if small {
        postgres.disk().fill();
    } else {
        postgres.kill().await;
    }
    until_refused(&service, &mut ids).await;
    until(async || (!postgres.is_running()).then_some(())).await;
    place.journal.release();
    if small {
        postgres.disk().make_room();
    }
    postgres.start().await;
    ids.push(until_accepted(&service, "last").await.0);
    books::all_ran_once(&place, &service, &ids).await;
    service.stop().await;
}
