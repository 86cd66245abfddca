//! The service is found and counted like every NATS micro-service (ADR-32).

use serde_json::{Value, json};

use crate::harness::{Running, start, until};

async fn ask(service: &Running, subject: &str) -> Value {
    let answer = service.nats.request(subject.to_owned(), "".into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// Hides what differs from run to run, after a look that it is what it should be.
fn hide(service: &Running, mut answer: Value) -> Value {
    let id = std::mem::replace(&mut answer["id"], json!("[id]"));
    assert!(id.as_str().unwrap().len() == 32, "{id}");
    if let Some(started) = answer.get_mut("started") {
        let started = std::mem::replace(started, json!("[time]"));
        let at: chrono::DateTime<chrono::Utc> = started.as_str().unwrap().parse().unwrap();
        assert!((chrono::Utc::now() - at).num_seconds() < 120);
    }
    for endpoint in answer.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(busy) = endpoint.get_mut("processing_time") {
            let (busy, requests) = (busy.take().as_u64().unwrap(), endpoint["num_requests"].as_u64().unwrap());
            assert_eq!(endpoint["average_processing_time"].take(), json!(busy.checked_div(requests).unwrap_or(0)));
            assert_eq!(busy > 0, requests > 0);
        }
    }
    assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"));
    answer["version"] = json!("[version]");
    let prefix = &service.config.nats.prefix;
    let text = answer.to_string().replace(&format!("\"{prefix}\""), "\"PREFIX\"");
    serde_json::from_str(&text.replace(&format!("\"{prefix}."), "\"PREFIX.")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_introduces_itself_by_all_three_names() {
    let (_place, service) = start().await;
    let name = &service.config.nats.prefix;
    let ping = ask(&service, &format!("$SRV.PING.{name}")).await;
    let id = ping["id"].as_str().unwrap();
    assert_eq!(ask(&service, &format!("$SRV.PING.{name}.{id}")).await, ping);
    let info = ask(&service, &format!("$SRV.INFO.{name}.{id}")).await;
    insta::assert_json_snapshot!("ping", hide(&service, ping));
    insta::assert_json_snapshot!("info", hide(&service, info));
    // Everybody answers to this; ours is among them.
    let inbox = service.nats.new_inbox();
    let mut everybody = service.nats.subscribe(inbox.clone()).await.unwrap();
    service.nats.publish_with_reply("$SRV.PING", inbox, "".into()).await.unwrap();
    loop {
        let answer = futures_util::StreamExt::next(&mut everybody).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        if answer["name"] == json!(name) {
            break;
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_counts_requests_and_errors_truly() {
    let (_place, service) = start().await;
    let name = &service.config.nats.prefix;
    for _ in 0..3 {
        service.call("getStats", json!({})).await;
    }
    service.ask("getStats", "no json").await;
    service.ask("getJob.probe", uuid::Uuid::now_v7().to_string()).await;
    // Each is counted when it is answered, or a moment before or after.
    let stats = until(async || {
        let stats = ask(&service, &format!("$SRV.STATS.{name}")).await;
        let sum: u64 = stats["endpoints"].as_array().unwrap().iter().map(|e| e["num_requests"].as_u64().unwrap()).sum();
        (sum == 5).then_some(stats)
    });
    let stats = stats.await;
    let of = |name: &str| stats["endpoints"].as_array().unwrap().iter().find(|e| e["name"] == name).unwrap().clone();
    let get_stats = of("getStats");
    assert_eq!((&get_stats["num_requests"], &get_stats["num_errors"]), (&json!(4), &json!(1)));
    assert!(get_stats["last_error"].as_str().unwrap().starts_with("400:"), "{get_stats}");
    let typed = of("getJob-typed");
    assert_eq!((&typed["num_requests"], &typed["num_errors"]), (&json!(1), &json!(1)));
    assert!(typed["last_error"].as_str().unwrap().starts_with("404:no job"), "{typed}");
    let quiet = of("cancelJob");
    assert_eq!((&quiet["num_requests"], &quiet["last_error"]), (&json!(0), &json!("")));
    insta::assert_json_snapshot!(
        "stats_of_an_endpoint",
        hide(
            &service,
            json!({
                "id": stats["id"], "name": stats["name"], "version": stats["version"], "type": stats["type"],
                "started": stats["started"], "metadata": stats["metadata"], "endpoints": [of("cancelJob")],
            })
        )
    );
    service.stop().await;
}
