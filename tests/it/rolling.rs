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

use crate::{
    books,
    child::Program,
    harness::{Place, servers, until},
    receiver::Receiver,
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
