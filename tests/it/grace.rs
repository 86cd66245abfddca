//! Runs outside that nobody could speak for: a deploy, a crash of the service and an outage of its servers spend nobody's
//! attempt, and who is really gone is noticed one lease later.

use std::time::Duration;

use queue_service::{
    config::AllowPrivate,
    store::grace::{Grace, Outage},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    child::Program,
    harness::{Place, until},
    own::{OwnNats, OwnPostgres, Places, open_folder},
    receiver::Receiver,
    stop::{Caller, fetch, run_of},
};

/// Of the runs outside: shorter than any outage here.
const LEASE: Duration = Duration::from_secs(3);
/// For how long nobody takes a sign of life.
const OUTAGE: Duration = Duration::from_millis(4500);

/// Programs that do two jobs which they have fetched and two which they have accepted.
struct Office {
    fetched: Vec<Value>,
    accepted: Vec<String>,
    beating: Option<JoinHandle<()>>,
}

impl Office {
    async fn open(caller: &Caller) -> Self {
        caller.register().await;
        let beat = json!({"type": "called", "handler": "nats", "timeout": "10m", "heartbeat": "3s"});
        caller.call("registerType", beat).await;
        let mut office = Self { fetched: Vec::new(), accepted: Vec::new(), beating: None };
        let mut handler = caller.handler().await;
        for _ in 0..2 {
            office.fetched.push(caller.fetched(LEASE.as_millis() as u64).await);
            office.accepted.push(caller.called().await);
            let request = handler.next().await;
            handler.reply(request, &[("Job-Accepted", "true")], "").await;
        }
        for id in &office.accepted {
            // From now on it is held by its heartbeat alone.
            until(async || {
                let sign = json!({"workerId": "w", "runs": [{"jobId": id, "run": 1}]});
                let answer = caller.call("work.heartbeat", sign).await;
                (answer["runs"][0]["state"] == "held").then_some(())
            })
            .await;
        }
        office
    }

    fn beat(&self) -> Value {
        let accepted = self.accepted.iter().map(|id| json!({"jobId": id, "run": 1}));
        let runs: Vec<Value> = self.fetched.iter().map(run_of).chain(accepted).collect();
        json!({"workerId": "w", "runs": runs})
    }

    /// All of them report several times in their lease, whether somebody answers or not.
    fn go_on(&mut self, caller: &Caller) {
        let (caller, beat) = (caller.clone(), self.beat());
        self.beating = Some(tokio::spawn(async move {
            loop {
                let _ = tokio::time::timeout(LEASE / 6, caller.try_ask("work.heartbeat", beat.clone())).await;
                tokio::time::sleep(LEASE / 6).await;
            }
        }));
    }

    fn pause(&mut self) {
        if let Some(beating) = self.beating.take() {
            beating.abort();
        }
    }

    /// None of them has lost anything, and all can end.
    async fn end(mut self, caller: &Caller) {
        let beat = caller.call("work.heartbeat", self.beat()).await;
        let states: Vec<&Value> = beat["runs"].as_array().unwrap().iter().map(|run| &run["state"]).collect();
        assert_eq!(states, [&json!("held"); 4], "{beat}");
        self.pause();
        for job in &self.fetched {
            caller.call("work.complete", run_of(job)).await;
        }
        for id in &self.accepted {
            caller.call("finish", json!({"jobId": id, "run": 1, "result": 1})).await;
        }
        let ids = self.fetched.iter().map(|job| &job["id"]).cloned().chain(self.accepted.iter().map(|id| json!(id)));
        for id in ids {
            let job = caller.call("getJob", json!({"jobId": id})).await;
            assert_eq!(
                (&job["status"], &job["attempts"], &job["errors"]),
                (&json!("completed"), &json!(1), &json!([])),
                "{job}"
            );
        }
    }
}

/// Somebody waits for work for as long as this is not dropped, which looks for leases that are over.
struct Waiting(JoinHandle<()>);

