//! Postgres is lost for good, and a standby takes its place behind the same address.

use std::time::Duration;

use serde_json::json;

use crate::{
    books,
    harness::{Place, Running, until},
    load::Load,
    own::{OwnPostgres, Places, open_folder},
    proxy::{Mode, Proxy},
};

/// A primary with a standby, and a place whose way to the primary can be led to the standby.
struct Pair {
    primary: OwnPostgres,
    standby: OwnPostgres,
    /// From the standby to the primary.
    replication: Proxy,
    address: Proxy,
    place: Place,
    _folder: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        let folder = open_folder();
        let mut primary = OwnPostgres::new(&folder.path().join("primary"), &[], Places::Together).await;
        primary.start().await;
        primary.run("CREATE DATABASE queue").await;
        let replication = Proxy::start(primary.address()).await;
        let mut standby = OwnPostgres::standby(&folder.path().join("standby"), replication.address).await;
        standby.start().await;
        let address = Proxy::start(primary.address()).await;
        let mut place = Place::new().await;
        place.config.database.url = format!("postgres://queue@127.0.0.1:{}/queue", address.address.port());
        place.config.worker.lease = Duration::from_secs(30);
        Self { primary, standby, replication, address, place, _folder: folder }
    }

    /// Returns when the standby has everything.
    async fn in_step(&self) {
        let pool = sqlx::PgPool::connect(&self.primary.url("postgres")).await.unwrap();
        let behind = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
        until(async || {
            let n: i64 = sqlx::query_scalar(behind).fetch_one(&pool).await.unwrap();
            (n == 1).then_some(())
        })
        .await;
        pool.close().await;
    }

    async fn fail_over(&mut self) {
        self.primary.kill().await;
        self.standby.run("SELECT pg_promote()").await;
        self.address.lead_to(self.standby.address());
        self.address.set(Mode::Cut);
        self.address.set(Mode::Pass);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_synchronous_standby_loses_no_accepted_job_and_no_result() {
    let mut pair = Pair::start().await;
    pair.primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    pair.primary.run("SELECT pg_reload_conf()").await;
    let service = pair.place.start().await;
    let load = Load::start(service.url(""), "probe", |n| json!({"sleepMs": n % 5 * 20}));
    load.accepts(100).await;

    pair.fail_over().await;
    load.accepts(100).await;
    let told = load.stop().await;

    assert!(told.refused.iter().all(|code| code == "unavailable"), "{:?}", told.refused);
    books::all_ran_once(&pair.place, &service, &told.accepted).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_to_a_standby_that_lagged_what_it_never_heard_of_is_gone_and_all_else_goes_on() {
    let mut pair = Pair::start().await;
    let service = pair.place.start().await;
    let known = accepted(&service, 20).await;
    pair.in_step().await;
    pair.replication.set(Mode::Cut);
    // Accepted and not yet run: the broker knows of them, and the new primary does not.
    let held = accepted(&service, 5).await;
    for id in &held {
        pair.place.journal.until(id, "start").await;
    }
    pair.fail_over().await;
    pair.place.journal.release();

    let new = until(async || {
        let answer = service.ask("enqueue", json!({"type": "probe", "payload": {}}).to_string()).await;
        answer.code().is_none().then(|| answer.body["jobId"].as_str().unwrap().to_owned())
    })
    .await;
    let mut ids = known;
    ids.push(new.clone());
    pair.place.journal.until(&new, "start").await;
    until(async || {
        pair.place.journal.release();
        let over = ids.iter().filter(|id| pair.place.journal.count(id, "end") >= 1).count();
        (over == ids.len()).then_some(())
    })
    .await;
    // Each connection to the old primary fails one read.
    until(async || service.ask("getStats", "").await.code().is_none().then_some(())).await;
    books::all_completed_once(&pair.place, &service, &ids).await;
    for id in &held {
        let answer = service.ask("getJob", json!({"jobId": id}).to_string()).await;
        assert_eq!(answer.code(), Some("job_not_found"), "{}", answer.body);
    }
    // Nothing is left of them: their wake-ups lead nowhere, and are taken away.
    until(async || {
        let work = service.stream("background-jobs").await;
        (work.cached_info().state.messages == 0).then_some(())
    })
    .await;
    service.stop().await;
}

async fn accepted(service: &Running, n: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..n {
        ids.push(service.probe(json!({"wait": true})).await);
    }
    ids
}
