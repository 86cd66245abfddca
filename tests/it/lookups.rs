//! A look-up by id opens few partitions, and the relay takes from the outbox what it has said.

use std::time::Duration;

use chrono::{DateTime, Days, NaiveTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::harness::Place;

/// The longest default retention.
const KEPT: u64 = 90;

/// Noon of a day, so that no clock of the machine moves it to another.
fn days_ago(days: u64) -> DateTime<Utc> {
    let day = Utc::now().date_naive().checked_sub_days(Days::new(days)).unwrap();
    day.and_time(NaiveTime::from_hms_opt(12, 0, 0).unwrap()).and_utc()
}

fn id_of(at: DateTime<Utc>) -> Uuid {
    let seconds = u64::try_from(at.timestamp()).unwrap();
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0))
}

async fn at_full_retention() -> (Place, PgPool) {
    let place = Place::new().await;
    place.store().await.close().await;
    let database = place.database().await;
    let days =
        "SELECT make_finished_partitions((now() AT TIME ZONE 'UTC')::date - d)::text FROM generate_series(0, $1) AS d";
    sqlx::query(days).bind(KEPT as i32 + 2).execute(&database).await.unwrap();
    (place, database)
}

/// A job that was accepted and ended so many days ago.
async fn ended(database: &PgPool, accepted: u64, ended: u64, status: &str) -> Uuid {
    let id = id_of(days_ago(accepted));
    let sql = "INSERT INTO finished_jobs (id, type, status, priority, attempt, max_attempts, run, payload, created_at, run_at, finished_at)
               VALUES ($1, 'probe', $2, 0, 1, 1, 1, '{}', $3, $3, $4)";
    let row = sqlx::query(sql).bind(id).bind(status).bind(days_ago(accepted)).bind(days_ago(ended));
    row.execute(database).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_by_id_locks_few_relations_whatever_the_age_of_the_job() {
    let (_place, database) = at_full_retention().await;
    let mut connection = database.acquire().await.unwrap();
    let cases = [
        ("ended at once", ended(&database, 3, 3, "completed").await, 1),
        ("ended long after", ended(&database, KEPT, 1, "failed").await, 1),
        ("ended before its id, by a wrong clock", ended(&database, 5, 6, "cancelled").await, 1),
        ("unknown and old", id_of(days_ago(KEPT)), 0),
        ("unknown and new", Uuid::now_v7(), 0),
        ("from the future", id_of(Utc::now() + Days::new(4000)), 0),
        ("without a time", Uuid::new_v4(), 0),
    ];
    // As often as it takes until a connection keeps its plans.
    for _ in 0..7 {
        for (what, id, found) in &cases {
            sqlx::query("BEGIN").execute(&mut *connection).await.unwrap();
            let rows =
                sqlx::query("SELECT * FROM jobs_by_id($1)").bind(vec![*id]).fetch_all(&mut *connection).await.unwrap();
            assert_eq!(rows.len(), *found, "{what}");
            let locks = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation'";
            let locks: i64 = sqlx::query_scalar(locks).fetch_one(&mut *connection).await.unwrap();
            sqlx::query("COMMIT").execute(&mut *connection).await.unwrap();
            assert!(locks <= 32, "{what}: {locks} locks");
        }
    }
}

/// Whoever opens a partition waits here until its statement is cut off.
async fn lock_days(database: &PgPool, but: &[u64]) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut holder = database.begin().await.unwrap();
    let kept: Vec<String> = but.iter().map(|days| days_ago(*days).format("%Y%m%d").to_string()).collect();
    let leaves = "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname LIKE 'finished\\_%\\_20%'
                  AND right(relname, 8) <> ALL ($1) ORDER BY 1";
    let leaves: Vec<String> = sqlx::query_scalar(leaves).bind(&kept).fetch_all(&mut *holder).await.unwrap();
    assert!(leaves.len() > 200, "{}", leaves.len());
    let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", leaves.join(", "));
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *holder).await.unwrap();
    holder
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_read_and_retried_while_all_other_days_are_locked() {
    let (place, database) = at_full_retention().await;
    let store = place.store().await;
    let (first, second) = (ended(&database, 10, 10, "failed").await, ended(&database, 10, 9, "cancelled").await);
    let holder = lock_days(&database, &[10, 9]).await;
    for id in [first, second] {
        assert_eq!(store.job(id).await.unwrap().expect("it is there").id, id);
    }
    assert_eq!(store.jobs(&[first, second]).await.unwrap().len(), 2);
    for id in [first, second] {
        store.retry(id, None, Duration::from_secs(3600)).await.unwrap().expect("it has failed");
        assert_eq!(store.job(id).await.unwrap().expect("it is there").status, "pending");
    }
    holder.rollback().await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_live_and_finished_are_read_together() {
    let (place, database) = at_full_retention().await;
    let store = place.store().await;
    let live = crate::plans::job(1);
    store.enqueue(std::slice::from_ref(&live), Duration::from_secs(3600), None).await.unwrap();
    let mut wanted = vec![live.id, ended(&database, 2, 2, "completed").await, ended(&database, 30, 1, "failed").await];
    let with_unknown: Vec<Uuid> = wanted.iter().copied().chain([Uuid::new_v4(), Uuid::now_v7()]).collect();
    let mut read: Vec<Uuid> = store.jobs(&with_unknown).await.unwrap().into_iter().map(|row| row.id).collect();
    read.sort();
    wanted.sort();
    assert_eq!(read, wanted);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_takes_what_it_asks_for_and_reads_the_outbox_once() {
    const ROWS: i64 = 4_000;
    let place = Place::new().await;
    let store = place.store().await;
    let database = place.database().await;
    let fill = "INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
                SELECT uuid_v7(), 'wake-up', now() - interval '1 hour' + n * interval '1 ms', ARRAY[uuid_v7(), uuid_v7()],
                       ARRAY['probe.normal', 'probe.normal'] FROM generate_series(1, $1) AS n";
    sqlx::query(fill).bind(ROWS as i32).execute(&database).await.unwrap();
    let hold = Duration::from_secs(60);
    assert_eq!(store.take_outbox(16, i64::MAX, hold, None).await.unwrap().len(), 16, "by rows");
    assert_eq!(store.take_outbox(1000, 30, hold, None).await.unwrap().len(), 15, "by jobs");
    // The first is taken however much it has.
    assert_eq!(store.take_outbox(1000, 1, hold, None).await.unwrap().len(), 1);
    store.close().await;

    let looks = "SELECT coalesce(sum(idx_scan), 0)::int8 FROM pg_stat_user_tables WHERE relname = 'outbox'";
    let looks: i64 = crate::harness::until(async || {
        let looks: i64 = sqlx::query_scalar(looks).fetch_one(&database).await.unwrap();
        (looks > 0).then_some(looks)
    })
    .await;
    // One to find rows, one for each row that is taken.
    assert!(looks <= 100, "{looks} looks into the outbox");
}
