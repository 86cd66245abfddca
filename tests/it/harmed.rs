//! A row that the database refuses to read or to write harms itself alone, and somebody sees it.

use std::time::Duration;

use queue_service::{
    job::{Status, Update},
    store::{
        claim::{Claim, Lease, Refused},
        notes::Note,
        outside::Sign,
        sweep::WakeUp,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    harness::{Listener, Place, Running, start, until},
    plans::job,
};

/// Jobs of the type `probe` that wait, since their type is paused; the one of this note is to be harmed.
async fn paused(service: &Running, n: usize) -> Vec<String> {
    service.call("pauseType", json!({"type": "probe"})).await;
    let note = |n| if n == 0 { "bad" } else { "good" };
    service.enqueue_many((0..n).map(|n| json!({"type": "probe", "payload": {"note": note(n)}})).collect()).await
}

async fn change(place: &Place, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&place.database().await).await.unwrap();
}

async fn rows(service: &Running) -> Value {
    let health: Value = reqwest::get(service.url("/health")).await.unwrap().json().await.unwrap();
    health["checks"]["rows"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_that_can_not_be_claimed_holds_up_no_other_and_is_claimed_when_it_can_be() {
    let (place, service) = start().await;
    for refuse in [
        "ALTER TABLE jobs ADD CONSTRAINT not_bad CHECK (status = 'pending' OR payload ->> 'note' <> 'bad') NOT VALID",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.status = 'processing' AND NEW.payload ->> 'note' = 'bad' THEN RAISE SQLSTATE 'QX001'; END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    ] {
        let ids = paused(&service, 30).await;
        change(&place, refuse).await;
        service.call("resumeType", json!({"type": "probe"})).await;
        for id in &ids[1..] {
            assert_eq!(service.finished(id).await["attempts"], 1);
        }
        let note = until(async || service.job(&ids[0]).await["note"].as_str().map(str::to_owned)).await;
        assert!(note.contains("look after this job's row") && note.contains("claim"), "{note}");
        let seen = rows(&service).await;
        assert!(seen["status"] == "degraded" && seen["detail"].as_str().unwrap().contains(&ids[0]), "{seen}");
        change(&place, "ALTER TABLE jobs DROP CONSTRAINT IF EXISTS not_bad; DROP FUNCTION IF EXISTS refuse CASCADE")
            .await;
        let job = service.finished(&ids[0]).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)), "{job}");
        assert_eq!(rows(&service).await, Value::Null);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_nobody_expects_are_read_as_far_as_they_can_be() {
    let (place, service) = start().await;
    let database = place.database().await;
    let mut dead = Listener::new(&service.nats, service.subject("dlq.probe")).await;
    let ids = paused(&service, 12).await;
    let uuids: Vec<Uuid> = ids.iter().map(|id| id.parse().unwrap()).collect();
    for (n, set) in [
        "tags = ARRAY[ARRAY['a', 'b'], ARRAY['c', 'd']]",
        "tags = ARRAY['a', NULL]",
        "run_at = '-infinity'",
        "created_at = '-infinity'",
        "created_at = 'infinity'",
        "run_at = 'infinity'",
        "run_at = '290000-01-01'",
    ]
    .into_iter()
    .enumerate()
    {
        let update = format!("UPDATE jobs SET {set} WHERE id = $1");
        sqlx::query(sqlx::AssertSqlSafe(update)).bind(uuids[n]).execute(&database).await.unwrap();
    }
    // All of it is looked at before anything is claimed.
    let turn = "SELECT next_at::text FROM duties WHERE name = 'sweep'";
    let mut turns: Vec<String> = Vec::new();
    until(async || {
        turns.push(sqlx::query_scalar(turn).fetch_one(&database).await.unwrap());
        turns.dedup();
        (turns.len() > 3).then_some(())
    })
    .await;
    let stats = service.call("getStats", json!({})).await;
    assert_eq!(stats["pending"], 12, "{stats}");
    let listed = service.call("listJobs", json!({"include": ["payload", "errors"]})).await;
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 12);
    assert_eq!(service.job(&ids[1]).await["tags"], json!(["a"]));
    assert_eq!(service.job(&ids[2]).await["runAt"], "0001-01-01T00:00:00.000000Z");

    service.call("resumeType", json!({"type": "probe"})).await;
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| ![0, 5, 6].contains(n)) {
        let job = service.finished(id).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)), "{n}: {job}");
    }
    let job = service.finished(&ids[0]).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("failed"), &json!(1)), "{job}");
    assert!(job["error"].as_str().unwrap().contains("the row of this job can't be read"), "{job}");
    assert_eq!(dead.next().await.1["id"], json!(ids[0]));
    for id in &ids[5..7] {
        assert_eq!(service.job(id).await["status"], "pending", "its time never comes");
    }
    let failed: Vec<_> = service.service.supervisor().report().into_iter().filter(|task| task.restarts > 0).collect();
    assert!(failed.is_empty(), "{failed:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_outcome_that_is_refused_holds_up_no_other_and_is_recorded_when_it_can_be() {
    let (place, service) = start().await;
    for refuse in [
        "ALTER TABLE finished_jobs ADD CONSTRAINT not_bad CHECK (payload ->> 'note' <> 'bad')",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.payload ->> 'note' = 'bad' THEN RAISE SQLSTATE 'QX001'; END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON finished_jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    ] {
        let note = |n| if n == 0 { "bad" } else { "good" };
        let probes = (0..20).map(|n| json!({"type": "probe", "payload": {"note": note(n), "wait": true}}));
        let ids = service.enqueue_many(probes.collect()).await;
        for id in &ids {
            place.journal.until(id, "start").await;
        }
        change(&place, refuse).await;
        place.journal.release();
        for id in &ids[1..] {
            service.finished(id).await;
        }
        let note = until(async || service.job(&ids[0]).await["note"].as_str().map(str::to_owned)).await;
        assert!(note.contains("record outcomes"), "{note}");
        // The lane goes on.
        let later = service.probe(json!({})).await;
        service.finished(&later).await;
        change(
            &place,
            "ALTER TABLE finished_jobs DROP CONSTRAINT IF EXISTS not_bad; DROP FUNCTION IF EXISTS refuse CASCADE",
        )
        .await;
        let job = service.finished(&ids[0]).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)), "{job}");
        assert_eq!(place.journal.count(&ids[0], "end"), 1, "its result was kept");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_that_can_not_be_ended_keeps_no_other_from_being_freed() {
    let mut place = Place::new().await;
    place.config.worker.enabled = false;
    let store = place.store().await;
    let jobs: Vec<_> = (0..9).map(job).collect();
    store.enqueue(&jobs, Duration::from_secs(3600), None).await.unwrap();
    let wanted: Vec<_> = jobs.iter().map(|job| (job.id, "probe".to_owned())).collect();
    // Of this worker nobody has ever heard.
    store.claim(&wanted, "ghost").await.unwrap();
    let bad = jobs[4].id;
    let refuse = format!("ALTER TABLE jobs ADD CONSTRAINT not_bad CHECK (id <> '{bad}' OR status <> 'pending')");
    sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(&place.database().await).await.unwrap();
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.id).collect();
    let freed = store.release_lost(&ids, WakeUp::Outbox).await.unwrap();
    assert_eq!(freed.len(), 8);
    assert!(freed.iter().all(|freed| freed.id != bad));
    assert_eq!(store.harmed().report().len(), 1);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_run_says_is_refused_alone() {
    let place = Place::new().await;
    let store = place.store().await;
    let jobs: Vec<_> = (0..9).map(job).collect();
    store.enqueue(&jobs, Duration::from_secs(3600), None).await.unwrap();
    let wanted: Vec<_> = jobs.iter().map(|job| (job.id, "probe".to_owned())).collect();
    let lease = Lease { lease: Duration::from_secs(30), timeout: Duration::from_secs(60) };
    let claims = store.claim_outside(&wanted, "somebody", lease).await.unwrap().claims;
    assert!(claims.iter().all(|claim| matches!(claim, Claim::Won(_))));
    let bad = jobs[4].id;
    let refuse = format!("ALTER TABLE jobs ADD CONSTRAINT not_bad CHECK (id <> '{bad}' OR progress IS NULL)");
    sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(&place.database().await).await.unwrap();
    let update = || Update::of_progress(Some(50.0), None);
    let notes: Vec<_> = jobs.iter().map(|job| Note { id: job.id, run: 1, update: update() }).collect();
    assert_eq!(store.write_notes(&notes).await.unwrap().len(), 8);
    let signs: Vec<_> = jobs.iter().map(|job| Sign { id: job.id, run: 1, job_type: None, update: update() }).collect();
    assert_eq!(store.renew(&signs).await.unwrap().len(), 8);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_outside_whose_deadline_can_not_be_said_is_refused_alone() {
    let place = Place::new().await;
    let store = place.store().await;
    let jobs: Vec<_> = (0..9).map(job).collect();
    store.enqueue(&jobs, Duration::from_secs(3600), None).await.unwrap();
    let endless = "UPDATE jobs SET timeout_ms = 9223372036854775807 WHERE id = $1";
    sqlx::query(endless).bind(jobs[4].id).execute(&place.database().await).await.unwrap();
    let wanted: Vec<_> = jobs.iter().map(|job| (job.id, "probe".to_owned())).collect();
    let lease = Lease { lease: Duration::from_secs(30), timeout: Duration::from_secs(60) };
    let claims = store.claim_outside(&wanted, "somebody", lease).await.unwrap().claims;
    for (n, claim) in claims.iter().enumerate() {
        match claim {
            Claim::Won(_) => assert_ne!(n, 4),
            Claim::Refused(refused) => assert_eq!((n, *refused), (4, Refused::Harmed)),
        }
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_day_that_can_not_be_dropped_keeps_no_other_one() {
    let place = Place::new().await;
    let (store, database) = (place.store().await, place.database().await);
    let day = async |ago: i32| -> String {
        let sql = "SELECT 'finished_failed_' || to_char((now() AT TIME ZONE 'UTC')::date - $1, 'YYYYMMDD')
                   FROM make_finished_partitions((now() AT TIME ZONE 'UTC')::date - $1)";
        sqlx::query_scalar(sql).bind(ago).fetch_one(&database).await.unwrap()
    };
    let (older, newer) = (day(61).await, day(60).await);
    let depend = format!("CREATE VIEW mine AS SELECT id FROM {older}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(depend)).execute(&database).await.unwrap();
    store.drop_expired(Status::Failed, Duration::from_secs(30 * 24 * 3600)).await.unwrap_err();
    let is_there = "SELECT to_regclass($1) IS NOT NULL";
    for (name, there) in [(older, true), (newer, false)] {
        let found: bool = sqlx::query_scalar(is_there).bind(&name).fetch_one(&database).await.unwrap();
        assert_eq!(found, there, "{name}");
    }
    store.close().await;
}

/// A schema that does not fit is nobody's fault among the jobs.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_fits_nothing_harms_no_job() {
    let place = Place::new().await;
    let store = place.store().await;
    let jobs: Vec<_> = (0..100).map(job).collect();
    store.enqueue(&jobs, Duration::from_secs(3600), None).await.unwrap();
    sqlx::raw_sql("ALTER TABLE held RENAME TO gone").execute(&place.database().await).await.unwrap();
    let wanted: Vec<_> = jobs.iter().map(|job| (job.id, "probe".to_owned())).collect();
    store.claim(&wanted, "somebody").await.unwrap_err();
    assert!(store.harmed().report().is_empty());
    store.close().await;
}
