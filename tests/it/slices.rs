//! A slice of the repair sweep reads the rows that it judges, however many wait and however full the outbox is.

use std::time::Duration;

use chrono::Utc;
use queue_service::store::{marks::Mark, rearm::READ, sweep::SLICE};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{harness::Place, plans::reading};

const WAITING: i32 = 50_000;
/// Rows of the outbox, of a thousand ids each.
const UNPUBLISHED: i32 = 300;
/// Looks at what is not a job: the catalogue, the lane's row, the clock.
const BESIDES: i64 = 50;

/// A backlog that has been due for an hour, and an outbox that waits for a broker that was away.
async fn backlog() -> (Place, PgPool) {
    let place = Place::new().await;
    place.store().await.close().await;
    let database = place.database().await;
    let waiting = "INSERT INTO jobs (id, type, max_attempts, payload, run_at)
                   SELECT uuid_v7(), 'probe', 3, '{}', now() - interval '1 hour' + n * interval '1 ms' FROM generate_series(1, $1) AS n";
    sqlx::query(waiting).bind(WAITING).execute(&database).await.unwrap();
    let unpublished = "INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
                       SELECT uuid_v7(), 'wake-up', now(), ids, array_fill('other.normal'::text, ARRAY[1000])
                       FROM generate_series(1, $1), (SELECT array_agg(uuid_v7()) AS ids FROM generate_series(1, 1000)) AS i";
    sqlx::query(unpublished).bind(UNPUBLISHED).execute(&database).await.unwrap();
    (place, database)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_slice_of_the_sweep_reads_more_than_it_judges() {
    let (place, database) = backlog().await;
    let all = READ as i64 + 1;
    // Without statistics, and with them.
    for _ in 0..2 {
        let now = Utc::now();
        let (due, read) =
            reading(&place, &database, async |store| store.due_before(now, READ + 1).await.unwrap()).await;
        assert_eq!(due.len(), READ + 1);
        assert!(read <= all + BESIDES, "{read} rows were read for due jobs");

        let (of_type, read) =
            reading(&place, &database, async |store| store.live_of_type("probe", Uuid::nil(), now, now).await.unwrap())
                .await;
        assert_eq!(of_type.len(), READ);
        assert!(read <= all + BESIDES, "{read} rows were read for jobs of a type");

        let (none, read) =
            reading(&place, &database, async |store| store.live_of_type("other", Uuid::nil(), now, now).await.unwrap())
                .await;
        assert!(none.is_empty() && read <= BESIDES, "{read} rows were read for a type without jobs");

        let look = async |store: &queue_service::store::Store| store.outbox_now(Duration::from_secs(60)).await.unwrap();
        let (_, read) = reading(&place, &database, look).await;
        assert!(read <= i64::from(UNPUBLISHED) + BESIDES, "{read} rows were read for the outbox");

        let mark = Mark { at: now, horizon: i64::MAX, last_seq: 0, full_lanes: Vec::new() };
        let lost: Vec<Uuid> = due[..SLICE as usize].iter().map(|row| row.id).collect();
        let rearm = async |store: &queue_service::store::Store| {
            store.rearm("probe.normal", Uuid::now_v7(), &mark, &lost).await.unwrap()
        };
        let (rearmed, read) = reading(&place, &database, rearm).await;
        assert_eq!(rearmed, SLICE);
        assert!(read <= SLICE + BESIDES, "{read} rows were read to re-arm {SLICE}");
        sqlx::query("DELETE FROM rearmed_lanes").execute(&database).await.unwrap();
        sqlx::query("ANALYZE").execute(&database).await.unwrap();
    }
}
