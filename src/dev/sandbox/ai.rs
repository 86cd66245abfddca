//! A provider of the OpenAI shape that needs no network and pretends to nothing: vectors come from `vectors`, and every
//! text says that it is the sandbox's.
//!
//! Models `sandbox-refuse`, `sandbox-busy` and `sandbox-broken` answer 400, 429 and 500, to see what becomes of a job.

use std::collections::HashMap;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::vectors::{DIMENSIONS, embed};
use crate::supervise;

/// Path of the API's root.
pub(super) const ROOT: &str = "/dev/ai/v1";
/// Largest request: a batch of embeddings may hold several payloads.
const BODY_MAX: usize = 8 * 1024 * 1024;
/// Longest text, in characters; a real model refuses far less.
const TEXT_MAX: usize = 200_000;
/// Most texts in one request, as with OpenAI.
const TEXTS_MAX: usize = 2048;
/// Seconds that a busy model asks for.
const BUSY_FOR: &str = "1";
const OWNER: &str = "queue-service sandbox";

#[derive(Deserialize)]
struct Embeddings {
    model: String,
    input: Input,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Chat {
    model: String,
    messages: Vec<Message>,
    #[serde(default)]
    max_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

pub(super) fn router() -> Router {
    Router::new()
        .route(&format!("{ROOT}/models"), get(models))
        .route(&format!("{ROOT}/embeddings"), post(embeddings))
        .route(&format!("{ROOT}/chat/completions"), post(chat))
        .layer(DefaultBodyLimit::max(BODY_MAX))
}

async fn models() -> Json<Value> {
    let names = ["sandbox", "sandbox-refuse", "sandbox-busy", "sandbox-broken"];
    let data: Vec<_> =
        names.iter().map(|id| json!({"id": id, "object": "model", "created": 0, "owned_by": OWNER})).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn embeddings(request: Result<Json<Embeddings>, JsonRejection>) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return refusal(rejection.status(), &rejection.body_text()),
    };
    let texts = match request.input {
        Input::One(text) => vec![text],
        Input::Many(texts) => texts,
    };
    if let Some(trouble) = trouble(&request.model, texts.iter()) {
        return trouble;
    }
    if texts.is_empty() || texts.len() > TEXTS_MAX {
        return refusal(StatusCode::BAD_REQUEST, &format!("input must be 1 to {TEXTS_MAX} texts"));
    }
    let used: usize = texts.iter().map(|text| tokens(text)).sum();
    // Hashing megabytes must not hold up the other requests of this thread.
    let vectors = supervise::blocking(move || texts.iter().map(|text| embed(text)).collect::<Vec<_>>()).await;
    let Ok(vectors) = vectors else {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, "the sandbox could not make the vectors");
    };
    debug_assert!(vectors.iter().all(|vector| vector.len() == DIMENSIONS));
    let row = |(index, vector)| json!({"object": "embedding", "index": index, "embedding": vector});
    let data: Vec<_> = vectors.into_iter().enumerate().map(row).collect();
    Json(json!({
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }))
    .into_response()
}

async fn chat(request: Result<Json<Chat>, JsonRejection>) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return refusal(rejection.status(), &rejection.body_text()),
    };
    if let Some(trouble) = trouble(&request.model, request.messages.iter().map(|message| &message.content)) {
        return trouble;
    }
    let Some(prompt) = request.messages.iter().rev().find(|message| message.role == "user") else {
        return refusal(StatusCode::BAD_REQUEST, "messages must hold one of the role 'user'");
    };
    let (content, finish_reason) = shorten(write(&prompt.content), request.max_tokens);
    let asked: usize = request.messages.iter().map(|message| tokens(&message.content)).sum();
    let written = tokens(&content);
    Json(json!({
        "id": "chatcmpl-sandbox",
        "object": "chat.completion",
        "created": chrono::Utc::now().timestamp(),
        "model": request.model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": finish_reason,
        }],
        "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written},
    }))
    .into_response()
}

/// What goes wrong because the model's name or a text's length asks for it.
fn trouble<'a>(model: &str, mut texts: impl Iterator<Item = &'a String>) -> Option<Response> {
    let long = texts.find(|text| text.chars().count() > TEXT_MAX);
    match model {
        "sandbox-refuse" => Some(refusal(StatusCode::BAD_REQUEST, "this model of the sandbox refuses everything")),
        "sandbox-broken" => {
            Some(refusal(StatusCode::INTERNAL_SERVER_ERROR, "this model of the sandbox is always broken"))
        }
        "sandbox-busy" => {
            let response = refusal(StatusCode::TOO_MANY_REQUESTS, "this model of the sandbox is always busy");
            Some(([(header::RETRY_AFTER, BUSY_FOR)], response).into_response())
        }
        _ if long.is_some() => {
            let message = format!("the sandbox's maximum context length is {TEXT_MAX} characters");
            Some(refusal(StatusCode::BAD_REQUEST, &message))
        }
        _ => None,
    }
}

/// An error in OpenAI's shape.
fn refusal(status: StatusCode, message: &str) -> Response {
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    (status, Json(json!({"error": {"message": message, "type": kind, "param": null, "code": null}}))).into_response()
}

/// The usual rule of thumb.
fn tokens(text: &str) -> usize {
    text.chars().count().div_ceil(4)
}

/// A text about a prompt that nobody can take for a model's.
fn write(prompt: &str) -> String {
    let words: Vec<String> =
        prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in words.iter().filter(|word| word.chars().count() > 3) {
        *counts.entry(word).or_default() += 1;
    }
    let mut frequent: Vec<_> = counts.into_iter().collect();
    frequent.sort_by(|(a, x), (b, y)| y.cmp(x).then(a.cmp(b)));
    let topics: Vec<_> = frequent.iter().take(5).map(|(word, _)| *word).collect();
    let start: String = prompt.chars().take(300).collect();
    let topics = if topics.is_empty() { "nothing in particular".to_owned() } else { topics.join(", ") };
    format!(
        "[sandbox] No language model wrote this text: it comes from the sandbox of queue-service.\n\n\
         The request has {} words and is about {topics}. It begins:\n\n> {}\n\n\
         Set ai.base_url and ai.api_key to let a real model answer.",
        words.len(),
        start.replace('\n', "\n> ")
    )
}

/// Keeps the beginning, as a model with a limit does.
fn shorten(text: String, max_tokens: Option<usize>) -> (String, &'static str) {
    match max_tokens {
        Some(max) if tokens(&text) > max => (text.chars().take(max.saturating_mul(4)).collect(), "length"),
        _ => (text, "stop"),
    }
}
