//! Enqueueing by SQL: part of the caller's transaction, told at its commit, held to the same limits.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::{
    books,
    harness::{PATIENCE, Place, Running, until},
};

/// A service whose relay looks into the outbox every minute only, unless it is told.
async fn told() -> (Place, Running, PgPool) {
    let mut place = Place::new().await;
    place.config.background.relay = Duration::from_secs(60);
    place.config.background.overdue = Duration::from_secs(600);
    let service = place.start().await;
    let database = place.database().await;
    until(|| async {
        let known = "SELECT count(*) FROM job_types WHERE max_attempts IS NOT NULL";
        (sqlx::query_scalar::<_, i64>(known).fetch_one(&database).await.unwrap() > 6).then_some(())
    })
    .await;
    (place, service, database)
}

async fn refused(database: &PgPool, arguments: &str) -> String {
    let sql = format!("SELECT queue.enqueue({arguments})");
    let error = sqlx::query(AssertSqlSafe(sql)).execute(database).await.unwrap_err();
    error.as_database_error().unwrap_or_else(|| panic!("{error}")).message().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_committed_with_the_callers_transaction_and_published_at_once() {
    let (place, service, database) = told().await;
    let mut transaction = database.begin().await.unwrap();
    let sql =
        "SELECT queue.enqueue('probe', '{\"note\": \"sql\"}', tags => array['sql'], priority => 5, max_attempts => 2)";
    let id: Uuid = sqlx::query_scalar(sql).fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(id.get_version_num(), 7);
    let nobody = service.ask("getJob", id.to_string()).await;
    assert_eq!(nobody.code(), Some("job_not_found"), "it is seen before the commit");
    transaction.commit().await.unwrap();
    let id = id.to_string();
    let job = tokio::time::timeout(PATIENCE / 2, service.finished(&id)).await.expect("nobody was told");
    assert_eq!(
        (&job["status"], &job["tags"], &job["priority"], &job["maxAttempts"], &job["payload"]),
        (&json!("completed"), &json!(["sql"]), &json!(5), &json!(2), &json!({"note": "sql"}))
    );
    books::all_completed_once(&place, &service, &[id]).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_leaves_nothing_behind() {
    let (place, service, database) = told().await;
    let mut transaction = database.begin().await.unwrap();
    let sql = "SELECT queue.enqueue('probe', '{}', idempotency_key => 'order-7')";
    sqlx::query(sql).execute(&mut *transaction).await.unwrap();
    transaction.rollback().await.unwrap();
    let left = "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM outbox) + (SELECT count(*) FROM job_keys)";
    assert_eq!(sqlx::query_scalar::<_, i64>(left).fetch_one(&database).await.unwrap(), 0);
    let stats = service.call("getStats", json!({})).await;
    books::numbers_add_up(&place.database().await, &stats).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_one_job_also_when_transactions_race() {
    let (place, service, database) = told().await;
    let sql = "SELECT queue.enqueue('probe', '{\"fail\": 0, \"note\": \"x\"}', idempotency_key => 'order-7')";
    let race = (0..3).map(|_| async { sqlx::query_scalar::<_, Uuid>(sql).fetch_one(&database).await.unwrap() });
    let ids = futures_util::future::join_all(race).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // Another spelling of the same content, and other content.
    let same = "SELECT queue.enqueue('probe', '{\"note\":\"x\",\"fail\":0}', idempotency_key => 'order-7')";
    assert_eq!(sqlx::query_scalar::<_, Uuid>(same).fetch_one(&database).await.unwrap(), ids[0]);
    let other = refused(&database, "'probe', '{}', idempotency_key => 'order-7'").await;
    assert!(other.contains(&ids[0].to_string()), "{other}");
    books::all_completed_once(&place, &service, &[ids[0].to_string()]).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delays_are_kept_and_bad_input_is_refused_with_its_limit() {
    let (_place, service, database) = told().await;
    let sql = "SELECT queue.enqueue('probe', '{}', delay => interval '1 hour', timeout => interval '2 seconds')";
    let id: Uuid = sqlx::query_scalar(sql).fetch_one(&database).await.unwrap();
    let job = service.job(&id.to_string()).await;
    assert_eq!(crate::harness::millis_between(&job["createdAt"], &job["runAt"]), 3_600_000.0);
    for (arguments, text) in [
        ("'nobody-does-this', '{}'", "no job type 'nobody-does-this'"),
        ("NULL, '{}'", "no job type NULL"),
        ("'probe', NULL", "512 KiB"),
        ("'probe', ('\"' || repeat('x', 524288) || '\"')::json", "512 KiB"),
        ("'probe', '\"a\\u0000\"'", "NUL"),
        ("'probe', '{}', priority => 10", "-9 to 9"),
        ("'probe', '{}', max_attempts => 0", "1 to 100"),
        ("'probe', '{}', delay => interval '1s', run_at => now()", "not both"),
        ("'probe', '{}', delay => interval '-1s'", "0 to 10 years"),
        ("'probe', '{}', run_at => now() + interval '11 years'", "10 years"),
        ("'probe', '{}', timeout => interval '25 hours'", "24 hours"),
        ("'probe', '{}', tags => array_fill('x'::text, array[21])", "at most 20"),
        ("'probe', '{}', tags => array['']", "1 to 64"),
        ("'probe', '{}', idempotency_key => ''", "1 to 255"),
    ] {
        let message = refused(&database, arguments).await;
        assert!(message.contains(text), "{arguments}: {message}");
    }
    assert_eq!(service.call("getStats", json!({})).await["total"], 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_needs_the_function_and_no_table() {
    let (place, service, database) = told().await;
    let role = format!("caller_{}", place.config.nats.prefix);
    let run = async |sql: String| {
        let mut connection = database.acquire().await.unwrap();
        let ran = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await;
        // A connection whose transaction has failed is of no use to others.
        if ran.is_err() {
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await.unwrap();
        }
        ran
    };
    run(format!("CREATE ROLE {role}")).await.unwrap();
    let as_caller = |sql: &str| format!("BEGIN; SET LOCAL ROLE {role}; {sql}; COMMIT;");
    let enqueue = as_caller("SELECT queue.enqueue('probe', '{}')");
    assert!(run(enqueue.clone()).await.is_err(), "without any right");
    run(format!("GRANT USAGE ON SCHEMA queue TO {role}; GRANT EXECUTE ON FUNCTION queue.enqueue TO {role}"))
        .await
        .unwrap();
    run(enqueue).await.unwrap();
    until(|| async { (service.call("getStats", json!({})).await["completed"] == 1).then_some(()) }).await;
    assert!(run(as_caller("SELECT count(*) FROM queue.jobs")).await.is_err());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_are_heard_again_after_the_connection_was_cut() {
    let (_place, service, database) = told().await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
               AND datname = current_database() AND query LIKE 'LISTEN%'";
    assert_eq!(sqlx::query(end).execute(&database).await.unwrap().rows_affected(), 1);
    let began = Instant::now();
    // What was written meanwhile is seen by the look after the new connection, at the latest.
    let id: Uuid = sqlx::query_scalar("SELECT queue.enqueue('probe', '{}')").fetch_one(&database).await.unwrap();
    service.finished(&id.to_string()).await;
    assert!(began.elapsed() < Duration::from_secs(50), "only the relay's period has found it");
    service.stop().await;
}
