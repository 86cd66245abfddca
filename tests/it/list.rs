//! Lists show what was asked for, newest first, page by page, live and finished jobs alike.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Place, Running, start, until};

fn ids(page: &Value) -> Vec<String> {
    page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

async fn list(service: &Running, request: Value) -> Vec<String> {
    ids(&service.call("listJobs", request).await)
}

/// A job of each status, oldest first, and their ids: waiting, retrying, running, completed, failed, cancelled.
async fn one_of_each(place: &Place, service: &Running) -> [String; 6] {
    let enqueue = async |tag: &str, payload: Value, delay: Option<&str>| {
        let request = json!({"type": "probe", "payload": payload, "delay": delay, "tags": ["all", tag]});
        service.enqueue(request).await
    };
    let waiting = enqueue("waiting", json!({}), Some("1h")).await;
    let retrying = enqueue("retrying", json!({"fail": 1, "retryAfterMs": 3_600_000}), None).await;
    let running = enqueue("running", json!({"wait": true}), None).await;
    let completed = enqueue("completed", json!({"note": "the result"}), None).await;
    let failed = enqueue("failed", json!({"permanent": true}), None).await;
    let cancelled = enqueue("cancelled", json!({}), Some("1h")).await;
    service.call("cancelJob", json!({"jobId": cancelled})).await;
    place.journal.until(&running, "start").await;
    until(async || (service.job(&retrying).await["error"] == "failed attempt 1").then_some(())).await;
    service.finished(&completed).await;
    service.finished(&failed).await;
    [waiting, retrying, running, completed, failed, cancelled]
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_show_what_they_name_and_several_of_them_are_joined() {
    let (place, service) = start().await;
    let [waiting, retrying, running, completed, failed, cancelled] = one_of_each(&place, &service).await;
    let expect = async |request: Value, expected: &[&String]| {
        let found = list(&service, request.clone()).await;
        assert_eq!(found, expected.iter().map(|id| (*id).clone()).collect::<Vec<_>>(), "{request}");
    };
    expect(json!({}), &[&cancelled, &failed, &completed, &running, &retrying, &waiting]).await;
    expect(json!({"status": "pending"}), &[&retrying, &waiting]).await;
    expect(json!({"status": "scheduled"}), &[&waiting]).await;
    expect(json!({"status": "retrying"}), &[&retrying]).await;
    expect(json!({"status": "processing"}), &[&running]).await;
    expect(json!({"status": ["completed"]}), &[&completed]).await;
    expect(json!({"status": ["failed", "cancelled", "processing"]}), &[&cancelled, &failed, &running]).await;
    expect(json!({"status": ["scheduled", "completed"]}), &[&completed, &waiting]).await;
    expect(json!({"tag": "failed"}), &[&failed]).await;
    expect(json!({"tag": "all", "status": "cancelled"}), &[&cancelled]).await;
    expect(json!({"tag": "waiting", "status": "cancelled"}), &[]).await;
    expect(json!({"tag": "nobody has this"}), &[]).await;
    expect(json!({"type": "probe", "limit": 1}), &[&cancelled]).await;
    expect(json!({"type": "send-email"}), &[]).await;
    expect(json!({"offset": 4}), &[&retrying, &waiting]).await;
    expect(json!({"offset": 1, "limit": 2}), &[&failed, &completed]).await;
    expect(json!({"offset": 100}), &[]).await;
    place.journal.release();
    service.finished(&running).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_listed_for_as_long_as_it_runs_and_then_leaves_no_record() {
    let (place, service) = start().await;
    let running = async || {
        let (mut all, mut cursor) = (Vec::new(), Value::Null);
        loop {
            let request = json!({"status": "processing", "limit": 3, "cursor": cursor});
            let page = service.call("listJobs", request).await;
            all.extend(ids(&page));
            cursor = page["nextCursor"].clone();
            if cursor.is_null() {
                return all;
            }
        }
    };
    let short = service.probe(json!({"wait": true})).await;
    place.journal.until(&short, "start").await;
    let mut long = Vec::new();
    for _ in 0..5 {
        let id = service.probe(json!({"sleepMs": 600_000})).await;
        place.journal.until(&id, "start").await;
        long.insert(0, id);
    }
    assert_eq!(running().await, [&long[..], std::slice::from_ref(&short)].concat());
    place.journal.release();
    service.finished(&short).await;
    assert_eq!(running().await, long);
    for id in &long {
        service.call("cancelJob", json!({"jobId": id})).await;
        service.finished(id).await;
    }
    assert_eq!(running().await, [""; 0]);
    let database = place.database().await;
    until(async || {
        let (rows,): (i64,) = sqlx::query_as("SELECT count(*) FROM held").fetch_one(&database).await.unwrap();
        (rows == 0).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_by_cursor_show_every_job_once_while_others_come_and_finish() {
    let (place, service) = start().await;
    let mut all = BTreeSet::new();
    for n in 0..5 {
        let job = |i: usize| match i % 3 {
            0 => json!({"type": "probe", "payload": {}, "delay": "1h"}),
            1 => json!({"type": "probe", "payload": {"sleepMs": i * 5}}),
            _ => json!({"type": "probe", "payload": {"wait": true}}),
        };
        let jobs: Vec<Value> = (0..23).map(|i| job(i + n)).collect();
        all.extend(service.enqueue_many(jobs).await);
    }
    let mut seen = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let page = service.call("listJobs", json!({"limit": 7, "cursor": cursor})).await;
        seen.extend(ids(&page));
        cursor = page["nextCursor"].clone();
        // New ones are newer than all pages to come; finished ones change their table meanwhile.
        service.probe(json!({})).await;
        place.journal.release();
        if cursor.is_null() {
            break;
        }
    }
    assert!(seen.is_sorted_by(|newer, older| newer > older), "newest first");
    assert_eq!(seen.len(), all.len());
    assert_eq!(BTreeSet::from_iter(seen), all);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_parts_are_null_unless_they_are_included() {
    let (_place, service) = start().await;
    let id = service.probe(json!({"note": "n", "fail": 1})).await;
    let job = service.finished(&id).await;
    let plain = service.call("listJobs", json!({})).await["jobs"][0].clone();
    for part in ["payload", "result", "errors"] {
        assert_eq!(plain[part], Value::Null);
        let shown = service.call("listJobs", json!({"include": part})).await["jobs"][0].clone();
        assert_eq!(shown[part], job[part]);
        assert_ne!(shown[part], Value::Null);
        assert_eq!(["payload", "result", "errors"].iter().filter(|p| !shown[**p].is_null()).count(), 1);
    }
    let all = service.call("listJobs", json!({"include": ["payload", "result", "errors"]})).await["jobs"][0].clone();
    assert_eq!(all, job, "with everything it is the job as getJob shows it");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_grows_too_large_ends_early_and_says_where_to_go_on() {
    let (_place, service) = start().await;
    let mut all = Vec::new();
    for _ in 0..5 {
        let payload = json!({"note": "x".repeat(250 * 1024)});
        all.push(service.enqueue(json!({"type": "probe", "payload": payload, "delay": "1h"})).await);
    }
    all.reverse();
    let first = service.call("listJobs", json!({"include": "payload"})).await;
    assert_eq!(ids(&first), all[..3]);
    let second = service.call("listJobs", json!({"include": "payload", "cursor": first["nextCursor"]})).await;
    assert_eq!(ids(&second), all[3..]);
    assert_eq!(second["nextCursor"], Value::Null);
    assert_eq!(list(&service, json!({})).await, all, "without the payloads all fit");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_page_has_no_next_one_even_when_it_is_full() {
    let (_place, service) = start().await;
    for _ in 0..4 {
        service.enqueue(json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
    }
    let first = service.call("listJobs", json!({"limit": 2})).await;
    assert_eq!((&first["limit"], &first["offset"]), (&json!(2), &json!(0)));
    let second = service.call("listJobs", json!({"limit": 2, "cursor": first["nextCursor"]})).await;
    assert_eq!((ids(&second).len(), &second["nextCursor"]), (2, &Value::Null));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_bounds_is_refused_with_the_place_of_the_fault() {
    let (_place, service) = start().await;
    for (request, path) in [
        (json!({"limit": 0}), "/limit"),
        (json!({"limit": 1001}), "/limit"),
        (json!({"limit": -1}), "/limit"),
        (json!({"offset": -1}), "/offset"),
        (json!({"offset": 100_001}), "/offset"),
        (json!({"status": "done"}), "/status"),
        (json!({"status": ["failed", "done"]}), "/status/1"),
        (json!({"include": "everything"}), "/include"),
        (json!({"include": ["payload", "everything"]}), "/include/1"),
        (json!({"type": "a.b"}), "/type"),
        (json!({"cursor": "forged"}), "/cursor"),
        (json!({"colour": "blue"}), "/colour"),
    ] {
        let refused = service.ask("listJobs", request.to_string()).await;
        assert_eq!(refused.code(), Some("invalid_request"), "{request}");
        assert_eq!(refused.body["errors"][0]["path"], path, "{request}: {}", refused.body);
    }
    service.call("listJobs", json!({"limit": 1000, "offset": 100_000})).await;
    service.stop().await;
}
