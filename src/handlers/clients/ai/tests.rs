//! The client against providers that behave in every way they shouldn't, over real sockets.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{http::StatusCode, response::IntoResponse};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use super::{
    testing::{Peer, vector, written},
    *,
};
use crate::{
    config::AiProvider,
    handlers::clients::peer::gzip_bomb,
    job::{Failure, FailureKind},
};

const KEY: &str = "sk-canary-1234567890";

fn provider(peer: &Peer, models: &[&str]) -> AiProvider {
    AiProvider {
        base_url: peer.base_url.clone(),
        api_key: None,
        models: models.iter().map(|model| (*model).to_owned()).collect(),
    }
}

fn chat(prompt: &str) -> Chat<'_> {
    Chat { system: "s", prompt, max_tokens: None, temperature: None }
}

async fn ask(config: &config::Ai) -> Result<Completion, Failure> {
    Ai::new(config).unwrap().pick("m").unwrap().chat(&chat("Hello")).await.map_err(Failure::from)
}

/// The failure that a provider's fixed answer leads to.
async fn failure<R: IntoResponse + Clone + Send + Sync + 'static>(answer: R) -> Failure {
    let peer = Peer::always(answer).await;
    ask(&peer.config()).await.unwrap_err()
}

#[tokio::test]
async fn the_longest_prefix_of_a_model_chooses_the_provider_and_an_alias_is_followed_first() {
    let (wide, narrow, rest) = (Peer::embedding().await, Peer::embedding().await, Peer::embedding().await);
    let config = config::Ai {
        providers: BTreeMap::from([
            ("a".into(), provider(&narrow, &["zzz", "text-embedding-3-"])),
            ("b".into(), provider(&wide, &["text-"])),
        ]),
        aliases: BTreeMap::from([("small".into(), "text-embedding-3-small".into())]),
        ..rest.config()
    };
    let ai = Ai::new(&config).unwrap();
    for model in ["small", "text-embedding-3-large", "text-other", "llama"] {
        let target = ai.pick(model).unwrap();
        assert_eq!(target.embed(&[model]).await.unwrap(), [vector(model)]);
    }
    let models = |peer: &Peer| peer.seen().iter().map(|seen| seen.body["model"].clone()).collect::<Vec<_>>();
    assert_eq!(models(&narrow), ["text-embedding-3-small", "text-embedding-3-large"]);
    assert_eq!(models(&wide), ["text-other"]);
    assert_eq!(models(&rest), ["llama"]);
    assert_eq!(rest.seen()[0].path, "/v1/embeddings");
}

#[test]
fn without_a_provider_the_failure_names_the_settings_to_make() {
    let ai = Ai::new(&config::Ai::default()).unwrap();
    let failure = Failure::from(ai.pick("gpt-4o").err().unwrap());
    assert_eq!(failure.kind, FailureKind::Permanent);
    for part in ["gpt-4o", "ai.base_url", "QUEUE__AI__BASE_URL", "ai.providers"] {
        assert!(failure.message.contains(part), "{}", failure.message);
    }
}

#[test]
fn a_setting_that_can_never_work_is_refused_at_the_start_without_showing_the_key() {
    let config = |url: &str, key: &str| config::Ai {
        base_url: Some(url.into()),
        api_key: Some(key.to_owned().into()),
        ..Default::default()
    };
    for (url, key, expected) in [
        ("api.openai.com/v1", "k", "ai.base_url"),
        ("ftp://host/v1", "k", "ai.base_url"),
        ("http://host/v1?key=x", "k", "ai.base_url"),
        ("http://user:canary@host/v1", "k", "api_key"),
        ("http://host/v1", "canary\n", "ai.api_key"),
    ] {
        let error = Ai::new(&config(url, key)).err().unwrap().to_string();
        assert!(error.contains(expected) && !error.contains("canary"), "{url:?} gave: {error}");
    }
    Ai::new(&config("http://host/v1/", "k")).unwrap();
}

#[tokio::test]
async fn a_text_comes_back_with_its_usage_and_the_request_has_the_agreed_shape() {
    let peer = Peer::always(written("Good day")).await;
    let config = config::Ai { api_key: Some(KEY.to_owned().into()), ..peer.config() };
    let target = Ai::new(&config).unwrap().pick("m").unwrap();
    let full = Chat { max_tokens: Some(9), temperature: Some(0.5), ..chat("Hello") };
    let completion = target.chat(&full).await.unwrap();
    target.chat(&chat("Hello")).await.unwrap();
    let usage = Usage { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 };
    assert_eq!(completion, Completion { content: "Good day".into(), usage: Some(usage) });
    let seen = peer.seen();
    assert_eq!(seen[0].path, "/v1/chat/completions");
    assert_eq!(seen[0].authorization.as_deref(), Some(format!("Bearer {KEY}").as_str()));
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "Hello"}]);
    assert_eq!(seen[0].body, json!({"model": "m", "messages": messages, "max_tokens": 9, "temperature": 0.5}));
    assert_eq!(seen[1].body, json!({"model": "m", "messages": messages}));
}

