//! Somebody replicates the whole database: every row can still be changed and deleted.

use serde_json::json;

use crate::harness::{Place, until};

/// Tables of the schema whose rows nothing tells apart.
const KEYLESS: &str = "
    SELECT relname::text FROM pg_class c
    WHERE relnamespace = 'queue'::regnamespace AND relkind IN ('r', 'p') AND relreplident = 'd'
      AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)";

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_all_tables_hinders_nothing() {
    let place = Place::new().await;
    let database = place.database().await;
    sqlx::raw_sql("CREATE PUBLICATION everything FOR ALL TABLES").execute(&database).await.unwrap();
    let service = place.start().await;
    let mut ids = vec![service.probe(json!({"fail": 1})).await];
    let request = json!({"type": "probe", "payload": {"permanent": true}});
    let failed = service.enqueue(request).await;
    assert_eq!(service.finished(&failed).await["status"], "failed");
    let cancelled = service.probe(json!({"wait": true})).await;
    place.journal.until(&cancelled, "start").await;
    service.call("cancelJob", json!({"jobId": cancelled})).await;
    assert_eq!(service.finished(&cancelled).await["status"], "cancelled");
    // What is retried is deleted among the finished ones.
    service.call("retryJob", json!({"jobId": cancelled})).await;
    until(async || (place.journal.count(&cancelled, "start") == 2).then_some(())).await;
    place.journal.release();
    ids.push(cancelled);
    for id in &ids {
        assert_eq!(service.finished(id).await["status"], "completed");
    }
    let items = json!({"items": [{"id": "a", "data": 1}, {"id": "b", "data": 2}]});
    for _ in 0..2 {
        let import = service.enqueue(json!({"type": "batch-import", "payload": items})).await;
        assert_eq!(service.finished(&import).await["status"], "completed");
    }
    // Statistics are folded, which deletes what had gathered.
    let store = place.store().await;
    until(async || {
        store.fold_counts().await.unwrap();
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM job_count_deltas").fetch_one(&database).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    // Days come and go.
    sqlx::raw_sql("SELECT make_finished_partitions('2020-01-01')").execute(&database).await.unwrap();
    let dropped = store.drop_expired(queue_service::job::Status::Failed, place.config.retention.failed).await.unwrap();
    assert_eq!(dropped.len(), 1);
    sqlx::raw_sql("SELECT make_finished_partitions('2099-12-31')").execute(&database).await.unwrap();
    let keyless: Vec<String> = sqlx::query_scalar(KEYLESS).fetch_all(&database).await.unwrap();
    assert!(keyless.is_empty(), "{keyless:?}");
    service.stop().await;
}
