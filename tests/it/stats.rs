//! Numbers add up: at a quiet moment the statistics equal a full count.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Place, Running, start, until};

const STATUSES: [&str; 5] = ["pending", "processing", "completed", "failed", "cancelled"];

/// The counts of both tables, as `byType` has them.
async fn full_count(place: &Place) -> Value {
    let rows: Vec<(String, String, i64)> =
        sqlx::query_as("SELECT type, status, count(*) FROM all_jobs GROUP BY type, status")
            .fetch_all(&place.database().await)
            .await
            .unwrap();
    let mut by_type = BTreeMap::<String, Value>::new();
    for (name, status, n) in rows {
        let none = || json!({"pending": 0, "processing": 0, "completed": 0, "failed": 0, "cancelled": 0});
        by_type.entry(name).or_insert_with(none)[status] = json!(n);
    }
    json!(by_type)
}

async fn stats(service: &Running) -> Value {
    service.call("getStats", json!({})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_equal_a_full_count_after_anything_that_can_happen() {
    let (place, service) = start().await;
    let mut ids = Vec::new();
    for n in 0..80_u32 {
        let request = match n % 8 {
            0 => json!({"type": "probe", "payload": {"fail": 1}}),
            1 => json!({"type": "probe", "payload": {"fail": 9}, "maxAttempts": 2}),
            2 => json!({"type": "probe", "payload": {"permanent": true}}),
            3 => json!({"type": "probe", "payload": {"wait": true}}),
            4 => json!({"type": "probe", "payload": {"panic": true}, "maxAttempts": 1}),
            5 => json!({"type": "batch-import", "payload": {"items": [{"id": n.to_string(), "data": n}]}}),
            6 => json!({"type": "probe", "payload": {}, "delay": "1h", "idempotencyKey": format!("k{}", n % 16)}),
            _ => json!({"type": "probe", "payload": {"sleepMs": 20}, "priority": (n as i64 % 19) - 9}),
        };
        ids.push((n % 8, service.enqueue(request).await));
    }
    for (kind, id) in &ids {
        match kind {
            2 => _ = service.ask("retryJob", id.clone()).await,
            3 | 6 | 7 => _ = service.ask("cancelJob", id.clone()).await,
            _ => {}
        }
    }
    let quiet = until(async || {
        let stats = stats(&service).await;
        (stats["pending"] == 0 && stats["processing"] == 0).then_some(stats)
    });
    let quiet = quiet.await;
    assert_eq!(quiet["byType"], full_count(&place).await);
    for status in STATUSES {
        let sum: i64 = quiet["byType"].as_object().unwrap().values().map(|t| t[status].as_i64().unwrap()).sum();
        assert_eq!(quiet[status], sum, "{status}");
    }
    let total: i64 = STATUSES.iter().map(|status| quiet[status].as_i64().unwrap()).sum();
    assert_eq!(quiet["total"], total);
    let store = place.store().await;
    while store.fold_counts().await.unwrap() > 0 {}
    assert_eq!(stats(&service).await, quiet, "folding changes nothing");
    store.close().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_are_shares_of_the_total() {
    let (_place, service) = start().await;
    let none = stats(&service).await;
    assert_eq!((&none["completionRate"], &none["failureRate"]), (&json!("0.00%"), &json!("0.00%")));
    assert_eq!((&none["total"], &none["byType"], &none["oldestPendingSeconds"]), (&json!(0), &json!({}), &Value::Null));
    for payload in [json!({}), json!({}), json!({"permanent": true})] {
        let id = service.probe(payload).await;
        service.finished(&id).await;
    }
    let some = stats(&service).await;
    assert_eq!((&some["completionRate"], &some["failureRate"]), (&json!("66.67%"), &json!("33.33%")));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_waiting_job_is_of_the_type_that_was_asked_for() {
    let (_place, service) = start().await;
    service.call("pauseType", json!({"type": "probe"})).await;
    service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    assert_eq!(stats(&service).await["oldestPendingSeconds"], Value::Null, "what is not due does not wait");
    service.probe(json!({})).await;
    let waiting = until(async || stats(&service).await["oldestPendingSeconds"].as_f64().filter(|s| *s > 0.05));
    assert!(waiting.await < 20.0);
    let own = service.call("getStats.probe", json!({})).await;
    assert!(own["oldestPendingSeconds"].as_f64().unwrap() > 0.05);
    let other = service.call("getStats.send-email", json!({})).await;
    assert_eq!((&other["oldestPendingSeconds"], &other["total"]), (&Value::Null, &json!(0)));
    service.stop().await;
}
