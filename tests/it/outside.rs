//! Handlers outside, asked over NATS: an official client and nothing else, played here by the test.

use async_nats::{HeaderMap, Message, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::harness::{PATIENCE, Place, Running, start, time, until};

/// Who does the work of the type `outside`.
pub struct Handler {
    nats: async_nats::Client,
    requests: Subscriber,
}

impl Handler {
    pub async fn start(service: &Running) -> Self {
        let nats = service.nats.clone();
        let requests = nats.queue_subscribe(service.subject("handlers.outside"), "workers".into()).await.unwrap();
        nats.flush().await.unwrap();
        Self { nats, requests }
    }

    pub async fn next(&mut self) -> Message {
        tokio::time::timeout(PATIENCE, self.requests.next()).await.expect("no request in time").unwrap()
    }

    /// By the connection of its replies, so in order with them.
    pub async fn publish(&self, subject: &str, body: Value) {
        self.nats.publish(subject.to_owned(), body.to_string().into()).await.unwrap();
    }

    pub async fn reply(&self, request: &Message, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let to = request.reply.clone().unwrap();
        self.nats.publish_with_headers(to, map, body.into().into()).await.unwrap();
        self.nats.flush().await.unwrap();
    }
}

pub fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers.as_ref().unwrap().get(name).unwrap_or_else(|| panic!("no header {name}")).as_str()
}

async fn register(service: &Running, more: Value) {
    let mut definition = json!({"type": "outside", "handler": "nats"});
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    service.call("registerType", definition).await;
}

async fn with_type(more: Value) -> (Place, Running, Handler) {
    let (place, service) = start().await;
    register(&service, more).await;
    let handler = Handler::start(&service).await;
    (place, service, handler)
}

