//! What can be said without a database; the integration tests say the rest.

use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;

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
        (json!({"items": [{"id": "a", "data": 1, "more": 2}]}), vec!["/items/0/more"]),
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
    handler.run(ctx, &payload).await.result().map(|result| serde_json::from_str(result.get()).unwrap())
}