#[tokio::test]
async fn busy_and_broken_providers_are_asked_again_when_they_wish() {
    for (status, wish) in [(429, Some(7)), (503, Some(1)), (500, None), (408, None), (529, Some(3))] {
        let status = StatusCode::from_u16(status).unwrap();
        let headers = wish.map(|seconds: u64| [("retry-after", seconds.to_string())]);
        let body = json!({"error": {"message": "slow down"}}).to_string();
        let failure = match headers {
            Some(headers) => failure((status, headers, body)).await,
            None => failure((status, body)).await,
        };
        assert_eq!(failure.kind, FailureKind::Error, "{status}");
        assert_eq!(failure.retry_after, wish.map(Duration::from_secs), "{status}");
        assert!(failure.message.contains("slow down"), "{}", failure.message);
    }
    let dates = [("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT")];
    let failure = failure((StatusCode::TOO_MANY_REQUESTS, dates)).await;
    assert_eq!(failure.retry_after, Some(Duration::from_secs(30)));
}

#[tokio::test]
async fn a_refusal_is_permanent_and_keeps_the_providers_words_in_whichever_shape_they_come() {
    for (status, body) in [
        (400, json!({"error": {"message": "context too long", "type": "invalid_request_error"}})),
        (403, json!({"success": false, "errors": [{"code": 10000, "message": "context too long"}]})),
        (404, json!({"error": "context too long"})),
        (422, json!({"detail": [{"loc": ["body"], "msg": "context too long"}]})),
        (402, json!({"detail": "context too long"})),
    ] {
        let failure = failure((StatusCode::from_u16(status).unwrap(), body.to_string())).await;
        assert_eq!(failure.kind, FailureKind::Permanent, "{status}");
        assert!(failure.message.ends_with(&format!("(status {status}): context too long")), "{}", failure.message);
    }
    let plain = failure((StatusCode::BAD_REQUEST, "just words\u{1b}[2J\nmore")).await;
    assert!(plain.message.ends_with("just words [2J more"), "{}", plain.message);
}

#[tokio::test]
async fn a_key_that_the_provider_echoes_is_in_no_failure() {
    let echo = format!("Incorrect API key provided: {KEY}. ");
    for body in [json!({"error": {"message": echo}}).to_string(), echo.clone(), echo.repeat(1000)] {
        let peer = Peer::always((StatusCode::UNAUTHORIZED, body)).await;
        let failure = ask(&config::Ai { api_key: Some(KEY.to_owned().into()), ..peer.config() }).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Permanent);
        assert!(failure.message.contains("Incorrect API key provided: (key)"), "{}", failure.message);
        assert!(!failure.message.contains("sk-canary") && failure.message.len() <= 2048, "{}", failure.message);
    }
}

#[tokio::test]
async fn html_instead_of_json_points_at_the_address() {
    for (status, kind) in [
        (StatusCode::OK, FailureKind::Error),
        (StatusCode::BAD_GATEWAY, FailureKind::Error),
        (StatusCode::NOT_FOUND, FailureKind::Permanent),
    ] {
        let failure = failure((status, axum::response::Html("<html>Welcome to nginx</html>"))).await;
        assert_eq!(failure.kind, kind, "{status}");
        assert!(failure.message.contains("HTML") && failure.message.contains("base_url"), "{}", failure.message);
        assert!(!failure.message.contains("nginx"));
    }
    assert!(failure(" <!doctype html>").await.message.contains("HTML"));
}