impl Waiting {
    fn begin(caller: &Caller) -> Self {
        let caller = caller.clone();
        Self(tokio::spawn(async move {
            loop {
                let _ = caller.try_ask("work.fetch", fetch(1000)).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The programs go on a moment later than the service, in which it sweeps twice and whoever waits looks twice.
async fn go_on_later(office: &mut Office, caller: &Caller, waiting: Waiting) {
    tokio::time::sleep(Duration::from_millis(1100)).await;
    office.go_on(caller);
    tokio::time::sleep(LEASE).await;
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_spends_no_attempt_of_runs_outside() {
    let mut place = Place::new().await;
    place.config.worker.drain = Duration::from_secs(60);
    place.config.webhook.allow_private = AllowPrivate::All(true);
    let (mut program, mut receiver) = (Program::serve(&place.config).await, Receiver::start().await);
    let caller = Caller::of(&place, &program).await;
    let mut office = Office::open(&caller).await;
    let draining = caller.enqueue(receiver.held()).await;
    let call = receiver.call().await;
    office.go_on(&caller);

    program.signal(Signal::TERM);
    // The called run drains for longer than a lease.
    tokio::time::sleep(OUTAGE).await;
    let gone = office.beat();
    assert_eq!(caller.call("work.heartbeat", gone).await["runs"][0]["state"], "held");
    call.answer("done");
    assert!(program.ended().await.success(), "{}", program.log());
    office.pause();
    tokio::time::sleep(OUTAGE).await;

    let program = Program::serve(&place.config).await;
    let caller = Caller::of(&place, &program).await;
    let waiting = Waiting::begin(&caller);
    go_on_later(&mut office, &caller, waiting).await;
    assert_eq!(caller.call("getJob", json!({"jobId": draining})).await["status"], "completed");
    let log = program.log();
    assert!(log.contains("extended the leases of 4 runs outside"), "{log}");
    office.end(&caller).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_service_spends_no_attempt_of_runs_outside_whether_it_is_back_soon_or_late() {
    // With the longer lease of the worker the one before may still be there, for all that its successor knows.
    for lease in [Duration::from_millis(1200), Duration::from_secs(30)] {
        let mut place = Place::new().await;
        place.config.worker.lease = lease;
        let mut program = Program::serve(&place.config).await;
        let caller = Caller::of(&place, &program).await;
        let mut office = Office::open(&caller).await;
        program.kill().await;
        tokio::time::sleep(OUTAGE).await;
        let program = Program::serve(&place.config).await;
        let caller = Caller::of(&place, &program).await;
        let waiting = Waiting::begin(&caller);
        go_on_later(&mut office, &caller, waiting).await;
        office.end(&caller).await;
        program.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_after_an_outage_is_noticed_a_lease_later_and_once() {
    let place = Place::new().await;
    let mut program = Program::serve(&place.config).await;
    let caller = Caller::of(&place, &program).await;
    caller.register().await;
    let job = caller.fetched(1000).await;
    program.kill().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let program = Program::serve(&place.config).await;
    let caller = Caller::of(&place, &program).await;
    let lost = until(async || {
        let job = caller.call("getJob", json!({"jobId": job["id"]})).await;
        (job["status"] == "failed").then_some(job)
    })
    .await;
    assert_eq!((&lost["attempts"], &lost["errors"][0]["kind"]), (&json!(1), &json!("lost")), "{lost}");
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_processes_that_begin_at_once_extend_once_and_none_where_somebody_was_there() {
    let place = Place::new().await;
    let program = Program::serve(&place.config).await;
    let caller = Caller::of(&place, &program).await;
    caller.register().await;
    caller.fetched(60_000).await;
    let store = place.store().await;
    let all = async |up: Duration| {
        let begin = || store.extend_outside(Outage::Maybe { up }, place.config.worker.lease);
        let began: Vec<_> = futures_util::future::join_all((0..10).map(|_| begin())).await;
        began.into_iter().map(Result::unwrap).collect::<Vec<Grace>>()
    };
    assert_eq!(all(Duration::ZERO).await, [Grace::Witnessed; 10]);
    program.stop().await;
    // It may have extended a moment ago.
    tokio::time::sleep(place.config.worker.lease / 4).await;
    let mut told = all(Duration::ZERO).await;
    told.sort_by_key(|grace| matches!(grace, Grace::Done));
    assert_eq!((told[0], &told[1..]), (Grace::Given(1), &[Grace::Done; 9][..]));
    store.close().await;
}

/// A service with servers of its own.
async fn with_own_servers(folder: &tempfile::TempDir) -> (Place, OwnPostgres, OwnNats) {
    let mut postgres = OwnPostgres::new(&folder.path().join("postgres"), &[], Places::Together).await;
    let mut nats = OwnNats::new(&folder.path().join("nats"), "own", "");
    tokio::join!(postgres.start(), nats.start());
    postgres.run("CREATE DATABASE queue").await;
    let mut place = Place::new().await;
    (place.config.database.url, place.config.nats.url) = (postgres.url("queue"), nats.url());
    (place, postgres, nats)
}

/// Which server is away.
enum Away {
    Postgres,
    Nats,
}

/// Has a server away for longer than the leases last, under programs that go on.
async fn outage_of(away: Away) {
    let folder = open_folder();
    let (place, postgres, mut nats) = with_own_servers(&folder).await;
    let program = Program::serve(&place.config).await;
    let caller = Caller::of(&place, &program).await;
    let mut office = Office::open(&caller).await;
    let waiting = Waiting::begin(&caller);
    match away {
        Away::Postgres => {
            let _frozen = postgres.freeze();
            tokio::time::sleep(OUTAGE).await;
        }
        Away::Nats => {
            nats.kill().await;
            tokio::time::sleep(OUTAGE).await;
            nats.start().await;
        }
    }
    go_on_later(&mut office, &caller, waiting).await;
    office.end(&caller).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_spends_no_attempt_of_runs_outside() {
    outage_of(Away::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_broker_spends_no_attempt_of_runs_outside() {
    outage_of(Away::Nats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_could_not_be_heard_is_not_held_to_be_silent() {
    let folder = open_folder();
    let (place, _postgres, mut nats) = with_own_servers(&folder).await;
    let program = Program::serve(&place.config).await;
    let caller = Caller::of(&place, &program).await;
    let beat = json!({"type": "called", "handler": "nats", "timeout": "10m", "heartbeat": "3s"});
    caller.call("registerType", beat).await;
    let mut handler = caller.handler().await;
    let id = caller.called().await;
    let request = handler.next().await;
    nats.kill().await;
    tokio::time::sleep(OUTAGE).await;
    nats.start().await;
    // It goes on, and reports when it can.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let job = until(async || {
        // The service may be back on this server later than we are.
        handler.reply(request.clone(), &[], "1").await;
        let job = caller.try_ask("getJob", json!({"jobId": id})).await?.body;
        (job["status"] != "processing").then_some(job)
    })
    .await;
    assert_eq!((&job["status"], &job["errors"]), (&json!("completed"), &json!([])), "{job}");
    program.stop().await;
}
