//! The hot statements find rows by index, also on a fresh database of which the planner knows nothing yet.

use std::time::Duration;

use queue_service::{
    job::{Failure, JobType, Priority, Status, Update, Verdict},
    store::{
        Store,
        claim::Claim,
        counts::{Among, Oldest},
        enqueue::{Due, Enqueued, Key, NewJob, Start},
        finish::{Retried, Settlement, WakeUp},
        notes::Note,
        query::{Filter, Include, Wanted},
        sweep,
    },
};
use serde_json::value::RawValue;

use crate::harness::Place;

/// `$1` finished jobs with the tags `$2` and the status `$3`.
const FINISHED: &str = "
    INSERT INTO finished_jobs (id, type, status, priority, attempt, max_attempts, run, tags, payload, created_at, run_at, finished_at)
    SELECT uuid_v7(), 'probe', $3, 0, 1, 1, 1, $2, '{}', now(), now(), now() FROM generate_series(1, $1)";

const HOUR: Duration = Duration::from_secs(3600);

pub fn job(n: usize) -> NewJob {
    NewJob {
        id: uuid::Uuid::now_v7(),
        job_type: JobType::new("probe").unwrap(),
        payload: RawValue::from_string("{}".into()).unwrap(),
        priority: Priority::default(),
        max_attempts: 3,
        timeout: None,
        due: Due::Now,
        tags: Vec::new(),
        key: Some(Key { text: format!("key-{n}"), content_hash: [0; 32], value_hash: [0; 32], max_attempts: None }),
        trace: None,
    }
}

