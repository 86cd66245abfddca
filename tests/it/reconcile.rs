//! What the database says a worker holds, and the worker has forgotten, comes back; what it has in hand is left alone.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    books,
    child::Program,
    eager::until_eager,
    harness::{Place, start, until},
};

/// A program that panics the n-th time it comes by that point, and a client of it.
struct Failing {
    place: Place,
    program: Program,
    nats: async_nats::Client,
}

impl Failing {
    async fn start(at: &str, eager: bool) -> Self {
        let mut place = Place::new().await;
        place.config.worker.eager = eager;
        // Neither the repair sweep nor the end of a lease may be what helps.
        place.config.background.sweep = Duration::from_secs(3600);
        let variables = [("QUEUE_PANIC_AT", PathBuf::from(at)), ("QUEUE_FAULT_HANDLER", PathBuf::from("1"))];
        let program = Program::serve_with(&place.config, &variables).await;
        let nats = async_nats::connect(&place.config.nats.url).await.unwrap();
        Self { place, program, nats }
    }

    async fn ask(&self, verb: &str, request: Value) -> Value {
        let subject = format!("{}.{verb}", self.place.config.nats.prefix);
        let reply = self.nats.request(subject, request.to_string().into()).await.unwrap();
        serde_json::from_slice(&reply.payload).unwrap()
    }

    async fn enqueue(&self, n: usize) -> Vec<String> {
        let job = json!({"type": "misbehave", "payload": {"do": "work"}});
        let reply = self.ask("enqueueMany", json!({"jobs": vec![job; n]})).await;
        let ids =
            reply["results"].as_array().unwrap().iter().map(|result| result["jobId"].as_str().unwrap().to_owned());
        ids.collect()
    }

    async fn finished(&self, id: &str) -> Value {
        until(async || Some(self.ask("getJob", json!({"jobId": id})).await).filter(|job| job["status"] == "completed"))
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_a_panic_outside_of_its_handler_dropped_is_ended_as_lost_and_tried_again() {
    let failing = Failing::start("after_effect", true).await;
    let [id] = &failing.enqueue(1).await[..] else { panic!("one job") };
    let job = failing.finished(id).await;
    assert_eq!((&job["attempts"], &job["errors"][0]["kind"]), (&json!(2), &json!("lost")), "{job}");
    assert_eq!(job["errors"].as_array().unwrap().len(), 1, "{job}");
    failing.program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_dropped_before_its_handler_started_costs_no_attempt() {
    for eager in [true, false] {
        let failing = Failing::start("before_handler:3", eager).await;
        let database = failing.place.database().await;
        let ids = failing.enqueue(5).await;
        let mut runs = HashMap::new();
        for id in &ids {
            let job = failing.finished(id).await;
            assert_eq!((&job["attempts"], &job["errors"]), (&json!(1), &json!([])), "{job}");
            let run: i64 = sqlx::query_scalar("SELECT run FROM finished_jobs WHERE id = $1::uuid")
                .bind(id)
                .fetch_one(&database)
                .await
                .unwrap();
            *runs.entry(run).or_insert(0) += 1;
        }
        assert_eq!(runs, HashMap::from([(1, 4), (2, 1)]));
        failing.program.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_whose_answer_a_panic_dropped_come_back_and_cost_no_attempt() {
    let failing = Failing::start("after_claim", false).await;
    for id in failing.enqueue(20).await {
        let job = failing.finished(&id).await;
        assert_eq!((&job["attempts"], &job["errors"]), (&json!(1), &json!([])), "{job}");
    }
    let held = "SELECT count(*) FROM held";
    let database = failing.place.database().await;
    until(async || (sqlx::query_scalar::<_, i64>(held).fetch_one(&database).await.unwrap() == 0).then_some(())).await;
    failing.program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_were_written_as_started_by_an_intake_that_panics_then_start_later() {
    let failing = Failing::start("after_enqueue_commit:30", true).await;
    let database = failing.place.database().await;
    // The worker may not have said at the first ones that it has room.
    for _ in 1..30 {
        let [id] = &failing.enqueue(1).await[..] else { panic!("one job") };
        failing.finished(id).await;
    }
    let refused = failing.ask("enqueue", json!({"type": "misbehave", "payload": {"do": "work"}})).await;
    assert!(refused["jobId"].is_null(), "{refused}");
    let twice = "SELECT attempt, run FROM finished_jobs WHERE run > 1";
    let (attempt, run): (i16, i64) =
        until(async || sqlx::query_as(twice).fetch_optional(&database).await.unwrap()).await;
    assert_eq!((attempt, run), (1, 2));
    failing.program.stop().await;
}

/// Makes a waiting job a run of the service's worker that it knows nothing of.
async fn claim_behind_its_back(database: &sqlx::PgPool, id: &str, worker_id: &str) {
    let claim = "
        WITH claimed AS (
            UPDATE jobs SET status = 'processing', attempt = attempt + 1, run = run + 1, worker_id = $2, run_at = now(), started_at = now()
            WHERE id = $1 AND status = 'pending' RETURNING id, type
        ), counted AS (
            INSERT INTO job_count_deltas (type, status, day, n)
            SELECT type, change.status, 'epoch', change.n FROM claimed CROSS JOIN (VALUES ('pending', -1), ('processing', 1)) AS change (status, n)
        ), later AS (
            DELETE FROM outbox WHERE job_ids = ARRAY[$1]
        )
        INSERT INTO held (id, worker_id, job_ids) SELECT gen_random_uuid(), $2, array_agg(id) FROM claimed";
    sqlx::query(claim).bind(id.parse::<Uuid>().unwrap()).bind(worker_id).execute(database).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_hand_is_never_taken_however_often_the_worker_looks() {
    let (place, service) = start().await;
    let database = place.database().await;
    until_eager(&service).await;
    // Some were written as started, others claimed.
    let mut ids = Vec::new();
    for n in 0..20 {
        let delay = format!("{}ms", n % 2);
        ids.push(service.enqueue(json!({"type": "probe", "payload": {"wait": true}, "delay": delay})).await);
    }
    for id in &ids {
        place.journal.until(id, "start").await;
    }
    let worker_id = service.job(&ids[0]).await["workerId"].as_str().unwrap().to_owned();
    for _ in 0..4 {
        // Each comes back after two looks.
        let id = service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
        claim_behind_its_back(&database, &id, &worker_id).await;
        let job = service.finished(&id).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)), "{job}");
    }
    place.journal.release();
    let attempts = books::all_completed_once(&place, &service, &ids).await;
    assert!(attempts.values().all(|attempt| *attempt == 1), "{attempts:?}");
    let runs = "SELECT max(run) FROM finished_jobs WHERE id = ANY($1)";
    let ids: Vec<Uuid> = ids.iter().map(|id| id.parse().unwrap()).collect();
    let most: i64 = sqlx::query_scalar(runs).bind(ids).fetch_one(&database).await.unwrap();
    assert_eq!(most, 1);
    service.stop().await;
}