async fn job(service: &Running) -> String {
    service.enqueue(json!({"type": "outside", "payload": {"n": 1}, "tags": ["t"]})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_told_the_trace_of_whoever_asked_and_each_run_is_a_span_of_its_own() {
    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (_place, service, mut handler) = with_type(json!({})).await;
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", CALLER);
    let body = json!({"type": "outside", "payload": {}}).to_string();
    let reply =
        service.nats.request_with_headers(service.subject("enqueue"), headers.clone(), body.into()).await.unwrap();
    let id = serde_json::from_slice::<Value>(&reply.payload).unwrap()["jobId"].as_str().unwrap().to_owned();
    let mut spans = Vec::new();
    for answer in ["500", ""] {
        let request = handler.next().await;
        let (trace, span) = header(&request, "traceparent").split_at(36);
        assert_eq!((trace, &span[16..]), (&CALLER[..36], "-01"));
        spans.push(span.to_owned());
        let failure: &[(&str, &str)] = &[("Nats-Service-Error-Code", answer), ("Nats-Service-Error", "no")];
        handler.reply(&request, if answer.is_empty() { &[] } else { failure }, "1").await;
    }
    assert_eq!(service.finished(&id).await["status"], "completed");
    assert!(spans[0] != spans[1] && spans.iter().all(|span| !CALLER.ends_with(span.as_str())), "{spans:?}");

    // Whoever names none, or nonsense, gets a trace that is found by the job's id; over HTTP as well.
    let http = reqwest::Client::new().post(service.url("/jobs")).header("traceparent", "nonsense");
    let made: Value = http.json(&json!({"type": "outside", "payload": {}})).send().await.unwrap().json().await.unwrap();
    let request = handler.next().await;
    let id = made["jobId"].as_str().unwrap();
    assert_eq!(header(&request, "traceparent")[3..35], id.replace('-', ""));
    handler.reply(&request, &[], "1").await;
    service.finished(id).await;
    let bulk = reqwest::Client::new().post(service.url("/jobs/batch")).header("traceparent", CALLER);
    bulk.json(&json!({"jobs": [{"type": "outside", "payload": {}}]})).send().await.unwrap();
    let request = handler.next().await;
    assert_eq!(header(&request, "traceparent")[..36], CALLER[..36]);
    handler.reply(&request, &[], "1").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_told_the_job_and_its_answer_is_the_result() {
    let (_place, service, mut handler) = with_type(json!({"timeout": "10s"})).await;
    let id = job(&service).await;
    let request = handler.next().await;
    assert_eq!(
        ["Job-Id", "Job-Type", "Job-Attempt", "Job-Run"].map(|name| header(&request, name)),
        [id.as_str(), "outside", "1", "1"]
    );
    let body: Value = serde_json::from_slice(&request.payload).unwrap();
    let left = time(&json!(header(&request, "Job-Deadline"))) - time(&body["startedAt"]);
    assert!((9_000..=10_500).contains(&left.num_milliseconds()), "{left}");
    assert_eq!((&body["payload"], &body["checkpoint"]), (&json!({"n": 1}), &Value::Null));
    let mut shown = body.clone();
    shown.as_object_mut().unwrap().remove("checkpoint");
    assert_eq!(shown, service.job(&id).await, "the body is the job as getJob shows it");
    let reply = request.reply.clone().unwrap();
    assert!(reply.starts_with(&service.subject("reply.")) && reply.ends_with(&format!(".outside.{id}.1")), "{reply}");
    handler.reply(&request, &[], r#"{"pages": 3}"#).await;
    let done = service.finished(&id).await;
    assert_eq!((&done["status"], &done["result"]), (&json!("completed"), &json!({"pages": 3})));
    // Whoever answers twice changes nothing.
    handler.reply(&request, &[], r#"{"pages": 4}"#).await;
    assert_eq!(service.job(&id).await["result"], json!({"pages": 3}));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_tried_again_unless_it_is_for_good() {
    let (_place, service, mut handler) = with_type(json!({"backoff": {"base": "20ms"}})).await;
    let id = job(&service).await;
    let first = handler.next().await;
    let wish = [("Nats-Service-Error-Code", "503"), ("Nats-Service-Error", "cold"), ("Job-Retry-After", "0.1")];
    handler.reply(&first, &wish, "ignored").await;
    let second = handler.next().await;
    assert_eq!((header(&second, "Job-Attempt"), header(&second, "Job-Run")), ("2", "2"));
    let between = time(&serde_json::from_slice::<Value>(&second.payload).unwrap()["startedAt"])
        - time(&serde_json::from_slice::<Value>(&first.payload).unwrap()["startedAt"]);
    assert!(between.num_milliseconds() >= 100, "came again after {between}");
    let for_good = [("Nats-Service-Error-Code", "400"), ("Nats-Service-Error", "no such file"), ("Job-Retry", "false")];
    handler.reply(&second, &for_good, "").await;
    let failed = service.finished(&id).await;
    assert_eq!((&failed["status"], &failed["error"]), (&json!("failed"), &json!("400: no such file")));
    let kinds: Vec<_> = failed["errors"].as_array().unwrap().iter().map(|e| (&e["message"], &e["kind"])).collect();
    assert_eq!(kinds, [(&json!("503: cold"), &json!("error")), (&json!("400: no such file"), &json!("permanent"))]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_costs_no_attempt_and_everybody_says_so_until_somebody_comes() {
    let (_place, service) = start().await;
    register(&service, json!({})).await;
    let id = job(&service).await;
    let unattended = async |is: bool| {
        until(|| async {
            let info = service.call("listTypes.outside", json!({})).await;
            (info["types"][0]["attended"] == !is).then_some(())
        })
        .await;
    };
    unattended(true).await;
    // That nobody answers is on record before the run that has found it out is over.
    let waiting = service.until_status(&id, "pending").await;
    assert!(waiting["note"].as_str().is_some_and(|note| note.contains("no handler")), "{waiting}");
    assert_eq!(service.call("getStats", json!({})).await["unattended"], json!(["outside"]));
    let health: Value = reqwest::get(service.url("/health")).await.unwrap().json().await.unwrap();
    assert_eq!((&health["status"], &health["checks"]["handlers"]["status"]), (&json!("degraded"), &json!("degraded")));
    // Other types are not held up.
    let other = service.probe(json!({})).await;
    service.finished(&other).await;

    let mut handler = Handler::start(&service).await;
    let request = handler.next().await;
    assert_eq!(header(&request, "Job-Attempt"), "1", "waiting has cost an attempt");
    handler.reply(&request, &[], "").await;
    let done = service.finished(&id).await;
    assert_eq!((&done["status"], &done["attempts"], &done["errors"]), (&json!("completed"), &json!(1), &json!([])));
    unattended(false).await;
    assert_eq!(service.call("getStats", json!({})).await["unattended"], json!([]));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_handler_gives_a_job_back_without_spending_an_attempt() {
    let (_place, service, mut handler) = with_type(json!({"maxAttempts": 1})).await;
    let id = job(&service).await;
    for _ in 0..3 {
        let request = handler.next().await;
        handler.reply(&request, &[("Job-Release", "true"), ("Job-Retry-After", "0.05")], "").await;
    }
    let request = handler.next().await;
    assert_eq!((header(&request, "Job-Attempt"), header(&request, "Job-Run")), ("1", "4"));
    handler.reply(&request, &[], "1").await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_and_checkpoints_come_from_outside_and_the_next_run_gets_them_back() {
    let (_place, service, mut handler) = with_type(json!({"backoff": {"base": "20ms"}})).await;
    let id = job(&service).await;
    let request = handler.next().await;
    let subject = service.subject(&format!("progress.outside.{id}"));
    let say = async |value: Value| {
        service.nats.publish(subject.clone(), value.to_string().into()).await.unwrap();
    };
    // Of another run, and no progress at all: neither counts.
    say(json!({"run": 7, "percent": 99})).await;
    service.nats.publish(subject.clone(), "nonsense".into()).await.unwrap();
    say(json!({"run": 1, "percent": 40, "message": "page 4 of 10", "checkpoint": {"page": 4}})).await;
    until(|| async { (service.job(&id).await["progress"]["percent"] == 40.0).then_some(()) }).await;
    handler.reply(&request, &[("Nats-Service-Error-Code", "500")], "").await;
    let request = handler.next().await;
    let body: Value = serde_json::from_slice(&request.payload).unwrap();
    assert_eq!(body["checkpoint"], json!({"page": 4}));
    handler.reply(&request, &[], "").await;
    service.finished(&id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_handler_is_given_up_when_its_heartbeat_is_due() {
    let (_place, service, mut handler) =
        with_type(json!({"heartbeat": "1s", "timeout": "1h", "backoff": {"base": "20ms"}, "maxAttempts": 2})).await;
    let id = job(&service).await;
    let first = handler.next().await;
    let subject = service.subject(&format!("progress.outside.{id}"));
    for _ in 0..6 {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        service.nats.publish(subject.clone(), r#"{"run": 1}"#.into()).await.unwrap();
        assert_eq!(service.job(&id).await["attempts"], 1, "a sign of life was overlooked");
    }
    let second = handler.next().await;
    assert_eq!(header(&second, "Job-Run"), "2");
    // What the lost one says now is not wanted any more.
    handler.reply(&first, &[], r#""late""#).await;
    handler.reply(&second, &[], r#""in time""#).await;
    let done = service.finished(&id).await;
    assert_eq!((&done["result"], &done["errors"][0]["kind"]), (&json!("in time"), &json!("lost")));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_is_told_to_its_handler_and_ends_whatever_that_does() {
    let (_place, service, mut handler) = with_type(json!({})).await;
    let id = job(&service).await;
    let _request = handler.next().await;
    let mut told = service.listen("control.cancel.outside.*").await;
    let cancelled = service.call("cancelJob", json!({"jobId": id, "reason": "no more need"})).await;
    let (subject, body) = told.next().await;
    assert_eq!(
        (subject, &body["reason"]),
        (service.subject(&format!("control.cancel.outside.{id}")), &json!("no more need"))
    );
    let job = if cancelled["status"] == "cancelled" { cancelled } else { service.finished(&id).await };
    assert_eq!((&job["status"], &job["error"]), (&json!("cancelled"), &json!("no more need")));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_answers_are_clear_errors_and_harm_nobody_else() {
    let (_place, service, mut handler) =
        with_type(json!({"maxAttempts": 1, "timeout": "2s", "resultSchema": {"type": "object"}})).await;
    let ask = async |handler: &mut Handler| {
        let id = job(&service).await;
        (id, handler.next().await)
    };
    let (garbage, request) = ask(&mut handler).await;
    handler.reply(&request, &[], "<html>").await;
    let (too_large, request) = ask(&mut handler).await;
    handler.reply(&request, &[], format!("\"{}\"", "x".repeat(256 * 1024))).await;
    let (wrong_form, request) = ask(&mut handler).await;
    handler.reply(&request, &[], "[1]").await;
    let (gone, _) = ask(&mut handler).await;
    // For another job's run: dropped, and the right answer still counts.
    let (mixed_up, request) = ask(&mut handler).await;
    handler.reply(&request, &[("Job-Id", &gone)], "{}").await;
    handler.reply(&request, &[("Job-Run", "9")], "{}").await;
    handler.reply(&request, &[("Job-Id", &mixed_up), ("Job-Run", "1")], r#"{"right": true}"#).await;
    let nul = {
        let (id, request) = ask(&mut handler).await;
        handler.reply(&request, &[], r#"{"text": "a\u0000b"}"#).await;
        id
    };
    for (id, kind, text) in [
        (garbage, "error", "no JSON"),
        (too_large, "permanent", "result_too_large"),
        (wrong_form, "permanent", "result schema"),
        (gone, "timeout", "2s"),
    ] {
        let job = service.finished(&id).await;
        assert_eq!((&job["status"], &job["errors"][0]["kind"]), (&json!("failed"), &json!(kind)), "{job}");
        assert!(job["error"].as_str().unwrap().contains(text), "{job}");
    }
    assert_eq!(service.finished(&mixed_up).await["result"], json!({"right": true}));
    assert_eq!(service.finished(&nul).await["result"], json!({"text": "a\u{fffd}b"}));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_has_accepted_it_finishes_later() {
    let (place, service, mut handler) = with_type(json!({"timeout": "1h"})).await;
    let id = job(&service).await;
    let request = handler.next().await;
    handler.reply(&request, &[("Job-Accepted", "true")], "").await;
    let subject = service.subject(&format!("progress.outside.{id}"));
    // Nobody waits for it any more, and what it says is still heard.
    until(|| async {
        service.nats.publish(subject.clone(), r#"{"run": 1, "percent": 60}"#.into()).await.unwrap();
        (service.job(&id).await["progress"]["percent"] == 60.0).then_some(())
    })
    .await;
    let (first, again) =
        (json!({"jobId": id, "run": 1, "result": {"ok": 1}}), json!({"jobId": id, "run": 1, "result": {"ok": 1}}));
    assert_eq!(service.call("finish", first).await["status"], "completed");
    assert_eq!(service.call("finish.outside", again).await["status"], "completed");
    assert_eq!(service.job(&id).await["result"], json!({"ok": 1}));
    crate::books::all_completed_once(&place, &service, &[id]).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_finishes_instead_of_answering_frees_its_slot_at_once() {
    let (_place, service, mut handler) = with_type(json!({"timeout": "1h", "concurrency": 1})).await;
    let (first, second) = (job(&service).await, job(&service).await);
    for id in [&first, &second] {
        let request = handler.next().await;
        assert_eq!(header(&request, "Job-Id"), id);
        service.call("finish", json!({"jobId": id, "run": 1, "result": 1})).await;
    }
    service.finished(&second).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_run_survives_a_restart_of_the_service_and_its_answer_is_still_taken() {
    let mut place = Place::new().await;
    place.config.worker.drain = std::time::Duration::from_millis(200);
    let first = place.start().await;
    register(&first, json!({"timeout": "1h"})).await;
    let mut handler = Handler::start(&first).await;
    let (replied, finished) = (job(&first).await, job(&first).await);
    let requests = [handler.next().await, handler.next().await];
    first.stop().await;

    let second = place.start().await;
    for id in [&replied, &finished] {
        assert_eq!(second.job(id).await["status"], "processing", "a stop has ended a run outside");
    }
    let answer = requests.iter().find(|request| header(request, "Job-Id") == replied).unwrap();
    handler.reply(answer, &[], r#""by reply""#).await;
    second.call("finish", json!({"jobId": finished, "run": 1, "result": "by finish"})).await;
    for (id, result) in [(&replied, "by reply"), (&finished, "by finish")] {
        let job = second.finished(id).await;
        assert_eq!((&job["result"], &job["attempts"]), (&json!(result), &json!(1)));
    }
    crate::books::all_completed_once(&place, &second, &[replied, finished]).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_run_survives_even_the_death_of_the_process_that_asked_for_it() {
    let mut place = Place::new().await;
    place.config.types.insert("outside".into(), toml::from_str("handler = 'nats'\ntimeout = '1h'").unwrap());
    place.config.worker.types = vec!["outside".into()];
    let mut first = crate::child::Program::serve(&place.config).await;
    place.config.worker.enabled = false;
    let second = place.start().await;
    let mut handler = Handler::start(&second).await;
    let id = job(&second).await;
    let request = handler.next().await;
    // It is written down soon after it was asked for.
    let database = place.database().await;
    let held = "SELECT count(*) FROM jobs WHERE lease_until IS NOT NULL";
    until(|| async { (sqlx::query_scalar::<_, i64>(held).fetch_one(&database).await.unwrap() == 1).then_some(()) })
        .await;
    first.kill().await;
    second.stop().await;
    place.config.worker.enabled = true;
    let third = place.start().await;
    // Longer than the lease of the dead.
    tokio::time::sleep(place.config.worker.lease * 2).await;
    handler.reply(&request, &[], "7").await;
    let job = third.finished(&id).await;
    assert_eq!((&job["result"], &job["attempts"]), (&json!(7), &json!(1)));
    third.stop().await;
}
