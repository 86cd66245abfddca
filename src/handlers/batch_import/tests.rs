//! What can be said without a database; and with one, for whoever names it.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, postgres::PgPoolOptions};

use super::*;
use crate::{
    handlers::AnyHandler,
    job::{FailureKind, JobType},
};

fn handler(db: PgPool) -> AnyHandler {
    AnyHandler::new(BatchImport::new(db)).unwrap()
}

fn faults(payload: &Value) -> Vec<String> {
    let nowhere = PgPoolOptions::new().connect_lazy("postgres://127.0.0.1:1/none").unwrap();
    let payload = serde_json::value::to_raw_value(payload).unwrap();
    handler(nowhere).check(&payload).0.into_iter().map(|(pointer, _)| pointer).collect()
}

#[tokio::test]
async fn every_fault_has_its_pointer() {
    let item = |id: &str| json!({"id": id, "data": {"any": ["thing", null]}});
    for (payload, expected) in [
        (json!({"items": [item("a"), {"id": "b", "data": null}]}), vec![]),
        (json!({"items": [item(&"é".repeat(255))], "namespace": "shop/1"}), vec![]),
        (json!({"items": []}), vec!["/items"]),
        (
            json!({"items": [item("a"), item(""), item("a\nb"), item(&"a".repeat(256))]}),
            vec!["/items/1/id", "/items/2/id", "/items/3/id"],
        ),
        (json!({"items": [item("a"), item("b"), item("a")]}), vec!["/items/2/id"]),
        (json!({"items": [item("a")], "namespace": ""}), vec!["/namespace"]),
        (json!({"items": [item("a")], "namespace": "a\u{7f}"}), vec!["/namespace"]),
        (json!({"items": [{"id": "a"}]}), vec!["/items/0"]),
        (json!({"items": [{"id": 5, "data": 1}]}), vec!["/items/0/id"]),
        (json!({"items": [{"id": "a", "data": 1, "more": 2}]}), vec!["/items/0"]),
        (json!({"items": vec![item("a"); 10_001]}), vec!["/items"]),
    ] {
        assert_eq!(faults(&payload), expected);
    }
    assert!(faults(&json!({"items": vec![item(""); 10_000]})).len() <= FAULTS_MAX + 1);
}

#[tokio::test]
async fn a_database_that_is_away_is_worth_another_attempt() {
    let nowhere = PgPoolOptions::new()
        .acquire_timeout(Duration::from_millis(100))
        .connect_lazy("postgres://127.0.0.1:1/none")
        .unwrap();
    let failure = run(&handler(nowhere), &context(), &json!({"items": [{"id": "a", "data": 1}]})).await.unwrap_err();
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Error, "the database could not be reached"));
}

#[test]
fn proofs_are_kept_for_more_than_a_year() {
    let job = Uuid::from_u128(0x0199_0000_0000_7fff_8fff_ffff_ffff_ffff);
    let (kept, now) = (oldest_kept(job).as_u128() >> 80, job.as_u128() >> 80);
    assert_eq!(now - kept, 400 * 24 * 3600 * 1000);
    assert_eq!(oldest_kept(Uuid::nil()), Uuid::nil());
}

fn context() -> RunContext {
    RunContext::detached(JobType::new("batch-import").unwrap(), Duration::from_secs(10))
}

async fn run(handler: &AnyHandler, ctx: &RunContext, payload: &Value) -> Result<Value, Failure> {
    let payload = serde_json::value::to_raw_value(payload).unwrap();
    handler.run(ctx, &payload).await.map(|result| serde_json::from_str(result.get()).unwrap())
}

/// A pool on an empty schema of the database named by `BATCH_IMPORT_TEST_URL`.
async fn database(schema: &'static str) -> PgPool {
    let url = std::env::var("BATCH_IMPORT_TEST_URL").unwrap();
    let mut admin = PgConnection::connect(&url).await.unwrap();
    let ddl = format!(
        "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; SET search_path = {schema}; {} {}",
        include_str!("../../../migrations/0003_imported_items.sql"),
        include_str!("../../../migrations/0004_imports.sql"),
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(ddl)).execute(&mut admin).await.unwrap();
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    PgPoolOptions::new()
        .connect_with(options.options([("search_path", schema), ("statement_timeout", "2s")]))
        .await
        .unwrap()
}

#[tokio::test]
#[ignore = "needs a database: BATCH_IMPORT_TEST_URL"]
async fn counts_are_exact_and_a_second_run_changes_nothing() {
    let db = database("batch_import_counts").await;
    let handler = handler(db.clone());
    let first = context();
    let items = |ids: &[&str], n: i32| ids.iter().map(|id| json!({"id": id, "data": {"n": n}})).collect::<Vec<_>>();
    let old = json!({"items": items(&["c", "a", "b"], 1), "namespace": "x"});
    let counted = json!({"namespace": "x", "inserted": 3, "updated": 0});
    assert_eq!(run(&handler, &first, &old).await.unwrap(), counted);
    let newer = run(&handler, &context(), &json!({"items": items(&["b", "d"], 2), "namespace": "x"})).await.unwrap();
    assert_eq!(newer, json!({"namespace": "x", "inserted": 1, "updated": 1}));
    let other = run(&handler, &context(), &json!({"items": items(&["b"], 3)})).await.unwrap();
    assert_eq!(other, json!({"namespace": "default", "inserted": 1, "updated": 0}));

    assert_eq!(run(&handler, &first, &old).await.unwrap(), counted);
    let kept: Vec<(String, i32)> =
        sqlx::query_as("SELECT id, (data->>'n')::int4 FROM imported_items WHERE namespace = 'x' ORDER BY id")
            .fetch_all(&db)
            .await
            .unwrap();
    let kept: Vec<(&str, i32)> = kept.iter().map(|(id, n)| (id.as_str(), *n)).collect();
    assert_eq!(kept, [("a", 1), ("b", 2), ("c", 1), ("d", 2)]);
}

#[tokio::test]
#[ignore = "needs a database: BATCH_IMPORT_TEST_URL"]
async fn the_largest_imports_of_the_same_items_neither_deadlock_nor_miscount() {
    let db = database("batch_import_race").await;
    let handler = handler(db.clone());
    let mut ids: Vec<String> = (0..10_000).map(|i| format!("item-{i}")).collect();
    let mut jobs = Vec::new();
    for n in 0..4 {
        ids.rotate_left(2_503);
        jobs.push(json!({"items": ids.iter().map(|id| json!({"id": id, "data": n})).collect::<Vec<_>>()}));
    }
    let contexts: Vec<RunContext> = (0..4).map(|_| context()).collect();
    let runs = (0..4).map(|n| run(&handler, &contexts[n], &jobs[n]));
    let results = futures_util::future::join_all(runs).await;
    let inserted: i64 = results.iter().map(|r| r.as_ref().unwrap()["inserted"].as_i64().unwrap()).sum();
    let updated: i64 = results.iter().map(|r| r.as_ref().unwrap()["updated"].as_i64().unwrap()).sum();
    assert_eq!((inserted, updated), (10_000, 30_000));

    // Two runs of one job at the same time: one writes, the other repeats what it counted.
    let ctx = context();
    let twice = futures_util::future::join(run(&handler, &ctx, &jobs[0]), run(&handler, &ctx, &jobs[0])).await;
    let expected = json!({"namespace": "default", "inserted": 0, "updated": 10_000});
    assert_eq!((twice.0.unwrap(), twice.1.unwrap()), (expected.clone(), expected));
}