#[tokio::test]
async fn a_redirect_is_not_followed_since_the_key_must_not_travel() {
    let other = Peer::always(written("no")).await;
    let target = other.base_url.clone();
    let failure = failure((StatusCode::TEMPORARY_REDIRECT, [("location", target.clone())])).await;
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains(&target), "{}", failure.message);
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn an_answer_without_a_text_is_a_clear_failure() {
    let choice = |message: serde_json::Value, reason: &str| {
        axum::Json(json!({"choices": [{"message": message, "finish_reason": reason}]}))
    };
    for (answer, kind, expected) in [
        (axum::Json(json!({"choices": []})), FailureKind::Error, "no choices"),
        (axum::Json(json!({})), FailureKind::Error, "choices"),
        (choice(json!({"content": null, "refusal": "I won't"}), "stop"), FailureKind::Permanent, "I won't"),
        (choice(json!({"content": null}), "content_filter"), FailureKind::Permanent, "content filter"),
        (choice(json!({"content": ""}), "length"), FailureKind::Permanent, "maxTokens"),
        (choice(json!({"content": ""}), "stop"), FailureKind::Error, "empty"),
    ] {
        let failure = failure(answer).await;
        assert_eq!(failure.kind, kind, "{}", failure.message);
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
}

#[tokio::test]
async fn vectors_that_are_none_are_refused() {
    let row = |index: usize, embedding: serde_json::Value| json!({"index": index, "embedding": embedding});
    for (rows, expected) in [
        (json!([row(0, json!([1.0]))]), "1 vectors for 2 texts"),
        (json!([row(0, json!([1])), row(1, json!([1])), row(2, json!([1]))]), "3 vectors for 2 texts"),
        (json!([row(0, json!([1])), row(0, json!([1]))]), "two vectors with index 0"),
        (json!([row(0, json!([1])), row(7, json!([1]))]), "index 7"),
        (json!([row(0, json!([1])), row(1, json!([]))]), "vector 1 is empty"),
        (json!([row(0, json!([1])), row(1, json!([1e300]))]), "out of range"),
        (json!([row(0, json!([1])), row(1, json!([null]))]), "null"),
        (json!("nonsense"), "nonsense"),
    ] {
        let peer = Peer::always(axum::Json(json!({"data": rows}))).await;
        let error = Ai::new(&peer.config()).unwrap().pick("m").unwrap().embed(&["a", "b"]).await.unwrap_err();
        assert!(matches!(error, Error::BadAnswer { .. }) && error.to_string().contains(expected), "{error}");
        assert_eq!(Failure::from(error).kind, FailureKind::Error);
    }
    let peer = Peer::always(r#"{"data": [{"embedding": [NaN]}]}"#).await;
    let error = Ai::new(&peer.config()).unwrap().pick("m").unwrap().embed(&["a"]).await.unwrap_err();
    assert!(matches!(error, Error::BadAnswer { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_without_end_is_read_up_to_the_limit_only() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let peer = Peer::start(move |_| {
        let count = count.clone();
        async move {
            let endless = futures_util::stream::repeat_with(move || {
                count.fetch_add(1 << 16, Ordering::SeqCst);
                Ok::<_, std::convert::Infallible>(vec![b' '; 1 << 16])
            });
            axum::body::Body::from_stream(endless).into_response()
        }
    })
    .await;
    let failure = ask(&peer.config()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("more than 2097152 bytes"), "{}", failure.message);
    // What the sockets between hold comes on top.
    assert!(sent.load(Ordering::SeqCst) < 10 * COMPLETION_MAX);
}

#[tokio::test]
async fn a_small_answer_that_unpacks_to_a_huge_one_is_not_unpacked_to_its_end() {
    let bomb = gzip_bomb(400 * 1024 * 1024);
    let failure = failure(([("content-encoding", "gzip")], bomb)).await;
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("more than 2097152 bytes"), "{}", failure.message);
}

#[tokio::test]
async fn a_provider_without_proper_tls_is_a_retryable_failure() {
    let plain = Peer::always(written("x")).await;
    let config = config::Ai { base_url: Some(plain.base_url.replace("http://", "https://")), ..plain.config() };
    let failure = ask(&config).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
    assert!(failure.message.contains("no connection"), "{}", failure.message);
    assert!(plain.seen().is_empty());
}

#[tokio::test]
async fn a_silent_provider_and_an_absent_one_are_retryable_failures() {
    let silent = Peer::start(|_| std::future::pending()).await;
    let config = config::Ai { timeout: Duration::from_millis(50), ..silent.config() };
    let failure = ask(&config).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
    assert!(failure.message.ends_with("none within 50ms"), "{}", failure.message);

    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let absent = config::Ai { base_url: Some(format!("http://{closed}")), ..config::Ai::default() };
    let failure = ask(&absent).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Error);
    assert!(failure.message.contains("no connection") && failure.message.contains("refused"), "{}", failure.message);
}

#[tokio::test]
async fn no_more_requests_are_under_way_at_one_provider_than_allowed() {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let (door, now, most) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peer = {
        let (door, now, most) = (door.clone(), now.clone(), most.clone());
        Peer::start(move |_| {
            let (arrived, door, now, most) = (arrived.clone(), door.clone(), now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                arrived.send(()).unwrap();
                door.acquire().await.unwrap().forget();
                now.fetch_sub(1, Ordering::SeqCst);
                written("x").into_response()
            }
        })
        .await
    };
    let ai = Ai::new(&config::Ai { concurrency: 3, ..peer.config() }).unwrap();
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let target = ai.pick("m").unwrap();
            tokio::spawn(async move { target.chat(&chat("Hello")).await.unwrap() })
        })
        .collect();
    for _ in 0..3 {
        arrivals.recv().await.unwrap();
    }
    assert!(arrivals.try_recv().is_err(), "the fourth waits");
    door.add_permits(12);
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[test]
fn names_of_models_are_kept_to_harmless_characters() {
    for good in ["@cf/baai/bge-base-en-v1.5", "gpt-4o", "llama3.1:8b", "hf.co/me/model:Q4_K_M", "a+b"] {
        assert_eq!(model_fault(good), None, "{good}");
    }
    for bad in ["", "a b", "a\r\nb", "../x", "@cf/../../admin", "a?b", "ü", &"x".repeat(201)] {
        assert!(model_fault(bad).is_some(), "{bad:?}");
    }
}
