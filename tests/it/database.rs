//! A database that is ill rather than away: it ends connections, has none to give, takes no writes, is slow, or deaf or
//! dumb on the wire.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    books,
    eager::until_eager,
    harness::{Place, Running, servers, until},
    load::Load,
    own::{OwnPostgres, Places, open_folder},
    proxy::{Mode, Proxy},
};

/// What callers are promised whatever the database does.
const ANSWER: Duration = Duration::from_secs(2);

/// Runs one statement as an operator of the shared server.
async fn operator(sql: String) {
    let mut connection = PgConnection::connect(&servers().await.postgres.url("postgres")).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// Ends every connection of this test's service, that of its heartbeat as well.
async fn end_connections(place: &Place) {
    let name = &place.config.nats.prefix;
    operator(format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")).await;
}

async fn place_behind_proxy() -> (Place, Proxy) {
    let mut place = Place::new().await;
    let mut url: url::Url = place.config.database.url.parse().unwrap();
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()))).await;
    url.set_port(Some(proxy.address.port())).unwrap();
    place.config.database.url = url.into();
    place.config.worker.lease = Duration::from_secs(30);
    (place, proxy)
}

/// Asks with one key until it is accepted, in the time that callers are promised each time.
async fn until_accepted(service: &Running, key: &str) -> Value {
    let request = json!({"type": "probe", "payload": {}, "idempotencyKey": key}).to_string();
    until(async || {
        let began = Instant::now();
        let answer = service.ask("enqueue", request.as_str()).await;
        assert!(began.elapsed() < ANSWER + Duration::from_millis(500), "answered after {:?}", began.elapsed());
        match answer.code() {
            None => Some(answer.body),
            Some(code) => {
                assert_eq!(code, "unavailable", "{}", answer.body);
                None
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_server_ends_five_times_a_second_lose_no_job_and_no_result() {
    let mut place = Place::new().await;
    place.config.worker.lease = Duration::from_secs(30);
    let service = place.start().await;
    let load = Load::start(service.url(""), "probe", |n| json!({"sleepMs": n % 5 * 20}));
    load.accepts(20).await;
    for _ in 0..15 {
        end_connections(&place).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    load.accepts(40).await;
    let told = load.stop().await;
    assert!(told.refused.iter().all(|code| code == "unavailable"), "{:?}", told.refused);
    books::all_ran_once(&place, &service, &told.accepted).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_free_connection_refuses_callers_and_fakes_no_death() {
    let folder = open_folder();
    let settings = ["max_connections=12", "superuser_reserved_connections=0"];
    let mut postgres = OwnPostgres::new(&folder.path().join("own"), &settings, Places::Together).await;
    postgres.start().await;
    postgres.run("CREATE DATABASE queue").await;
    let mut place = Place::new().await;
    place.config.database.url = postgres.url("queue");
    let service = place.start().await;
    let held = service.probe(json!({"wait": true})).await;
    place.journal.until(&held, "start").await;

    // Ours, all but the heartbeat's, are taken by others.
    let mut operator = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
    let mut sleepers = Vec::new();
    let ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = 'queue' AND query NOT LIKE 'INSERT INTO workers%'";
    until(async || {
        sqlx::query(ours).execute(&mut operator).await.unwrap();
        while let Ok(connection) = PgConnection::connect(&postgres.url("postgres")).await {
            sleepers.push(connection);
        }
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE datname = 'queue'")
            .fetch_one(&mut operator)
            .await
            .unwrap();
        (left == 1).then_some(())
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < place.config.worker.lease * 2 {
        let request = json!({"type": "probe", "payload": {}}).to_string();
        let asked = Instant::now();
        let answer = service.ask("enqueue", request).await;
        assert_eq!(answer.code(), Some("unavailable"), "{}", answer.body);
        assert!(asked.elapsed() < ANSWER, "answered after {:?}", asked.elapsed());
    }
    for sleeper in sleepers {
        sleeper.close().await.unwrap();
    }
    let new = until_accepted(&service, "after").await["jobId"].as_str().unwrap().to_owned();
    place.journal.release();
    let attempts = books::all_completed_once(&place, &service, &[held.clone(), new]).await;
    assert_eq!(attempts[&held], 1, "nobody took it over: its worker went on reporting");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_takes_no_writes_refuses_jobs_and_keeps_results_until_it_does() {
    let mut place = Place::new().await;
    place.config.worker.lease = Duration::from_secs(30);
    let service = place.start().await;
    let held = service.probe(json!({"wait": true})).await;
    place.journal.until(&held, "start").await;
    let name = place.config.nats.prefix.clone();
    operator(format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = on")).await;
    end_connections(&place).await;

    let request = json!({"type": "probe", "payload": {}}).to_string();
    until(async || (service.ask("enqueue", request.as_str()).await.code() == Some("unavailable")).then_some(())).await;
    place.journal.release();
    place.journal.until(&held, "end").await;
    answers(&service).await;
    assert_eq!(service.job(&held).await["status"], "processing", "reads go on, and the result waits");

    operator(format!("ALTER DATABASE \"{name}\" RESET default_transaction_read_only")).await;
    end_connections(&place).await;
    until_accepted(&service, "after").await;
    until(async || {
        (service.ask("getJob", json!({"jobId": held}).to_string()).await.body["status"] == "completed").then_some(())
    })
    .await;
    assert_eq!(place.journal.count(&held, "end"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_way_to_the_database_makes_jobs_slow_and_nothing_else() {
    let (mut place, proxy) = place_behind_proxy().await;
    place.config.worker.lease = Duration::from_secs(3);
    let service = place.start().await;
    proxy.set(Mode::Slow(Duration::from_millis(20)));
    let load = Load::start(service.url(""), "probe", |_| json!({}));
    load.accepts(40).await;
    let told = load.stop().await;
    assert_eq!(told.refused, [""; 0]);
    let attempts = books::all_completed_once(&place, &service, &told.accepted).await;
    assert!(attempts.values().all(|attempt| *attempt == 1), "{attempts:?}");
    service.stop().await;
}

/// What was committed, as seen from beside the wire that the service uses.
async fn beside_the_wire(place: &Place) -> sqlx::PgPool {
    sqlx::PgPool::connect(&servers().await.postgres.url(&place.config.nats.prefix)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_commit_got_no_answer_is_one_job_for_the_caller_who_asks_again() {
    let (place, proxy) = place_behind_proxy().await;
    let service = place.start().await;
    let beside = beside_the_wire(&place).await;
    proxy.set(Mode::LostAnswersTo("seventeen dogs"));
    let request = json!({"type": "probe", "payload": {"note": "seventeen dogs"}, "idempotencyKey": "dogs"}).to_string();
    let unknown = service.ask("enqueue", request.as_str()).await;
    assert_eq!(unknown.code(), Some("unavailable"), "{}", unknown.body);
    let committed = "SELECT job_id::text FROM queue.job_keys WHERE key = 'dogs'";
    let committed: String = sqlx::query_scalar(committed).fetch_one(&beside).await.unwrap();
    proxy.set(Mode::Pass);

    let known =
        until(async || Some(service.ask("enqueue", request.as_str()).await).filter(|a| a.code().is_none())).await;
    assert_eq!((&known.body["duplicate"], &known.body["jobId"]), (&json!(true), &json!(committed)));
    answers(&service).await;
    books::all_ran_once(&place, &service, &[committed]).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_to_start_and_whose_commit_got_no_answer_starts_later_and_once() {
    let (place, proxy) = place_behind_proxy().await;
    let service = place.start().await;
    let beside = beside_the_wire(&place).await;
    until_eager(&service).await;
    proxy.set(Mode::LostAnswersTo("seventeen dogs"));
    let request = json!({"type": "probe", "payload": {"note": "seventeen dogs"}}).to_string();
    let unknown = service.ask("enqueue", request.as_str()).await;
    assert_eq!(unknown.code(), Some("unavailable"), "{}", unknown.body);
    let written = "SELECT id::text, status, run FROM queue.jobs";
    let (id, status, run): (String, String, i64) = sqlx::query_as(written).fetch_one(&beside).await.unwrap();
    assert_eq!((&*status, run), ("processing", 1), "as a run of a worker that does not know of it");
    proxy.set(Mode::Cut);
    proxy.set(Mode::Pass);
    let ended = "SELECT attempt, run FROM queue.finished_jobs WHERE id = $1::uuid";
    let ended: (i16, i64) =
        until(async || sqlx::query_as(ended).bind(&id).fetch_optional(&beside).await.unwrap()).await;
    assert_eq!(ended, (1, 2), "the run that nobody knew of costs no attempt");
    place.journal.all_ran_once(&[id]);
    answers(&service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_whose_commit_got_no_answer_is_recorded_once() {
    let (place, proxy) = place_behind_proxy().await;
    let service = place.start().await;
    let beside = beside_the_wire(&place).await;
    let id = service.probe(json!({"wait": true, "note": "nineteen cats"})).await;
    place.journal.until(&id, "start").await;
    proxy.set(Mode::LostAnswersTo("nineteen cats"));
    place.journal.release();
    until(async || {
        let sql = "SELECT count(*) FROM queue.finished_jobs WHERE id = $1::uuid";
        let n: i64 = sqlx::query_scalar(sql).bind(&id).fetch_one(&beside).await.unwrap();
        (n == 1).then_some(())
    })
    .await;
    let mut events = service.listen("events.>").await;
    proxy.set(Mode::Cut);
    proxy.set(Mode::Pass);
    // Only who knows that it is recorded tells so.
    events.until_state("completed").await;
    answers(&service).await;
    books::all_ran_once(&place, &service, &[id]).await;
    service.stop().await;
}

/// Returns when reads work again: each connection that was lost fails one of them.
async fn answers(service: &Running) {
    until(async || service.ask("getStats", "").await.code().is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_carries_one_way_only_is_given_up_and_nothing_is_lost() {
    for silent in [Mode::LostRequests, Mode::LostAnswers] {
        let (place, proxy) = place_behind_proxy().await;
        let service = place.start().await;
        let load = Load::start(service.url(""), "probe", |n| json!({"sleepMs": n % 5 * 20}));
        load.accepts(20).await;
        proxy.set(silent);
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.set(Mode::Pass);
        load.accepts(20).await;
        let told = load.stop().await;
        assert!(told.refused.iter().all(|code| code == "unavailable"), "{:?}", told.refused);
        assert!(told.longest < ANSWER + Duration::from_millis(500), "an answer took {:?}", told.longest);
        books::all_ran_once(&place, &service, &told.accepted).await;
        service.stop().await;
    }
}
