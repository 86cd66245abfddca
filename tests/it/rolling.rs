//! Deploys: processes are replaced under load, old ones work beside a newer schema, and a migration is cut off.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use queue_service::config::AllowPrivate;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    books,
    child::Program,
    harness::{Place, servers, start, until},
    keys,
    receiver::Receiver,
    values::known_to_sql,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_deploy_shows_callers_nothing_that_asking_again_with_the_same_key_does_not_cure() {
    let mut place = Place::new().await;
    place.config.webhook.allow_private = AllowPrivate::All(true);
    place.config.worker.types = vec!["webhook-delivery".into()];
    place.config.worker.lease = Duration::from_secs(10);
    let receiver = Arc::new(Receiver::start().await);
    let mut fleet = Vec::new();
    for _ in 0..3 {
        fleet.push(Program::serve(&place.config).await);
    }
    let (stop, accepted) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..4 {
        let (receiver, stop, accepted) = (receiver.clone(), stop.clone(), accepted.clone());
        let nats = async_nats::connect(&place.config.nats.url).await.unwrap();
        let subject = format!("{}.enqueue", place.config.nats.prefix);
        callers.spawn(async move {
            let mut ids = Vec::new();
            for n in 0.. {
                let mut request = receiver.slow(50);
                request["idempotencyKey"] = json!(format!("{caller}-{n}"));
                let id = loop {
                    match accepted_as(&nats, &subject, &request).await {
                        Some(id) => break id,
                        None => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                };
                ids.push(id);
                accepted.fetch_add(1, Ordering::SeqCst);
                if stop.is_cancelled() {
                    return ids;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ids
        });
    }
    for _ in 0..3 {
        let goal = accepted.load(Ordering::SeqCst) + 60;
        until(async || (accepted.load(Ordering::SeqCst) >= goal).then_some(())).await;
        fleet.remove(0).stop().await;
        fleet.push(Program::serve(&place.config).await);
    }
    stop.cancel();
    let ids: Vec<String> = callers.join_all().await.into_iter().flatten().collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "one key, one job");

    place.config.worker.enabled = false;
    let door = place.start().await;
    let attempts = books::all_completed_once(&place, &door, &ids).await;
    assert_eq!(attempts.len(), ids.len(), "a job that nobody was told of");
    assert!(attempts.values().all(|attempt| *attempt == 1), "a deploy spends no attempt: {attempts:?}");
    for id in &ids {
        assert_eq!(receiver.deliveries(id), 1, "deliveries of {id}");
    }
    for program in fleet {
        program.stop().await;
    }
    door.stop().await;
}

/// The job's id when the request is accepted. No answer is an answer: whoever was asked has just gone.
async fn accepted_as(nats: &async_nats::Client, subject: &str, request: &Value) -> Option<String> {
    let ask = async_nats::Request::new().payload(request.to_string().into()).timeout(Some(Duration::from_secs(3)));
    let message = nats.send_request(subject.to_owned(), ask).await.ok()?;
    let answer: Value = serde_json::from_slice(&message.payload).unwrap();
    if answer["jobId"].is_null() {
        assert!(["unavailable", "overloaded"].contains(&answer["code"].as_str().unwrap()), "{answer}");
    }
    answer["jobId"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_older_than_the_schema_starts_and_runs_jobs() {
    let place = Place::new().await;
    let store = place.store().await;
    store.close().await;
    let database = place.database().await;
    // As the next version's migration would: it only adds.
    sqlx::raw_sql(
        "ALTER TABLE jobs ADD COLUMN later text; ALTER TABLE finished_jobs ADD COLUMN later text;
         INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', true, '\\x00', 0)",
    )
    .execute(&database)
    .await
    .unwrap();
    let service = place.start().await;
    let mut ids = vec![service.probe(json!({"fail": 1})).await];
    let cancelled = service.probe(json!({"wait": true})).await;
    place.journal.until(&cancelled, "start").await;
    service.call("cancelJob", json!({"jobId": cancelled})).await;
    assert_eq!(service.finished(&cancelled).await["status"], "cancelled");
    service.call("retryJob", json!({"jobId": cancelled})).await;
    until(async || (place.journal.count(&cancelled, "start") == 2).then_some(())).await;
    place.journal.release();
    ids.push(cancelled);
    books::all_completed_once(&place, &service, &ids).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_killed_in_the_middle_is_made_whole_by_the_next_process() {
    let mut place = Place::new().await;
    let postgres = &servers().await.postgres;
    let name = format!("{}_cut", place.config.nats.prefix);
    postgres.create_database(&name).await.unwrap();
    place.config.database.url = postgres.url(&name);
    let operator = PgPool::connect(&postgres.url(&name)).await.unwrap();
    // Holds every migration up when it makes this table, with others of the same file made before.
    sqlx::raw_sql(
        "CREATE FUNCTION hold_up() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%.workers') THEN
                 PERFORM pg_advisory_xact_lock_shared(99);
             END IF; END $$;
         CREATE EVENT TRIGGER hold_up ON ddl_command_end EXECUTE FUNCTION hold_up()",
    )
    .execute(&operator)
    .await
    .unwrap();
    let mut gate = operator.acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(99)").execute(&mut *gate).await.unwrap();
    let mut first = Program::start(&["migrate"], Some(&place.config));
    until(async || {
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 99 AND NOT granted";
        let n: i64 = sqlx::query_scalar(held).fetch_one(&operator).await.unwrap();
        (n == 1).then_some(())
    })
    .await;
    first.kill().await;
    let others: Vec<Program> = (0..10).map(|_| Program::start(&["migrate"], Some(&place.config))).collect();
    sqlx::query("SELECT pg_advisory_unlock(99)").execute(&mut *gate).await.unwrap();
    for mut migrator in others {
        let status = migrator.ended().await;
        assert!(status.success(), "{status}:\n{}", migrator.log());
    }
    let service = place.start().await;
    let id = service.probe(json!({})).await;
    books::all_completed_once(&place, &service, &[id]).await;
    service.stop().await;
}

/// As the version before wrote new jobs with keys: row, outbox row, key and count in one statement.
const OLDER_INSERT: &str = r#"
WITH batch AS (
    SELECT b.*, CASE WHEN delay_us IS NOT NULL THEN now() + delay_us * interval '1 microsecond'
                     ELSE greatest(at, now()) END AS due_at
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int2[], $5::int2[], $6::int8[], $7::int8[],
                $8::timestamptz[], $9::text[], $10::text[], $11::bytea[], $14::text[])
         WITH ORDINALITY AS b (id, type, payload, priority, max_attempts, timeout_ms, delay_us, at, tags, key, hash, traceparent, place)
), keyed AS (
    INSERT INTO job_keys (key, job_id, content_hash)
    SELECT DISTINCT ON (key) key, id, hash FROM batch WHERE key IS NOT NULL ORDER BY key, place
    ON CONFLICT (key) DO NOTHING
    RETURNING job_id
), inserted AS (
    INSERT INTO jobs (id, type, payload, priority, max_attempts, timeout_ms, tags, idempotency_key, run_at, traceparent)
    SELECT id, type, payload::json, priority, max_attempts, timeout_ms,
           CASE WHEN tags IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(tags::json)) END, key, due_at, traceparent
    FROM batch WHERE key IS NULL OR id IN (SELECT job_id FROM keyed)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, type, status, priority, run_at, run_at <= now() AS due, status = 'processing' AS started
), aimed AS (
    SELECT id, run_at, due,
           type || CASE sign(priority) WHEN 1 THEN '.high' WHEN 0 THEN '.normal' ELSE '.low' END AS target
    FROM inserted WHERE NOT started
), now_due AS (
    INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
    SELECT $12, 'wake-up', now() + $13 * interval '1 millisecond', array_agg(id), array_agg(target)
    FROM aimed WHERE due HAVING count(*) > 0
), counted AS (
    INSERT INTO job_count_deltas (type, status, day, n)
    SELECT type, status, 'epoch', count(*) FROM inserted GROUP BY type, status
)
SELECT id FROM inserted"#;

/// How it looked keys up that were taken.
const OLDER_KEYS: &str = r#"
SELECT k.key, k.job_id, k.content_hash, (SELECT status FROM all_jobs j WHERE j.id = k.job_id) AS status
FROM job_keys k WHERE k.key = ANY($1)"#;

/// What a replica of the version before answers: the job's id and whether it was there.
async fn ask_older(database: &PgPool, job_type: &str, payload: &str, key: &str) -> Result<(String, bool), String> {
    let [hash, _] = keys::older_hashes(database, job_type, payload).await;
    let nothing: Vec<Option<i64>> = vec![None];
    let no_text: Vec<Option<String>> = vec![None];
    let made: Vec<(Uuid,)> = sqlx::query_as(OLDER_INSERT)
        .bind(vec![Uuid::now_v7()])
        .bind(vec![job_type])
        .bind(vec![payload])
        .bind(vec![0i16])
        .bind(vec![3i16])
        .bind(&nothing)
        .bind(&nothing)
        .bind(vec![None::<chrono::DateTime<chrono::Utc>>])
        .bind(&no_text)
        .bind(vec![key])
        .bind(vec![hash.as_slice()])
        .bind(Uuid::now_v7())
        .bind(0i64)
        .bind(&no_text)
        .fetch_all(database)
        .await
        .unwrap();
    if let [(id,)] = made[..] {
        return Ok((id.to_string(), false));
    }
    let rows: Vec<(String, Uuid, Vec<u8>, Option<String>)> =
        sqlx::query_as(OLDER_KEYS).bind(vec![key]).fetch_all(database).await.unwrap();
    match &rows[..] {
        [(_, id, theirs, Some(_))] if *theirs == hash => Ok((id.to_string(), true)),
        [(_, id, _, Some(_))] => Err(id.to_string()),
        other => panic!("it would ask for ever: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_job_between_replicas_of_two_versions_and_sql() {
    const PAYLOAD: &str = r#"{"note":"a","sleepMs":1}"#;
    let (place, service) = start().await;
    let database = known_to_sql(&place, &["probe"]).await;
    let newer = async |key: &str| {
        let payload: Value = serde_json::from_str(PAYLOAD).unwrap();
        let request = json!({"type": "probe", "payload": payload, "idempotencyKey": key});
        let said = service.call("enqueue", request).await;
        said["jobId"].as_str().unwrap().to_owned()
    };
    let by_sql = async |key: &str| {
        let ask = "SELECT queue.enqueue('probe', '{\"sleepMs\": 1.0, \"note\": \"a\"}', idempotency_key => $1)";
        sqlx::query_scalar::<_, Uuid>(ask).bind(key).fetch_one(&database).await.unwrap().to_string()
    };
    let mut ids = Vec::new();
    for (n, first) in ["older", "newer"].into_iter().enumerate() {
        let key = format!("deploy-{n}");
        let id = match first {
            "older" => ask_older(&database, "probe", PAYLOAD, &key).await.unwrap().0,
            _ => newer(&key).await,
        };
        for _ in 0..2 {
            assert_eq!(ask_older(&database, "probe", PAYLOAD, &key).await, Ok((id.clone(), true)));
            assert_eq!((newer(&key).await, by_sql(&key).await), (id.clone(), id.clone()), "{first} was the first");
        }
        ids.push(id);
    }
    // One that SQL has made is one job for both, too: the version before answers a conflict, as it always did.
    let id = by_sql("deploy-sql").await;
    assert_eq!(newer("deploy-sql").await, id);
    assert_eq!(ask_older(&database, "probe", PAYLOAD, "deploy-sql").await, Err(id.clone()));
    ids.push(id);
    // All at once, and many of them.
    let race = (0..30).map(async |n| {
        let key = format!("race-{}", n % 10);
        match n / 10 {
            0 => ask_older(&database, "probe", PAYLOAD, &key).await.map_or_else(|id| id, |(id, _)| id),
            1 => newer(&key).await,
            _ => by_sql(&key).await,
        }
    });
    let made = futures_util::future::join_all(race).await;
    for n in 0..10 {
        assert!(made[n] == made[n + 10] && made[n] == made[n + 20], "race-{n}");
        ids.push(made[n].clone());
    }
    books::all_completed_once(&place, &service, &ids).await;
    service.stop().await;
}
