//! Values at every door: what is taken, what is kept as it was written, and what harms nobody but itself.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::{
    harness::{Place, Running, start, until},
    outside::Handler,
};

/// What the service answered, as it stands there.
async fn text(service: &Running, verb: &str, body: &str) -> String {
    let answer = service.nats.request(service.subject(verb), body.to_owned().into()).await.unwrap();
    String::from_utf8(answer.payload.to_vec()).unwrap()
}

async fn fetched(service: &Running, wish: &str) -> Vec<Value> {
    let answer = service.ask("work.fetch", wish).await;
    assert_eq!(answer.code(), None, "{}", answer.body);
    answer.body["jobs"].as_array().unwrap().clone()
}

async fn register(service: &Running, name: &str, handler: &str) {
    let definition = json!({"type": name, "handler": handler, "timeout": "1h", "backoff": {"base": "20ms"}});
    service.call("registerType", definition).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_integer_may_be_written_with_a_fraction_of_nothing() {
    let (_place, service) = start().await;
    service
        .ask("registerType", r#"{"type": "pulled", "handler": "pull", "maxAttempts": 3.0, "concurrency": 2.0}"#)
        .await;
    // A program's own integers in the payload, too.
    let request = r#"{"type": "probe", "priority": 5.0, "maxAttempts": 2e0,
                      "payload": {"fail": 0.0, "sleepMs": 1.0, "note": "1.0"}}"#;
    let made = service.ask("enqueue", request).await;
    assert_eq!(made.code(), None, "{}", made.body);
    let job = service.finished(made.body["jobId"].as_str().unwrap()).await;
    assert_eq!((&job["status"], &job["priority"], &job["maxAttempts"]), (&json!("completed"), &json!(5), &json!(2)));
    assert_eq!(job["payload"], json!({"fail": 0.0, "sleepMs": 1.0, "note": "1.0"}), "as it was written");

    let by_http = service.web("POST", "/jobs", &[], r#"{"type": "pulled", "payload": {}, "priority": -1.0}"#).await;
    assert_eq!(by_http.status, 201, "{}", by_http.text);
    let id = by_http.json()["jobId"].as_str().unwrap().to_owned();
    let wait = service.ask("waitJob", format!(r#"{{"jobId": "{id}", "timeoutMs": 1.0}}"#)).await;
    assert_eq!(wait.code(), Some("wait_timeout"), "{}", wait.body);
    let listed = service.ask("listJobs", r#"{"limit": 1.0, "offset": 0.0}"#).await;
    assert_eq!(listed.body["jobs"].as_array().map(Vec::len), Some(1), "{}", listed.body);
    assert_eq!(service.web("GET", "/jobs?limit=1.0", &[], "").await.status, 200);

    let wish = r#"{"types": ["pulled"], "workerId": "w", "max": 1.0, "waitMs": 3e4, "leaseMs": 60000.0}"#;
    assert_eq!(fetched(&service, wish).await[0]["id"], json!(id));
    let beat = format!(r#"{{"workerId": "w", "runs": [{{"jobId": "{id}", "run": 1.0, "percent": 10}}]}}"#);
    assert_eq!(service.ask("work.heartbeat", beat).await.body["runs"][0]["state"], "held");
    let sign = r#"{"run": 1.0, "percent": 20, "message": "by a map of doubles"}"#;
    service.nats.publish(service.subject(&format!("progress.pulled.{id}")), sign.into()).await.unwrap();
    until(async || (service.job(&id).await["progress"]["percent"] == 20.0).then_some(())).await;
    let back = format!(r#"{{"jobId": "{id}", "run": 1.0}}"#);
    assert_eq!(service.ask("work.release", back).await.body["status"], "pending");
    assert_eq!(fetched(&service, wish).await[0]["run"], 2);
    let failed = format!(r#"{{"jobId": "{id}", "run": 2.0, "message": "once more", "retryAfter": 0.0}}"#);
    assert_eq!(service.ask("work.fail", failed).await.body["status"], "pending");
    assert_eq!(fetched(&service, wish).await[0]["run"], 3);
    let done = format!(r#"{{"jobId": "{id}", "run": 3.0, "result": null}}"#);
    assert_eq!(service.ask("work.complete", done).await.body["status"], "completed");
    let late = format!(r#"{{"jobId": "{id}", "run": 3.0, "result": null}}"#);
    assert_eq!(service.ask("finish", late).await.code(), None);
    // Anything else is still no integer, and is told where.
    for (verb, request, path) in [
        ("enqueue", r#"{"type": "probe", "payload": {}, "priority": 0.5}"#, "/priority"),
        ("enqueue", r#"{"type": "probe", "payload": {"sleepMs": 0.5}}"#, "/payload/sleepMs"),
        ("listJobs", r#"{"limit": 1.5}"#, "/limit"),
        ("listJobs", r#"{"limit": 1e300}"#, "/limit"),
    ] {
        let refused = service.ask(verb, request).await;
        assert_eq!(refused.body["errors"][0]["path"], path, "{}", refused.body);
    }
    service.stop().await;
}

/// What a run hands over, and what is kept of it; `Err`: the pointer that its failure names.
const HANDED_OVER: [(&str, Result<&str, &str>); 6] = [
    ("18446744073709551615", Ok("18446744073709551615")),
    (r#"{"n":18446744073709551616,"m":[1.10,1E+5]}"#, Ok(r#"{"n":18446744073709551616,"m":[1.10,1E+5]}"#)),
    (r#"{"n":18446744073709551616,"t":"a\u0000b"}"#, Ok("{\"n\":18446744073709551616,\"t\":\"a\u{fffd}b\"}")),
    (r#""C:\\u0000\\x""#, Ok(r#""C:\\u0000\\x""#)),
    (r#"{"a":[0,1e400]}"#, Err("/a/1")),
    (r#"{"a":{"b":-1e400,"t":"\u0000"}}"#, Err("/a/b")),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_kept_as_it_was_written_or_its_failure_says_where() {
    let (_place, service) = start().await;
    register(&service, "outside", "nats").await;
    register(&service, "pulled", "pull").await;
    let mut handler = Handler::start(&service).await;
    for (result, kept) in HANDED_OVER {
        let mut ids = Vec::new();
        for way in ["reply", "accepted", "complete", "complete over http"] {
            let job_type = if way.starts_with("complete") { "pulled" } else { "outside" };
            let id = service.enqueue(json!({"type": job_type, "payload": {}})).await;
            let end = format!(r#"{{"jobId":"{id}","run":1,"result":{result}}}"#);
            let answer = match way {
                "reply" => {
                    let request = handler.next().await;
                    handler.reply(&request, &[], result).await;
                    None
                }
                "accepted" => {
                    let request = handler.next().await;
                    handler.reply(&request, &[("Job-Accepted", "true")], "").await;
                    Some(service.ask("finish", end).await.body)
                }
                _ => {
                    let wish = r#"{"types":["pulled"],"workerId":"w","waitMs":30000}"#;
                    assert_eq!(fetched(&service, wish).await[0]["id"], json!(id));
                    match way {
                        "complete" => Some(service.ask("work.complete", end).await.body),
                        _ => {
                            let end = format!(r#"{{"run":1,"result":{result}}}"#);
                            Some(service.web("POST", &format!("/jobs/{id}/finish"), &[], end).await.json())
                        }
                    }
                }
            };
            let expected = if kept.is_ok() { "completed" } else { "failed" };
            if let Some(answer) = answer {
                assert_eq!(answer["status"], expected, "{result} by {way}: {answer}");
            }
            ids.push((way, id));
        }
        for (way, id) in ids {
            let job = service.finished(&id).await;
            match kept {
                Ok(kept) => {
                    let shown = text(&service, "getJob", &id).await;
                    assert!(shown.contains(&format!("\"result\":{kept},")), "{result} by {way}: {shown}");
                }
                Err(pointer) => {
                    assert_eq!((&job["status"], &job["errors"][0]["kind"]), (&json!("failed"), &json!("permanent")));
                    let error = job["error"].as_str().unwrap();
                    assert!(error.ends_with(&format!(" at {pointer}")), "{result} by {way}: {error}");
                }
            }
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_kept_as_it_was_written_or_it_is_said_where_it_can_not_be() {
    let (_place, service) = start().await;
    register(&service, "pulled", "pull").await;
    let wish = r#"{"types":["pulled"],"workerId":"w","waitMs":30000}"#;
    for (checkpoint, kept) in HANDED_OVER {
        let id = service.enqueue(json!({"type": "pulled", "payload": {}})).await;
        fetched(&service, wish).await;
        let beat = format!(r#"{{"workerId":"w","runs":[{{"jobId":"{id}","run":1,"checkpoint":{checkpoint}}}]}}"#);
        let told = service.ask("work.heartbeat", beat).await.body["runs"][0].clone();
        assert_eq!(told["state"], "held");
        let fault = told["errors"][0]["message"].as_str().unwrap_or_default();
        assert_eq!(fault.is_empty(), kept.is_ok(), "{checkpoint}: {told}");
        assert!(fault.ends_with(kept.err().unwrap_or_default()), "{checkpoint}: {told}");
        service.call("work.release", json!({"jobId": id, "run": 1})).await;
        let again = text(&service, "work.fetch", wish).await;
        assert!(again.contains(&format!("\"checkpoint\":{}", kept.unwrap_or("null"))), "{checkpoint}: {again}");
        service.call("work.complete", json!({"jobId": id, "run": 2})).await;
    }
    service.stop().await;
}

/// Payloads that SQL can't look through, each with what its failure says.
fn broken() -> Vec<(String, &'static str)> {
    vec![
        (r#"{"note": "a", "note": "b"}"#.into(), "twice at /note"),
        (r#"{"note": "\ud800"}"#.into(), "surrogates"),
        (format!(r#"{{"note": {}{}}}"#, "[".repeat(500), "]".repeat(500)), "64 levels"),
        (r#"{"sleepMs": 1e400}"#.into(), "out of range"),
        (r#"{"sleepMs": 9223372036854775808}"#.into(), "at /sleepMs"),
    ]
}

async fn by_sql(database: &PgPool, job_type: &str, payload: &str) -> String {
    let sql = format!("SELECT queue.enqueue('{job_type}', $1::json)");
    let id: Uuid = sqlx::query_scalar(AssertSqlSafe(sql)).bind(payload).fetch_one(database).await.unwrap();
    id.to_string()
}

pub async fn known_to_sql(place: &Place, types: &[&str]) -> PgPool {
    let database = place.database().await;
    until(async || {
        let known = "SELECT count(*) FROM job_types WHERE max_attempts IS NOT NULL AND type = ANY ($1)";
        let n: i64 = sqlx::query_scalar(known).bind(types).fetch_one(&database).await.unwrap();
        (n == types.len() as i64).then_some(())
    })
    .await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_breaks_a_rule_ends_its_own_job_before_anybody_is_given_it() {
    let (place, service) = start().await;
    register(&service, "outside", "nats").await;
    register(&service, "pulled", "pull").await;
    let database = known_to_sql(&place, &["probe", "outside", "pulled"]).await;
    let mut handler = Handler::start(&service).await;
    for job_type in ["probe", "outside", "pulled"] {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for (payload, said) in broken() {
            good.push(by_sql(&database, job_type, r#"{"note": "C:\\u0041"}"#).await);
            bad.push((by_sql(&database, job_type, &payload).await, said));
        }
        let mut given = Vec::new();
        while job_type == "pulled" && given.len() < good.len() {
            let wish = r#"{"types":["pulled"],"workerId":"w","max":100,"waitMs":30000}"#;
            for job in fetched(&service, wish).await {
                let id = job["id"].as_str().unwrap().to_owned();
                service.call("work.complete", json!({"jobId": id, "run": job["run"]})).await;
                given.push(id);
            }
        }
        while job_type == "outside" && given.len() < good.len() {
            let request = handler.next().await;
            given.push(crate::outside::header(&request, "Job-Id").to_owned());
            handler.reply(&request, &[], "1").await;
        }
        for id in &good {
            let job = service.finished(id).await;
            assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)), "{job}");
        }
        for (id, said) in &bad {
            let job = service.finished(id).await;
            assert_eq!((&job["status"], &job["errors"][0]["kind"]), (&json!("failed"), &json!("permanent")), "{job}");
            let error = job["error"].as_str().unwrap();
            assert!(error.contains(said), "{error}");
            assert_eq!(place.journal.count(id, "start"), 0);
            assert!(!given.contains(id));
            assert_eq!(job["payload"], Value::Null, "it would break the caller's reader");
            assert!(job["note"].as_str().is_some_and(|note| note.contains("not shown")), "{job}");
        }
    }
    // Nor does it make a list unreadable for those beside it.
    let listed = text(&service, "listJobs", r#"{"include":"payload","limit":100}"#).await;
    assert!(!listed.contains("ud800") && !listed.contains("1e400") && listed.contains("not shown"), "{listed}");
    tokio::time::timeout(Duration::from_secs(60), service.stop()).await.unwrap();
}
