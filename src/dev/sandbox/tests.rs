//! The sandbox as the handlers meet it: over its sockets, with their own clients.

use std::sync::Arc;

use reqwest::{StatusCode, redirect};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{demo::CANCEL_TAG, *};
use crate::{
    handlers::{
        Registry, RunContext,
        clients::{
            ai::{Ai, Chat, Embedder},
            install_crypto,
        },
        generate_content::GenerateContent,
        generate_embedding::GenerateEmbedding,
        send_email::SendEmail,
        webhook_delivery::WebhookDelivery,
    },
    job::{Failure, FailureKind},
    ops::wire::EnqueueRequest,
};

fn client() -> reqwest::Client {
    install_crypto();
    reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap()
}

async fn json_of(url: String) -> Value {
    client().get(url).header("accept", "application/json").send().await.unwrap().json().await.unwrap()
}

async fn text_of(url: String) -> String {
    client().get(url).send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn webhooks_are_recorded_and_shown_as_page_and_json() {
    let sandbox = Sandbox::start().await.unwrap();
    let sent = client()
        .put(sandbox.url("/dev/webhooks/orders"))
        .header("webhook-id", "msg_1")
        .header("authorization", "canary")
        .body("<script>alert(1)</script>");
    assert_eq!(sent.send().await.unwrap().status(), StatusCode::OK);
    let listed = json_of(sandbox.url("/dev/webhooks")).await;
    let one = &listed["deliveries"][0];
    assert_eq!(one["name"], "orders");
    assert_eq!(one["method"], "PUT");
    assert_eq!(one["webhookId"], "msg_1");
    assert_eq!(one["body"], "<script>alert(1)</script>");
    assert_eq!((&one["status"], &one["bodyBytes"]), (&json!(200), &json!(25)));
    assert_eq!(json_of(sandbox.url("/dev/webhooks.json")).await, listed);
    assert_eq!(json_of(sandbox.url("/dev/webhooks/other")).await["deliveries"], json!([]));
    let page = text_of(sandbox.url("/dev/webhooks")).await;
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script"), "{page}");
    assert!(!page.contains("canary") && !listed.to_string().contains("canary"));
}

#[tokio::test]
async fn a_webhook_fails_as_often_as_its_address_says_and_each_job_for_itself() {
    let sandbox = Sandbox::start().await.unwrap();
    let deliver = |id: &'static str, tail: &str| {
        let url = sandbox.url(&format!("/dev/webhooks/{tail}"));
        async move {
            let response = client().post(url).header("webhook-id", id).body("{}").send().await.unwrap();
            let wish = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
            (response.status().as_u16(), wish)
        }
    };
    let flaky = "flaky?fail=2&status=502&retryAfter=3";
    for id in ["a", "b"] {
        for expected in [(502, Some("3".to_owned())), (502, Some("3".to_owned())), (200, None), (200, None)] {
            assert_eq!(deliver(id, flaky).await, expected);
        }
    }
    for _ in 0..4 {
        assert_eq!(deliver("c", "gone?status=410").await.0, 410);
    }
    assert_eq!(deliver("d", "once?fail=1").await.0, 503);
    for bad in ["x?fail=many", "x?status=7", "x?nonsense=1"] {
        assert_eq!(deliver("e", bad).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn what_is_kept_of_webhooks_is_bounded() {
    let sandbox = Sandbox::start().await.unwrap();
    let client = client();
    let post = |size: usize| client.post(sandbox.url("/dev/webhooks/big")).body("x".repeat(size)).send();
    assert_eq!(post(3 * 1024 * 1024).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
    for _ in 0..210 {
        post(20_000).await.unwrap();
    }
    let listed = json_of(sandbox.url("/dev/webhooks")).await;
    let deliveries = listed["deliveries"].as_array().unwrap();
    assert_eq!((deliveries.len(), &deliveries[0]["id"]), (200, &json!(210)));
    assert_eq!(deliveries[0]["body"].as_str().unwrap().len(), 16 * 1024);
}

#[tokio::test]
async fn the_provider_answers_our_own_client_and_says_that_it_is_the_sandbox() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut config = Config::default();
    sandbox.apply(&mut config, |_| false);
    let ai = Arc::new(Ai::new(&config.ai).unwrap());
    let embedder = Embedder::new(ai.clone(), &Default::default());
    let (model, vector) = embedder.embed("@cf/baai/bge-base-en-v1.5", "Tea".into()).await.unwrap();
    assert_eq!((model.as_str(), vector.len()), ("@cf/baai/bge-base-en-v1.5", 768));
    assert_eq!(vector, vectors::embed("Tea"));

    let target = ai.pick("any").unwrap();
    let mut chat =
        Chat { system: "s", prompt: "Why do queues help? Queues smooth bursts.", max_tokens: None, temperature: None };
    let whole = target.chat(&chat).await.unwrap();
    assert!(whole.content.starts_with("[sandbox] No language model wrote this"), "{}", whole.content);
    assert!(whole.content.contains("about queues, bursts, help, smooth"), "{}", whole.content);
    chat.max_tokens = Some(10);
    let short = target.chat(&chat).await.unwrap();
    assert_eq!((short.content.len(), short.usage.unwrap().completion_tokens), (40, 10));
}

#[tokio::test]
async fn troubled_models_fail_the_way_their_names_say() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut config = Config::default();
    sandbox.apply(&mut config, |_| false);
    let embedder = Embedder::new(Arc::new(Ai::new(&config.ai).unwrap()), &Default::default());
    for (model, text, kind, wish) in [
        ("sandbox-refuse", "x".into(), FailureKind::Permanent, None),
        ("sandbox-broken", "x".into(), FailureKind::Error, None),
        ("sandbox-busy", "x".into(), FailureKind::Error, Some(1)),
        ("other", "x".repeat(300_000), FailureKind::Permanent, None),
    ] {
        let failure = Failure::from(embedder.embed(model, text).await.unwrap_err());
        let seen = failure.retry_after.map(|wish| wish.as_secs());
        assert_eq!((failure.kind, seen), (kind, wish), "{model}: {}", failure.message);
        assert!(failure.message.contains("sandbox"), "{}", failure.message);
    }
}

#[tokio::test]
async fn requests_that_no_client_of_ours_sends_are_refused_in_the_shape_of_openai() {
    let sandbox = Sandbox::start().await.unwrap();
    for (path, body) in [
        ("embeddings", json!({"model": "m", "input": []})),
        ("embeddings", json!({"model": "m"})),
        ("embeddings", json!({"model": "m", "input": vec!["x"; 3000]})),
        ("chat/completions", json!({"model": "m", "messages": [{"role": "system", "content": "x"}]})),
        ("chat/completions", json!([])),
    ] {
        let url = sandbox.url(&format!("/dev/ai/v1/{path}"));
        let response = client().post(url).json(&body).send().await.unwrap();
        assert!(response.status().is_client_error());
        let answer: Value = response.json().await.unwrap();
        assert!(answer["error"]["message"].is_string(), "{answer}");
    }
    let one = client()
        .post(sandbox.url("/dev/ai/v1/embeddings"))
        .json(&json!({"model": "m", "input": "a single text"}))
        .send()
        .await
        .unwrap();
    assert_eq!(one.json::<Value>().await.unwrap()["data"].as_array().unwrap().len(), 1);
    assert_eq!(json_of(sandbox.url("/dev/ai/v1/models")).await["data"][0]["id"], "sandbox");
}

#[tokio::test]
async fn the_site_has_everything_that_makes_crawling_hard() {
    let sandbox = Sandbox::start().await.unwrap();
    let site = sandbox.site_url();
    let get = |path: &'static str| {
        let url = format!("{}{path}", site.trim_end_matches('/'));
        async move { client().get(url).send().await.unwrap() }
    };
    assert!(get("/robots.txt").await.text().await.unwrap().contains("Disallow: /private"));
    let moved = get("/old-about").await;
    assert_eq!((moved.status().as_u16(), &moved.headers()["location"]), (308, &"/about".parse().unwrap()));
    assert_eq!(get("/broken").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(get("/missing").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get("/prices.csv").await.headers()["content-type"], "text/csv");
    assert!(get("/cafe").await.text().await.unwrap().contains("<h1>Café crème</h1>"));
    assert!(get("/calendar?month=9").await.text().await.unwrap().contains("month=10"));
    assert_eq!(get("/calendar?month=4294967295").await.status(), StatusCode::OK);
    let home = get("/").await.text().await.unwrap();
    for path in ["/guides", "/old-about", "/calendar", "/untidy", "/broken", "/prices.csv", "/private", "/cafe"] {
        assert!(home.contains(&format!("href=\"{path}\"")), "{path}");
    }
}

#[tokio::test]
async fn what_the_user_has_configured_wins_over_the_sandbox() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut own = Config::default();
    own.ai.base_url = Some("http://own/v1".into());
    own.webhook.allow_private = AllowPrivate::All(true);
    own.smtp.url = Some("smtp://own".to_owned().into());
    sandbox.apply(&mut own, |key| key == "crawl.allow_private");
    assert_eq!(own.smtp.url.as_ref().unwrap().expose_secret(), "smtp://own");
    assert_eq!(own.ai.base_url.as_deref(), Some("http://own/v1"));
    assert_eq!(own.webhook.allow_private, AllowPrivate::All(true));
    assert_eq!(own.crawl.allow_private, AllowPrivate::All(false), "set to its default on purpose");

    let mut fresh = Config::default();
    sandbox.apply(&mut fresh, |_| false);
    assert_eq!(fresh.smtp.url.as_ref().unwrap().expose_secret(), sandbox.smtp().url());
    assert_eq!(fresh.ai.base_url, Some(sandbox.url("/dev/ai/v1")));
    let AllowPrivate::Only(networks) = &fresh.crawl.allow_private else { panic!("more than the loopback") };
    assert!(networks.iter().all(|network| network.addr().is_loopback()) && networks.len() == 2);
    fresh.check().unwrap();
}

#[tokio::test]
async fn pages_are_plain_and_answer_to_the_loopbacks_own_names_only() {
    let sandbox = Sandbox::start().await.unwrap();
    let index = client().get(sandbox.url("/dev")).send().await.unwrap();
    assert!(index.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = index.text().await.unwrap();
    assert!(page.contains(&sandbox.site_url()) && page.contains("/dev/webhooks") && !page.contains("<script"));
    assert!(text_of(sandbox.url("/dev/style.css")).await.contains("body"));
    let moved = client().get(sandbox.url("/dev/site")).send().await.unwrap();
    assert_eq!(moved.headers()["location"], sandbox.site_url());
    let foreign = client().get(sandbox.url("/dev/webhooks")).header("host", "evil.example").send().await.unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_demo_has_every_type_and_every_request_of_it_is_valid() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut config = Config::default();
    sandbox.apply(&mut config, |_| false);
    let pool = sqlx::PgPool::connect_lazy("postgres://127.0.0.1/none").unwrap();
    let registry = Registry::builtin(&config, pool, &Default::default()).unwrap();
    let requests = sandbox.demo_requests();
    let mut types = std::collections::BTreeSet::new();
    for request in &requests {
        let parsed: EnqueueRequest = serde_json::from_str(&request.to_string()).unwrap();
        let job_type = parsed.r#type.unwrap();
        if let Some(handler) = registry.get(&job_type) {
            let faults = handler.check(&parsed.payload);
            assert!(faults.is_empty(), "{request}: {faults:?}");
        }
        types.insert(job_type);
    }
    let all = ["batch-import", "crawl-website", "generate-content", "generate-embedding", "send-email"];
    assert_eq!(types.into_iter().collect::<Vec<_>>(), [&all[..], &["webhook-delivery"]].concat());
    let tagged = |request: &&Value| request["tags"].as_array().unwrap().contains(&CANCEL_TAG.into());
    assert_eq!(requests.iter().filter(tagged).count(), 1);
}

/// The requests in a page of `docs/`: every block of JSON that has a type and a payload.
fn examples(page: &str) -> Vec<Value> {
    let blocks = page.split("```json\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    let values = blocks.map(|block| serde_json::from_str::<Value>(block).unwrap_or_else(|e| panic!("{e} in {block}")));
    values.filter(|value| value["type"].is_string() && value["payload"].is_object()).collect()
}

#[tokio::test]
async fn the_examples_of_the_documentation_do_what_it_says() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut config = Config::default();
    sandbox.apply(&mut config, |_| false);
    let ai = Arc::new(Ai::new(&config.ai).unwrap());
    let registry = Registry::default()
        .with(GenerateEmbedding::new(ai.clone(), &config.ai, &Default::default()))
        .unwrap()
        .with(GenerateContent::new(ai, &config.ai))
        .unwrap();
    let mut keys = Vec::new();
    for example in examples(include_str!("../../../docs/job-types.md")) {
        let Some(handler) = registry.get(example["type"].as_str().unwrap()) else { continue };
        let payload = serde_json::value::to_raw_value(&example["payload"]).unwrap();
        assert!(handler.check(&payload).is_empty());
        let ctx = RunContext::detached(handler.job_type.clone(), std::time::Duration::from_secs(30));
        let result: Value = serde_json::from_str(handler.run(&ctx, &payload).await.result().unwrap().get()).unwrap();
        let mut names: Vec<_> = result.as_object().unwrap().keys().cloned().collect();
        names.sort();
        keys.push(names.join(" "));
    }
    assert_eq!(keys, ["dimensions embedding model", "content model type usage"]);
}

#[tokio::test]
async fn mail_is_shown_decoded_as_page_and_json_and_as_text_only() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut config = Config::default();
    sandbox.apply(&mut config, |_| false);
    let handler = SendEmail::new(&config.smtp).unwrap();
    let registry = Registry::default().with(handler).unwrap();
    let handler = registry.get("send-email").unwrap();
    let ctx = RunContext::detached(handler.job_type.clone(), std::time::Duration::from_secs(30));
    for n in 1..=2u8 {
        let payload = json!({
            "to": "b@example.com", "bcc": "hidden@example.com", "subject": format!("Grüße <b>{n}</b>"),
            "body": "Schöne Grüße", "html": "<script>alert(1)</script>",
        });
        handler.run(&ctx, &serde_json::value::to_raw_value(&payload).unwrap()).await.result().unwrap();
    }
    let listed = json_of(sandbox.url("/dev/mail")).await;
    assert_eq!(listed, json_of(sandbox.url("/dev/mail.json")).await);
    assert_eq!(listed["mails"][0]["subject"], "Grüße <b>2</b>");
    assert_eq!(listed["mails"][0]["to"], json!(["b@example.com", "hidden@example.com"]));
    let mail = json_of(sandbox.url("/dev/mail/1.json")).await;
    assert_eq!((&mail["id"], &mail["html"]), (&json!(1), &json!("<script>alert(1)</script>")));
    assert!(mail["text"].as_str().unwrap().starts_with("Schöne Grüße"));
    for path in ["/dev/mail", "/dev/mail/1"] {
        let page = text_of(sandbox.url(path)).await;
        assert!(page.contains("Grüße &lt;b&gt;1&lt;/b&gt;") && !page.contains("<script"), "{page}");
    }
    let refused = json!({"to": REFUSED_MAILBOX, "subject": "s", "body": "b"});
    let failure = handler.run(&ctx, &serde_json::value::to_raw_value(&refused).unwrap()).await.result().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent);
    for path in ["/dev/mail/99", "/dev/mail/x", "/dev/mail/.json"] {
        assert_eq!(client().get(sandbox.url(path)).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn the_demos_troubled_webhooks_go_the_way_they_are_meant_to() {
    let sandbox = Sandbox::start().await.unwrap();
    let mut config = Config::default();
    sandbox.apply(&mut config, |_| false);
    let registry = Registry::default().with(WebhookDelivery::new(&config.webhook).unwrap()).unwrap();
    let handler = registry.get("webhook-delivery").unwrap();
    let ways = sandbox.demo_requests().into_iter().filter_map(|request| {
        let url =
            request["payload"]["url"].as_str().filter(|url| url.contains("/dev/webhooks/") && !url.contains("wait="));
        let name = url?.rsplit('/').next()?.split('?').next()?.to_owned();
        Some((name, serde_json::value::to_raw_value(&request["payload"]).unwrap()))
    });
    for (name, payload) in ways {
        let ctx = RunContext::detached(handler.job_type.clone(), std::time::Duration::from_secs(30));
        let mut story = Vec::new();
        for _ in 0..3 {
            story.push(match handler.run(&ctx, &payload).await.result() {
                Ok(_) => "done".to_owned(),
                Err(failure) => format!("{} {:?}", failure.kind.as_str(), failure.retry_after),
            });
        }
        let expected = match name.as_str() {
            "orders" => ["done"; 3],
            "flaky" => ["error Some(1s)", "error Some(1s)", "done"],
            "down" => ["error None"; 3],
            "gone" => ["permanent None"; 3],
            other => panic!("{other}"),
        };
        assert_eq!(story, expected, "{name}");
    }
}
