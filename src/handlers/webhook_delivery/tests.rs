//! Against receivers of all sorts.

use std::sync::{Arc, Mutex};

use axum::extract::Request as Incoming;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::AllowPrivate,
    handlers::{
        AnyHandler,
        clients::peer::{Peer, answer, gzip_bomb},
    },
    job::{FailureKind, JobType},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn handler(secret: Option<&str>, allow: AllowPrivate) -> AnyHandler {
    let config = Webhook { secret: secret.map(Into::into), allow_private: allow };
    AnyHandler::new(WebhookDelivery::new(&config).unwrap()).unwrap()
}

fn open() -> AnyHandler {
    handler(None, AllowPrivate::All(true))
}

fn context(timeout: Duration) -> RunContext {
    RunContext::detached(JobType::new("webhook-delivery").unwrap(), timeout)
}

async fn run(handler: &AnyHandler, payload: &Value) -> Result<Value, Failure> {
    run_as(handler, &context(Duration::from_secs(10)), payload).await
}

async fn run_as(handler: &AnyHandler, ctx: &RunContext, payload: &Value) -> Result<Value, Failure> {
    let payload = serde_json::value::to_raw_value(payload).unwrap();
    handler.run(ctx, &payload).await.result().map(|result| serde_json::from_str(result.get()).unwrap())
}

fn faults(handler: &AnyHandler, payload: &Value) -> Vec<String> {
    let payload = serde_json::value::to_raw_value(payload).unwrap();
    handler.check(&payload).0.into_iter().map(|(pointer, _)| pointer).collect()
}

/// A receiver that keeps what it gets and answers 200.
async fn recorder() -> (Peer, Arc<Mutex<Vec<(String, HeaderMap, Vec<u8>)>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let peer = Peer::start({
        let seen = seen.clone();
        move |request: Incoming| {
            let seen = seen.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
                seen.lock().unwrap().push((format!("{} {}", head.method, head.uri), head.headers, body));
                answer(200, &[], "thanks")
            }
        }
    })
    .await;
    (peer, seen)
}

