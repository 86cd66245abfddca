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
    // All fetched by nobody: a type whose workers come by themselves.
    service.call("registerType", json!({"type": "fetched", "handler": "pull"})).await;
    service.enqueue(json!({"type": "fetched", "payload": {}, "delay": "1h"})).await;
    assert_eq!(stats(&service).await["oldestPendingSeconds"], Value::Null, "what is not due does not wait");
    service.enqueue(json!({"type": "fetched", "payload": {}})).await;
    let waiting = until(async || stats(&service).await["oldestPendingSeconds"].as_f64().filter(|s| *s > 0.05));
    assert!(waiting.await < 20.0);
    let own = service.call("getStats.fetched", json!({})).await;
    assert!(own["oldestPendingSeconds"].as_f64().unwrap() > 0.05);
    let other = service.call("getStats.send-email", json!({})).await;
    assert_eq!((&other["oldestPendingSeconds"], &other["total"]), (&Value::Null, &json!(0)));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_nobody_answers_for_grows_older_all_the_while() {
    let (_place, service) = start().await;
    service.call("registerType", json!({"type": "lonely", "handler": "nats"})).await;
    let job = service.enqueue(json!({"type": "lonely", "payload": {}})).await;
    until(async || (stats(&service).await["unattended"] == json!(["lonely"])).then_some(())).await;
    // It is put off by a second, then by more, and is hardly ever due.
    let mut age = 0.0;
    let grown = until(async || {
        let stats = stats(&service).await;
        let now = stats["oldestPendingSeconds"].as_f64().unwrap_or_else(|| panic!("after {age} s: {stats}"));
        assert!(now >= age, "{now} after {age}: {stats}");
        age = now;
        (age > 4.0).then_some(stats)
    })
    .await;
    let own = service.call("getStats.lonely", json!({})).await;
    assert!(own["oldestPendingSeconds"].as_f64().unwrap() >= grown["oldestPendingSeconds"].as_f64().unwrap());
    let metrics = reqwest::get(service.url("/metrics")).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("queue_type_unattended{type=\"lonely\"} 1"), "{metrics}");
    let shown = metrics.lines().find_map(|line| line.strip_prefix("queue_oldest_pending_seconds ")).unwrap();
    assert!(shown.parse::<f64>().unwrap() > 4.0, "{metrics}");
    // For the moment of an offer it runs, and nothing is to be noted.
    let note = async |job: &Value| Some(job["note"].as_str()?.to_owned());
    assert!(until(async || note(&service.job(&job).await).await).await.contains("no handler"));
    let list = async || service.call("listJobs", json!({"type": "lonely"})).await["jobs"][0].clone();
    assert!(until(async || note(&list().await).await).await.contains("no handler"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_paused_types_are_counted_apart() {
    let (_place, service) = start().await;
    service.call("pauseType", json!({"type": "probe"})).await;
    service.probe(json!({})).await;
    let waits = async |key: &str| {
        let stats = until(async || {
            let stats = stats(&service).await;
            stats[key].as_f64().filter(|age| *age > 0.05).map(|_| stats)
        });
        stats.await
    };
    let stats = waits("oldestPausedSeconds").await;
    assert_eq!((&stats["oldestPendingSeconds"], &stats["paused"]), (&Value::Null, &json!(["probe"])), "{stats}");
    service.call("registerType", json!({"type": "fetched", "handler": "pull"})).await;
    service.enqueue(json!({"type": "fetched", "payload": {}})).await;
    let stats = waits("oldestPendingSeconds").await;
    let age = |key: &str| stats[key].as_f64().unwrap();
    assert!(age("oldestPendingSeconds") < age("oldestPausedSeconds"), "{stats}");
    let metrics = reqwest::get(service.url("/metrics")).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("queue_type_paused{type=\"probe\"} 1"), "{metrics}");
    service.stop().await;
}