/// As most are.
fn plain(n: usize) -> NewJob {
    NewJob { key: None, ..job(n) }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_of_the_hot_path_walks_through_a_table() {
    let place = Place::new().await;
    let store = place.store().await;
    let jobs: Vec<NewJob> = (0..300).map(job).collect();
    store.enqueue(&jobs, HOUR, None).await.unwrap();
    let again: Vec<NewJob> = (0..300).map(job).collect();
    let outcomes = store.enqueue(&again, HOUR, None).await.unwrap().outcomes;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Enqueued::Duplicate { .. })));
    let plain: Vec<NewJob> = (0..300).map(plain).collect();
    // The second time as after an answer that got lost.
    for _ in 0..2 {
        let outcomes = store.enqueue(&plain, HOUR, None).await.unwrap().outcomes;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Enqueued::Accepted)));
    }
    for kind in [self::plain, job] {
        let jobs: Vec<NewJob> = (300..600).map(kind).collect();
        let start = Start { worker_id: "worker", claim: uuid::Uuid::now_v7(), places: vec![true; jobs.len()] };
        let batch = store.enqueue(&jobs, HOUR, Some(&start)).await.unwrap();
        assert_eq!((batch.started.len(), batch.due.len()), (300, 0));
    }
    let wanted: Vec<_> = jobs.iter().map(|job| (job.id, "probe".to_owned())).collect();
    for round in 0..2 {
        let claims = store.claim(&wanted, "worker").await.unwrap().claims;
        let settlements: Vec<Settlement> = claims
            .iter()
            .enumerate()
            .map(|(n, claim)| {
                let Claim::Won(job) = claim else { panic!("{claim:?}") };
                let failure = || Failure::retry("no");
                let verdict = match (round, n % 2) {
                    (0, _) => Verdict::Retry { failure: failure(), delay: Duration::ZERO },
                    (_, 0) => Verdict::Complete { result: RawValue::from_string("1".into()).unwrap() },
                    (_, _) => Verdict::DeadLetter { failure: failure() },
                };
                Settlement { id: job.id, run: job.run, verdict, wake_up: WakeUp::NotNeeded, end: None }
            })
            .collect();
        // Those that only end well have a statement of their own.
        let (well, others): (Vec<_>, Vec<_>) =
            settlements.into_iter().partition(|s| matches!(s.verdict, Verdict::Complete { .. }));
        for batch in [well, others] {
            store.finish(&batch, Retried::Yes).await.unwrap();
        }
    }
    store.retry(jobs[1].id, None, HOUR).await.unwrap().expect("it has failed");
    store.claim(&wanted[1..2], "worker").await.unwrap();
    store.release_lost(&[jobs[1].id], sweep::WakeUp::NotNeeded).await.unwrap();
    store.cancel(jobs[1].id, None, None).await.unwrap();
    // Those that were written as started.
    assert_eq!(store.held_besides("worker", &[]).await.unwrap().len(), 600);
    store.job(jobs[0].id).await.unwrap().expect("it is there");
    // What connections have counted is told when they end.
    store.close().await;

    let database = place.database().await;
    let used = "SELECT relname::text, seq_scan, idx_scan FROM pg_stat_user_tables
                WHERE relname IN ('jobs', 'job_keys') OR relname LIKE 'finished\\_%\\_20%' ORDER BY 1";
    let tables: Vec<(String, i64, i64)> = crate::harness::until(async || {
        let tables: Vec<(String, i64, i64)> = counted(&database, used).await;
        tables.iter().any(|(name, _, by_index)| name == "jobs" && *by_index > 300).then_some(tables)
    })
    .await;
    let walked: Vec<_> = tables.iter().filter(|(_, walks, _)| *walks > 0).collect();
    assert!(walked.is_empty(), "{walked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_by_id_also_when_the_table_was_empty_at_its_last_vacuum() {
    const WAITING: usize = 3_000;
    let (place, database) = place_with(&[]).await;
    let leave = "
        INSERT INTO jobs (id, type, max_attempts, payload) SELECT uuid_v7(), 'probe', 1, '{}' FROM generate_series(1, 10000);
        DELETE FROM jobs";
    sqlx::raw_sql(leave).execute(&database).await.unwrap();
    sqlx::raw_sql("VACUUM jobs").execute(&database).await.unwrap();

    let store = place.store().await;
    let jobs: Vec<NewJob> = (0..WAITING).map(plain).collect();
    for jobs in jobs.chunks(1000) {
        store.enqueue(jobs, HOUR, None).await.unwrap();
    }
    for some in jobs.chunks(20).take(8) {
        let wanted: Vec<_> = some.iter().map(|job| (job.id, "probe".to_owned())).collect();
        let mut left = store.claim(&wanted, "worker").await.unwrap().claims.into_iter();
        let update = Update::of_progress(Some(50.0), None);
        let note = Note { id: some[0].id, run: 1, update };
        store.write_notes(&[note]).await.unwrap();
        let failure = || Failure::retry("no");
        let ends: [&dyn Fn() -> Verdict; 3] = [
            &|| Verdict::Complete { result: RawValue::from_string("1".into()).unwrap() },
            &|| Verdict::DeadLetter { failure: failure() },
            &|| Verdict::Retry { failure: failure(), delay: Duration::ZERO },
        ];
        for end in ends {
            let settle = |claim| {
                let Claim::Won(job) = claim else { panic!("{claim:?}") };
                Settlement { id: job.id, run: job.run, verdict: end(), wake_up: WakeUp::NotNeeded, end: None }
            };
            let settlements: Vec<_> = left.by_ref().take(6).map(settle).collect();
            store.finish(&settlements, Retried::No).await.unwrap();
        }
    }
    store.cancel(jobs[WAITING - 1].id, None, None).await.unwrap();
    // What connections have counted is told when they end.
    store.close().await;

    let read = "SELECT sum(idx_tup_read)::int8, (SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'jobs')
                FROM pg_stat_user_indexes WHERE relname = 'jobs'";
    let read = crate::harness::until(async || {
        let (read, updates): (i64, i64) = counted(&database, read).await[0];
        (updates >= 8 * 20).then_some(read)
    })
    .await;
    assert!(read < WAITING as i64, "{read} index entries were read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_by_type_reads_nothing_of_other_types() {
    let (place, database) = place_with(&[]).await;
    let waiting =
        "INSERT INTO jobs (id, type, max_attempts, payload) SELECT uuid_v7(), $1, 1, '{}' FROM generate_series(1, $2)";
    for (job_type, jobs) in [("probe", 200), ("other", 20_000)] {
        sqlx::query(waiting).bind(job_type).bind(jobs).execute(&database).await.unwrap();
    }
    sqlx::query("ANALYZE").execute(&database).await.unwrap();
    let mut filter = Filter { job_type: Some("probe".into()), ..Filter::default() };
    for page in 0..4 {
        let (listed, read) = list(&place, &database, filter.clone()).await;
        assert_eq!(listed.len(), 50, "page {page}");
        assert!(listed.is_sorted_by(|newer, older| newer > older) && filter.before.is_none_or(|last| listed[0] < last));
        assert!(read < 200, "{read} rows were read for page {page}");
        filter.before = listed.last().copied();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_job_of_a_type_is_found_without_those_of_others_that_wait_longer() {
    let (place, database) = place_with(&[]).await;
    let waiting = "INSERT INTO jobs (id, type, max_attempts, payload, run_at)
         SELECT uuid_v7(), $1, 1, '{}', now() + $2 * interval '1 second' FROM generate_series(1, $3)";
    for (job_type, due, jobs) in [("other", -7200, 20_000), ("probe", 3600, 100), ("probe", -60, 1)] {
        sqlx::query(waiting).bind(job_type).bind(due).bind(jobs).execute(&database).await.unwrap();
    }
    sqlx::query("ANALYZE").execute(&database).await.unwrap();
    for (among, least) in
        [(Among::Type("probe", 101), 60.0), (Among::All, 7200.0), (Among::Type("other", 20_000), 7200.0)]
    {
        let oldest = async |store: &Store| store.oldest_pending_seconds(among).await.unwrap();
        let (oldest, read) = reading(&place, &database, oldest).await;
        assert!(oldest.is_some_and(|age| (least..least + 3600.0).contains(&age)), "{among:?}: {oldest:?}");
        assert!(read < 500, "{read} rows were read for {among:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_job_is_found_beside_any_number_of_a_paused_type() {
    let (place, database) = place_with(&[]).await;
    let waiting = "INSERT INTO jobs (id, type, max_attempts, payload, run_at)
         SELECT uuid_v7(), $1, 1, '{}', now() + $2 * interval '1 second' FROM generate_series(1, $3)";
    for (job_type, due, jobs) in [("paused", -7200, 40_000), ("probe", 3600, 100), ("probe", -60, 1)] {
        sqlx::query(waiting).bind(job_type).bind(due).bind(jobs).execute(&database).await.unwrap();
    }
    sqlx::query("ANALYZE").execute(&database).await.unwrap();
    let names = |name: &str| [name.to_owned()];
    let but = async |store: &Store| store.oldest_pending_seconds_but(&names("paused")).await.unwrap();
    let (oldest, read) = reading(&place, &database, but).await;
    assert_eq!(oldest, Oldest::Unknown);
    assert!(read <= 5_100, "{read} rows were read beside the paused ones");
    for (name, least) in [("probe", 60.0), ("paused", 7200.0)] {
        let of = async |store: &Store| store.oldest_pending_seconds_of(&names(name)).await.unwrap();
        let (oldest, read) = reading(&place, &database, of).await;
        assert!(oldest.is_some_and(|age| (least..least + 3600.0).contains(&age)), "{name}: {oldest:?}");
        assert!(read <= 2_100, "{read} rows were read of {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_finds_room_on_the_page_of_its_row_and_goes_into_no_index() {
    let place = Place::new().await;
    let store = place.store().await;
    let jobs: Vec<NewJob> = (0..500).map(plain).collect();
    store.enqueue(&jobs, HOUR, None).await.unwrap();
    let wanted: Vec<_> = jobs.iter().map(|job| (job.id, "probe".to_owned())).collect();
    store.claim(&wanted, "the-name-of-a-host-12345-0123abcd").await.unwrap();
    // What connections have counted is told when they end.
    store.close().await;

    let database = place.database().await;
    let claims = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'jobs'";
    let (claimed, in_place): (i64, i64) = crate::harness::until(async || {
        let counts: Vec<(i64, i64)> = counted(&database, claims).await;
        (counts[0].0 >= 500).then_some(counts[0])
    })
    .await;
    assert_eq!((claimed, in_place), (500, 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finished_jobs_leave_behind_is_cleared_by_the_service_itself() {
    let place = Place::new().await;
    let service = place.start().await;
    let database = place.database().await;
    let leave = "
        ALTER TABLE jobs SET (autovacuum_enabled = off);
        INSERT INTO jobs (id, type, max_attempts, payload) SELECT uuid_v7(), 'probe', 1, '{}' FROM generate_series(1, 25000);
        DELETE FROM jobs";
    sqlx::raw_sql(leave).execute(&database).await.unwrap();
    let dead = "SELECT vacuum_count, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'jobs'";
    let dead = crate::harness::until(async || {
        let (vacuums, dead): (i64, i64) = counted(&database, dead).await[0];
        (vacuums > 0).then_some(dead)
    })
    .await;
    assert_eq!(dead, 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_during_a_vacuum_does_not_put_off_the_next_one() {
    let place = Place::new().await;
    place.store().await.close().await;
    let database = place.database().await;
    let leave = async |n: u32| {
        let rows = format!(
            "INSERT INTO jobs (id, type, max_attempts, payload) SELECT uuid_v7(), 'probe', 1, '{{}}' FROM generate_series(1, {n});
            DELETE FROM jobs"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(rows)).execute(&database).await.unwrap();
    };
    sqlx::raw_sql("ALTER TABLE jobs SET (autovacuum_enabled = off)").execute(&database).await.unwrap();
    leave(40_000).await;
    // To whoever looks on since before, the next ones are still there.
    let mut onlooker = database.begin().await.unwrap();
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1").execute(&mut *onlooker).await.unwrap();
    leave(25_000).await;
    let dead = "SELECT vacuum_count, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'jobs'";
    let until_dead = async |wanted: i64| {
        let cleared = crate::harness::until(async || {
            let (vacuums, dead): (i64, i64) = counted(&database, dead).await[0];
            (vacuums > 0 && dead == wanted).then_some(())
        });
        // Half of the pause after one that was in vain.
        tokio::time::timeout(std::time::Duration::from_secs(30), cleared).await.expect("it was put off");
    };
    let service = place.start().await;
    until_dead(25_000).await;
    onlooker.rollback().await.unwrap();
    until_dead(0).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_vacuum_gives_pages_back_for_which_it_would_lock_everybody_out() {
    let (_place, database) = place_with(&[]).await;
    let fill = "
        INSERT INTO jobs (id, type, max_attempts, payload) SELECT uuid_v7(), 'probe', 1, '{}' FROM generate_series(1, 5000);
        INSERT INTO outbox (id, kind, publish_at, job_ids, targets) SELECT uuid_v7(), 'wake-up', now(), '{}', '{}' FROM generate_series(1, 5000);
        INSERT INTO held (id, worker_id, job_ids) SELECT uuid_v7(), 'worker', '{}' FROM generate_series(1, 5000);
        INSERT INTO job_count_deltas (type, status, day, n) SELECT 'probe', 'pending', 'epoch', 1 FROM generate_series(1, 5000)";
    sqlx::raw_sql(fill).execute(&database).await.unwrap();
    for table in ["jobs", "outbox", "held", "job_count_deltas"] {
        let sql = format!("DELETE FROM {table}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&database).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("VACUUM {table}"))).execute(&database).await.unwrap();
        let pages: (i64,) = sqlx::query_as("SELECT pg_relation_size($1::regclass) / 8192")
            .bind(table)
            .fetch_one(&database)
            .await
            .unwrap();
        assert!(pages.0 > 10, "{table} has {} pages left", pages.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_for_runs_that_are_too_late_reads_nothing_of_those_that_are_not() {
    let (place, database) = place_with(&[]).await;
    let rows = "
        INSERT INTO jobs (id, type, max_attempts, payload) SELECT uuid_v7(), 'probe', 1, '{}' FROM generate_series(1, 20000);
        INSERT INTO jobs (id, type, max_attempts, payload, status, attempt, run, worker_id, started_at, lease_until, deadline)
        SELECT uuid_v7(), 'probe', 1, '{}', 'processing', 1, 1, 'w', now(), ends, ends
        FROM generate_series(1, 2000) AS n, LATERAL (SELECT now() + CASE WHEN n % 40 = 0 THEN '-1 s' ELSE '1 h' END::interval) AS t (ends)";
    sqlx::raw_sql(rows).execute(&database).await.unwrap();
    sqlx::query("ANALYZE").execute(&database).await.unwrap();
    let look = async |store: &Store| store.too_late_outside(1000).await.unwrap().len();
    let (found, read) = reading(&place, &database, look).await;
    assert_eq!(found, 50);
    assert!(read < 200, "{read} rows were read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_what_runs_reads_nothing_of_what_waits() {
    const WAITING: usize = 20_000;
    let place = Place::new().await;
    let store = place.store().await;
    let jobs: Vec<NewJob> = (0..WAITING).map(plain).collect();
    for jobs in jobs.chunks(1000) {
        store.enqueue(jobs, HOUR, None).await.unwrap();
    }
    // The oldest, as it is in life: whoever reads from the newest on meets them last.
    let wanted: Vec<_> = jobs[..5].iter().map(|job| (job.id, "probe".to_owned())).collect();
    store.claim(&wanted, "worker").await.unwrap();
    store.close().await;

    let database = place.database().await;
    sqlx::query("ANALYZE").execute(&database).await.unwrap();
    let filter = Filter { states: vec![Wanted::Status(Status::Processing)], ..Filter::default() };
    let (listed, read) = list(&place, &database, filter).await;
    let newest_first: Vec<_> = jobs[..5].iter().rev().map(|job| job.id).collect();
    assert_eq!(listed, newest_first);
    assert!(read < 100, "{read} rows were read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_by_tag_does_not_walk_through_what_has_no_tags() {
    let (place, database) = place_with(&[(6_000, Some("old"), "completed"), (20_000, None, "completed")]).await;
    let (listed, read) = list(&place, &database, Filter { tag: Some("old".into()), ..Filter::default() }).await;
    assert_eq!(listed.len(), 50);
    assert!(read < 1_000, "{read} rows were read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_by_a_tag_that_few_jobs_have_does_not_walk_through_all_that_have_another() {
    // All that failed have the one, and statistics of the others don't say that none has it.
    let (place, database) = place_with(&[(3, Some("few"), "failed"), (40_000, Some("many"), "completed")]).await;
    for (tag, found) in [("few", 3), ("nobody", 0), ("many", 50)] {
        let (listed, read) = list(&place, &database, Filter { tag: Some(tag.into()), ..Filter::default() }).await;
        assert_eq!(listed.len(), found, "{tag}");
        assert!(read < 1_000, "{read} rows were read for {tag}");
    }
    // Nor through all of those that are old, which the planner takes for fewer.
    let old = "SELECT id FROM finished_jobs WHERE tags = '{many}' ORDER BY id OFFSET 4000 LIMIT 1";
    let mut connection = database.acquire().await.unwrap();
    let (old,) = sqlx::query_as(old).fetch_one(&mut *connection).await.unwrap();
    // Else what this has read might be counted later, as if the list had.
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&mut *connection).await.unwrap();
    drop(connection);
    let filter = Filter { tag: Some("nobody".into()), before: Some(old), ..Filter::default() };
    let (listed, read) = list(&place, &database, filter).await;
    assert_eq!(listed.len(), 0);
    assert!(read < 1_000, "{read} rows were read of those before {old}");
}

/// A place with finished jobs, so many of each tag and status, that the planner knows of.
async fn place_with(finished: &[(i32, Option<&str>, &str)]) -> (Place, sqlx::PgPool) {
    let place = Place::new().await;
    place.store().await.close().await;
    let database = place.database().await;
    for (jobs, tag, status) in finished {
        let tags = tag.map(|tag| vec![tag]);
        sqlx::query(FINISHED).bind(jobs).bind(tags).bind(status).execute(&database).await.unwrap();
    }
    sqlx::query("ANALYZE").execute(&database).await.unwrap();
    (place, database)
}

/// Rows of Postgres' own counts, as they are now and not as this connection has seen them before.
async fn counted<T>(database: &sqlx::PgPool, sql: &'static str) -> Vec<T>
where
    T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    sqlx::query("SELECT pg_stat_clear_snapshot()").execute(database).await.unwrap();
    sqlx::query_as(sql).fetch_all(database).await.unwrap()
}

/// A page of a list, and how many rows were read for it.
async fn list(place: &Place, database: &sqlx::PgPool, filter: Filter) -> (Vec<uuid::Uuid>, i64) {
    let listed = async |store: &Store| store.list(&filter, 50, 0, Include::default(), 1 << 20).await.unwrap();
    let (page, read) = reading(place, database, listed).await;
    (page.rows.iter().map(|row| row.id).collect(), read)
}

/// What `look` gives, and how many rows of jobs were read for it.
pub async fn reading<T>(place: &Place, database: &sqlx::PgPool, look: impl AsyncFnOnce(&Store) -> T) -> (T, i64) {
    let read = async || {
        let sql =
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int8, sum(idx_scan)::int8 FROM pg_stat_user_tables
                   WHERE relname IN ('jobs', 'outbox') OR relname LIKE 'finished\\_%'";
        counted::<(i64, i64)>(database, sql).await[0]
    };
    let before = read().await;
    let store = place.store().await;
    let seen = look(&store).await;
    // What connections have counted is told when they end.
    store.close().await;
    let after = crate::harness::until(async || {
        let after = read().await;
        (after.1 > before.1).then_some(after)
    })
    .await;
    (seen, after.0 - before.0)
}