#[tokio::test]
async fn a_delivery_is_signed_so_that_the_reference_implementation_accepts_it() {
    let (peer, seen) = recorder().await;
    let ctx = context(Duration::from_secs(10));
    let payload = json!({"url": peer.url("/in?x=1"), "body": {"n": 1, "s": "ü"}, "headers": {"X-Tenant": "t1"}});
    let result = run_as(&handler(Some(SECRET), AllowPrivate::All(true)), &ctx, &payload).await.unwrap();
    assert_eq!((&result["status"], &result["body"]), (&json!(200), &json!("thanks")));
    assert!(result["durationMs"].is_u64());
    let (line, headers, body) = seen.lock().unwrap().remove(0);
    assert_eq!((line.as_str(), body.as_slice()), ("POST /in?x=1", r#"{"n":1,"s":"ü"}"#.as_bytes()));
    assert_eq!(headers["webhook-id"], ctx.job_id.to_string());
    assert_eq!(
        (&headers["content-type"], &headers["x-tenant"]),
        (&"application/json".parse().unwrap(), &"t1".parse().unwrap())
    );
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(&body, &headers).unwrap();
}

#[tokio::test]
async fn methods_and_bodies_are_sent_as_asked() {
    let (peer, seen) = recorder().await;
    for (payload, line, content_type, body) in [
        (
            json!({"method": "PUT", "body": "a=b", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}),
            "PUT /",
            "application/x-www-form-urlencoded",
            "a=b",
        ),
        (json!({"method": "PATCH", "body": [1, null]}), "PATCH /", "application/json", "[1,null]"),
        (json!({"method": "DELETE"}), "DELETE /", "", ""),
        (json!({"method": "GET"}), "GET /", "", ""),
        (json!({"body": "hi"}), "POST /", "text/plain; charset=utf-8", "hi"),
    ] {
        let mut payload = payload;
        payload["url"] = json!(peer.url("/"));
        assert_eq!(faults(&open(), &payload), [""; 0]);
        run(&open(), &payload).await.unwrap();
        let (was, headers, sent) = seen.lock().unwrap().remove(0);
        let sent_type = headers.get("content-type").map_or("", |value| value.to_str().unwrap());
        assert_eq!((was.as_str(), sent_type, sent.as_slice()), (line, content_type, body.as_bytes()));
        assert!(headers.contains_key("webhook-id") && !headers.contains_key("webhook-signature"));
    }
}

#[tokio::test]
async fn the_status_decides_between_another_attempt_and_none() {
    let peer = Peer::start(|request: Incoming| async move {
        let status = request.uri().path()[1..].parse().unwrap();
        answer(status, &[("retry-after", "7")], "secret echo")
    })
    .await;
    for (status, kind) in [
        (400, FailureKind::Permanent),
        (401, FailureKind::Permanent),
        (404, FailureKind::Permanent),
        (410, FailureKind::Permanent),
        (408, FailureKind::Error),
        (425, FailureKind::Error),
        (429, FailureKind::Error),
        (500, FailureKind::Error),
        (503, FailureKind::Error),
        (304, FailureKind::Error),
    ] {
        let failure = run(&open(), &json!({"url": peer.url(&format!("/{status}?token=x"))})).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{status}");
        assert_eq!(failure.retry_after.is_some(), kind == FailureKind::Error, "{status}");
        assert!(
            failure.message.starts_with(&format!("http://127.0.0.1:{} answered {status}", peer.port)),
            "{failure:?}"
        );
        assert!(!failure.message.contains("secret") && !failure.message.contains("token"), "{failure:?}");
    }
    assert_eq!(run(&open(), &json!({"url": peer.url("/204")})).await.unwrap()["status"], 204);
}

#[tokio::test]
async fn of_an_answer_four_kib_are_kept_even_when_it_is_endless_or_a_bomb() {
    let bomb = gzip_bomb(50 << 20);
    let peer = Peer::start(move |request: Incoming| {
        let bomb = bomb.clone();
        async move {
            match request.uri().path() {
                "/bomb" => answer(200, &[("content-encoding", "gzip")], bomb),
                _ => answer(200, &[], format!("a\0{}", "é".repeat(4000))),
            }
        }
    })
    .await;
    let bomb = run(&open(), &json!({"url": peer.url("/bomb")})).await.unwrap();
    assert_eq!(bomb["body"], "x".repeat(4096));
    let text = run(&open(), &json!({"url": peer.url("/")})).await.unwrap();
    assert_eq!(text["body"], format!("a\u{fffd}{}", "é".repeat(2047)));
}

#[tokio::test]
async fn redirects_that_repeat_the_request_are_followed_and_credentials_stay_behind() {
    let (stranger, seen) = recorder().await;
    let target = stranger.url("/there").to_string();
    let peer = Peer::start(move |request: Incoming| {
        let target = target.clone();
        async move {
            match request.uri().path() {
                "/near" => answer(308, &[("location", "/away")], ""),
                _ => answer(307, &[("location", &target)], ""),
            }
        }
    })
    .await;
    let payload =
        json!({"url": peer.url("/near"), "body": [1], "headers": {"Authorization": "Bearer x", "Accept": "a/b"}});
    let handler = handler(Some(SECRET), AllowPrivate::All(true));
    run(&handler, &payload).await.unwrap();
    let (line, headers, body) = seen.lock().unwrap().remove(0);
    assert_eq!((line.as_str(), body.as_slice()), ("POST /there", b"[1]".as_slice()));
    assert_eq!((headers.get("authorization"), &headers["accept"]), (None, &"a/b".parse().unwrap()));
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(&body, &headers).unwrap();
}

#[tokio::test]
async fn redirects_that_lose_the_body_or_never_end_are_failures() {
    let peer = Peer::start(|request: Incoming| async move {
        match request.uri().path() {
            "/lose" => answer(302, &[("location", "/ok")], ""),
            "/ok" => answer(200, &[], "ok"),
            _ => answer(307, &[("location", "/loop")], ""),
        }
    })
    .await;
    let lost = run(&open(), &json!({"url": peer.url("/lose"), "body": {}})).await.unwrap_err();
    assert!(lost.message.contains("would drop the body") && lost.kind == FailureKind::Error, "{lost:?}");
    let got = run(&open(), &json!({"url": peer.url("/lose"), "method": "GET"})).await.unwrap();
    assert_eq!(got["body"], "ok");
    let endless = run(&open(), &json!({"url": peer.url("/loop")})).await.unwrap_err();
    assert!(endless.message.contains("more than 5 redirects"), "{endless:?}");
}

#[tokio::test]
async fn a_redirect_to_a_private_address_is_permanent() {
    let peer = Peer::start(|_| async { answer(307, &[("location", "http://169.254.169.254/")], "") }).await;
    let only_loopback = handler(None, AllowPrivate::Only(vec!["127.0.0.0/8".parse().unwrap()]));
    let failure = run(&only_loopback, &json!({"url": peer.url("/")})).await.unwrap_err();
    assert!(failure.kind == FailureKind::Permanent && failure.message.contains("169.254.169.254"), "{failure:?}");
}

#[tokio::test]
async fn a_receiver_that_never_answers_costs_no_more_than_the_time_of_the_run() {
    let peer = Peer::start(|_| std::future::pending()).await;
    let ctx = context(Duration::from_millis(300));
    let failure = run_as(&open(), &ctx, &json!({"url": peer.url("/")})).await.unwrap_err();
    assert!(failure.kind == FailureKind::Error && failure.message.contains("did not answer within"), "{failure:?}");
    let ctx = context(Duration::from_secs(60));
    ctx.cancel.cancel();
    assert!(run_as(&open(), &ctx, &json!({"url": peer.url("/")})).await.is_err());
}

#[test]
fn every_fault_has_its_pointer() {
    let closed = handler(None, AllowPrivate::All(false));
    let url = "https://example.org/hook";
    for (payload, expected) in [
        (json!({"url": url, "body": {}}), vec![]),
        (json!({"url": "http://127.0.0.1/"}), vec!["/url"]),
        (json!({"url": "http://[::ffff:10.0.0.1]/"}), vec!["/url"]),
        (json!({"url": "http://localhost:3000"}), vec!["/url"]),
        (json!({"url": "ftp://example.org"}), vec!["/url"]),
        (json!({"url": "https://u:p@example.org"}), vec!["/url"]),
        (json!({"url": url, "method": "CONNECT"}), vec!["/method"]),
        (json!({"url": url, "method": "TRACE"}), vec!["/method"]),
        (json!({"url": url, "method": "GET", "body": {}}), vec!["/body"]),
        (json!({"url": url, "method": "GET", "body": null}), vec![]),
        (json!({"url": url, "headers": {"Host": "x"}}), vec!["/headers/Host"]),
        (json!({"url": url, "headers": {"content-length": "1"}}), vec!["/headers/content-length"]),
        (json!({"url": url, "headers": {"Transfer-Encoding": "chunked"}}), vec!["/headers/Transfer-Encoding"]),
        (json!({"url": url, "headers": {"Proxy-Authorization": "x"}}), vec!["/headers/Proxy-Authorization"]),
        (json!({"url": url, "headers": {"Webhook-Id": "x"}}), vec!["/headers/Webhook-Id"]),
        (json!({"url": url, "headers": {"X-A": "1\r\nHost: x"}}), vec!["/headers/X-A"]),
        (json!({"url": url, "headers": {"X A": "1"}}), vec!["/headers/X A"]),
        (json!({"url": url, "headers": {"a/b": "1"}}), vec!["/headers/a~1b"]),
        (json!({"url": url, "headers": {"X-A": "1", "x-a": "2"}}), vec!["/headers/x-a"]),
        (json!({"url": url, "headers": {"X-A": "é"}}), vec!["/headers/X-A"]),
        (json!({"url": url, "headers": {"X-A": "a".repeat(5000)}}), vec!["/headers/X-A"]),
        (json!({"url": url, "headers": {"X-A": 5}}), vec!["/headers/X-A"]),
        (json!({"url": url, "retries": 5}), vec!["/retries"]),
    ] {
        assert_eq!(faults(&closed, &payload), expected, "{payload}");
    }
    let many: BTreeMap<String, String> = (0..51).map(|i| (format!("x-{i}"), String::new())).collect();
    assert_eq!(faults(&closed, &json!({"url": url, "headers": many})), ["/headers"]);
    let heavy: BTreeMap<String, String> = (0..5).map(|i| (format!("x-{i}"), "a".repeat(4000))).collect();
    assert_eq!(faults(&closed, &json!({"url": url, "headers": heavy})), ["/headers"]);
}

#[test]
fn a_bad_secret_is_refused_at_the_start() {
    let config = Webhook { secret: Some("hunter2".to_owned().into()), ..Webhook::default() };
    let refused = WebhookDelivery::new(&config).err().unwrap();
    assert!(refused.starts_with("webhook.secret") && !refused.contains("hunter2"), "{refused}");
}
