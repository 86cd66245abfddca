//! `batch-import` end to end: exact counts, upserts, all or none.

use serde_json::{Value, json};

use crate::harness::{start, until};

fn items(ids: std::ops::Range<u32>, data: &str) -> Value {
    ids.map(|id| json!({"id": format!("item-{id}"), "data": {"say": data}})).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_counts_exactly_what_it_inserted_and_updated() {
    let (place, service) = start().await;
    let import = async |payload: Value| {
        let id = service.enqueue(json!({"type": "batch-import", "payload": payload})).await;
        let job = service.finished(&id).await;
        assert_eq!(job["status"], "completed", "{job}");
        job["result"].clone()
    };
    let first = import(json!({"items": items(0..1000, "first"), "namespace": "shop"})).await;
    assert_eq!(first, json!({"namespace": "shop", "inserted": 1000, "updated": 0}));
    let second = import(json!({"items": items(900..1100, "second"), "namespace": "shop"})).await;
    assert_eq!(second, json!({"namespace": "shop", "inserted": 100, "updated": 100}));
    let elsewhere = import(json!({"items": items(0..10, "elsewhere")})).await;
    assert_eq!(elsewhere, json!({"namespace": "default", "inserted": 10, "updated": 0}));
    let count = "SELECT data ->> 'say', count(*) FROM imported_items WHERE namespace = 'shop' GROUP BY 1 ORDER BY 1";
    let said: Vec<(String, i64)> = sqlx::query_as(count).fetch_all(&place.database().await).await.unwrap();
    assert_eq!(said, [("first".to_owned(), 900), ("second".to_owned(), 200)]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_job_run_again_reports_the_same_and_writes_nothing() {
    let (place, service) = start().await;
    let payload = json!({"items": items(0..5, "mine"), "namespace": "n"});
    let id = service.enqueue(json!({"type": "batch-import", "payload": payload})).await;
    let done = service.finished(&id).await;
    // As if its worker had died after the items were written and before the outcome was.
    let database = place.database().await;
    for sql in [
        "UPDATE imported_items SET data = '\"changed since\"'",
        "WITH back AS (DELETE FROM finished_jobs RETURNING *)
         INSERT INTO jobs (id, type, max_attempts, payload, run) SELECT id, type, max_attempts, payload, run FROM back",
        "INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
         SELECT gen_random_uuid(), 'wake-up', now(), ARRAY[id], ARRAY['batch-import.normal'] FROM jobs",
    ] {
        sqlx::query(sql).execute(&database).await.unwrap();
    }
    let again = service.finished(&id).await;
    assert_ne!(again["finishedAt"], done["finishedAt"]);
    assert_eq!((&again["status"], &again["result"]), (&json!("completed"), &done["result"]));
    let kept = "SELECT count(*) FROM imported_items WHERE data #>> '{}' = 'changed since'";
    let kept: i64 = sqlx::query_scalar(kept).fetch_one(&database).await.unwrap();
    assert_eq!(kept, 5);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_of_the_same_items_at_the_same_time_wait_for_each_other() {
    let (_place, service) = start().await;
    let job = |reverse: bool| {
        let mut items = items(0..300, "x").as_array().unwrap().clone();
        if reverse {
            items.reverse();
        }
        json!({"type": "batch-import", "payload": {"items": items}})
    };
    let jobs: Vec<Value> = (0..8).map(|n| job(n % 2 == 0)).collect();
    let reply = service.call("enqueueMany", json!({"jobs": jobs})).await;
    let (mut inserted, mut updated) = (0, 0);
    for result in reply["results"].as_array().unwrap() {
        let job = service.finished(result["jobId"].as_str().unwrap()).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)));
        inserted += job["result"]["inserted"].as_i64().unwrap();
        updated += job["result"]["updated"].as_i64().unwrap();
    }
    assert_eq!((inserted, updated), (300, 2100));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_that_wait_leave_connections_to_those_who_only_ask() {
    let (place, service) = start().await;
    let database = place.database().await;
    let mut other = database.begin().await.unwrap();
    let insert =
        "INSERT INTO imported_items (namespace, id, data, job_id) VALUES ('default', 'item-0', '1', uuid_v7())";
    sqlx::query(insert).execute(&mut *other).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(service.enqueue(json!({"type": "batch-import", "payload": {"items": items(0..1, "mine")}})).await);
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%imported_items%'";
    until(async || (sqlx::query_scalar::<_, i64>(waiting).fetch_one(&database).await.unwrap() > 0).then_some(())).await;
    until(async || (service.call("getStats", json!({})).await["processing"] == 10).then_some(())).await;
    for id in &ids {
        assert_eq!(service.job(id).await["status"], "processing");
    }
    other.rollback().await.unwrap();
    for id in &ids {
        assert_eq!(service.finished(id).await["status"], "completed");
    }
    service.stop().await;
}
