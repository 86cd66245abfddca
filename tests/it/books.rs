//! What must be true of the records after any trouble, once it is quiet.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::{Place, Running, until};

/// Waits until all of `ids` are over, and then demands that every one of them completed exactly once, that nothing else
/// is left behind, and that the statistics equal a full count. Gives the attempts that each job took.
pub async fn all_completed_once(place: &Place, service: &Running, ids: &[String]) -> BTreeMap<String, i16> {
    let database = place.database().await;
    quiet(&database).await;
    let rows: Vec<(String, String, i16)> =
        sqlx::query_as("SELECT id::text, status, attempt FROM all_jobs").fetch_all(&database).await.unwrap();
    let mut attempts = BTreeMap::new();
    for (id, status, attempt) in rows {
        assert_eq!(status, "completed", "of job {id}");
        assert_eq!(attempts.insert(id.clone(), attempt), None, "job {id} is there twice");
    }
    for id in ids {
        assert!(attempts.contains_key(id), "job {id} was accepted and is lost");
    }
    numbers_add_up(&database, &service.call("getStats", json!({})).await).await;
    attempts
}

/// As [`all_completed_once`], and by the journal's account as well each of them ran to its end once.
pub async fn all_ran_once(place: &Place, service: &Running, ids: &[String]) {
    all_completed_once(place, service, ids).await;
    place.journal.all_ran_once(ids);
}

/// Demands that the statistics are what a count of all rows gives.
pub async fn numbers_add_up(database: &PgPool, stats: &Value) {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT status, count(*) FROM all_jobs GROUP BY status").fetch_all(database).await.unwrap();
    let total: i64 = rows.iter().map(|row| row.1).sum();
    assert_eq!(stats["total"], total, "{stats}");
    for status in ["pending", "processing", "completed", "failed", "cancelled"] {
        let counted = rows.iter().find(|row| row.0 == status).map_or(0, |row| row.1);
        assert_eq!(stats[status], counted, "{status} in {stats}");
    }
}

/// Waits until no job is live and every wake-up has been cleared away.
async fn quiet(database: &PgPool) {
    until(|| async {
        let sql = "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM outbox)";
        let left: i64 = sqlx::query_scalar(sql).fetch_one(database).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
}
