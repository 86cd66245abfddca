//! Jobs against real sockets, and the rules of the payload.

use std::time::Duration;

use axum::response::IntoResponse;
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::{
    handlers::{
        AnyHandler,
        clients::ai::testing::{Peer, written},
    },
    job::{FailureKind, JobType},
};

fn handler(config: &config::Ai) -> AnyHandler {
    AnyHandler::new(GenerateContent::new(Arc::new(Ai::new(config).unwrap()), config)).unwrap()
}

fn context() -> RunContext {
    RunContext::detached(JobType::new(GenerateContent::TYPE).unwrap(), Duration::from_secs(30))
}

async fn run(peer: &Peer, payload: Value) -> Value {
    let result = handler(&peer.config()).run(&context(), &to_raw_value(&payload).unwrap()).await.result().unwrap();
    serde_json::from_str(result.get()).unwrap()
}

#[tokio::test]
async fn a_text_is_returned_with_its_kind_model_and_usage() {
    let peer = Peer::always(written("Tea is a leaf.")).await;
    let result = run(&peer, json!({"prompt": "Tea"})).await;
    insta::assert_json_snapshot!(result, @r#"
    {
      "content": "Tea is a leaf.",
      "model": "@cf/meta/llama-3.1-8b-instruct",
      "type": "article",
      "usage": {
        "completionTokens": 5,
        "promptTokens": 7,
        "totalTokens": 12
      }
    }
    "#);
}

#[tokio::test]
async fn the_kind_chooses_the_frame_and_the_prompt_is_sent_untouched() {
    let peer = Peer::always(written("x")).await;
    let prompt = " Tea.\n{type} ";
    for kind in ["article", "summary", "email", "social", "product", "a limerick"] {
        run(&peer, json!({"prompt": prompt, "type": kind})).await;
    }
    let mut systems: Vec<_> = peer
        .seen()
        .iter()
        .map(|seen| {
            assert_eq!(seen.body["messages"][1], json!({"role": "user", "content": prompt}));
            seen.body["messages"][0]["content"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(systems.iter().all(|system| system.starts_with(SYSTEM)));
    assert!(systems[5].ends_with("Write this kind of text: a limerick."));
    systems.sort();
    systems.dedup();
    assert_eq!(systems.len(), 6, "each kind has its own");
}

#[tokio::test]
async fn what_the_payload_sets_reaches_the_provider() {
    let peer = Peer::always(written("x")).await;
    run(
        &peer,
        json!({"prompt": "p", "type": "email", "model": "m", "maxTokens": 5, "temperature": 1.5, "system": "Be brief."}),
    )
    .await;
    let body = &peer.seen()[0].body;
    assert_eq!((&body["model"], &body["max_tokens"], &body["temperature"]), (&json!("m"), &json!(5), &json!(1.5)));
    let system = body["messages"][0]["content"].as_str().unwrap();
    assert!(system.starts_with("Be brief.\n\nWrite an e-mail"), "{system}");
}

#[tokio::test]
async fn a_cancelled_job_stops_waiting_for_its_text() {
    let peer = Peer::start(|_| std::future::pending()).await;
    let handler = handler(&peer.config());
    let ctx = context();
    ctx.cancel.cancel();
    let failure = handler.run(&ctx, &to_raw_value(&json!({"prompt": "p"})).unwrap()).await.result().unwrap_err();
    assert!(failure.message.contains("stopped"));
}

#[tokio::test]
async fn an_unconfigured_service_says_what_to_set() {
    let run_payload = to_raw_value(&json!({"prompt": "p"})).unwrap();
    let failure = handler(&config::Ai::default()).run(&context(), &run_payload).await.result().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("ai.base_url"), "{}", failure.message);
}

#[tokio::test]
async fn a_prompt_of_half_a_megabyte_is_sent_and_its_refusal_is_the_providers() {
    let refusal = json!({"error": {"message": "This model's maximum context length is 8192 tokens"}});
    let peer = Peer::start(move |seen| {
        assert_eq!(seen.body["messages"][1]["content"].as_str().unwrap().len(), 500 * 1024);
        let refusal = axum::Json(refusal.clone());
        async move { (axum::http::StatusCode::BAD_REQUEST, refusal).into_response() }
    })
    .await;
    let payload = to_raw_value(&json!({"prompt": "x".repeat(500 * 1024)})).unwrap();
    let failure = handler(&peer.config()).run(&context(), &payload).await.result().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("maximum context length"), "{}", failure.message);
}

#[test]
fn payloads_are_checked_at_enqueue() {
    let handler = handler(&config::Ai::default());
    let check = |value: &Value| handler.check(&to_raw_value(value).unwrap());
    assert!(check(&json!({"prompt": "a", "type": "haiku", "maxTokens": 1, "temperature": 2, "system": ""})).is_empty());
    for (value, pointer) in [
        (json!({"prompt": ""}), "/prompt"),
        (json!({"prompt": "a", "type": ""}), "/type"),
        (json!({"prompt": "a", "type": "x\ny"}), "/type"),
        (json!({"prompt": "a", "type": "x".repeat(101)}), "/type"),
        (json!({"prompt": "a", "model": "../etc"}), "/model"),
        (json!({"prompt": "a", "maxTokens": 0}), "/maxTokens"),
        (json!({"prompt": "a", "maxTokens": -1}), "/maxTokens"),
        (json!({"prompt": "a", "maxTokens": 200_000}), "/maxTokens"),
        (json!({"prompt": "a", "temperature": 2.1}), "/temperature"),
        (json!({"prompt": "a", "temperature": "hot"}), "/temperature"),
        (json!({"prompt": "a", "system": "x".repeat(40_000)}), "/system"),
    ] {
        let faults = check(&value);
        assert_eq!(faults.0.first().map(|fault| fault.0.as_str()), Some(pointer), "{pointer}: {faults:?}");
    }
}
