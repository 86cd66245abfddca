//! A provider whose answers a test writes, behind a real socket.

use std::{
    future::Future,
    sync::{Arc, Mutex},
};

use axum::{
    Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{config, handlers::clients::peer};

/// A request that came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

pub(crate) struct Peer {
    pub base_url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Peer {
    pub async fn start<F, Fut>(answer: F) -> Self
    where
        F: Fn(Seen) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response> + Send + 'static,
    {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        let server = peer::Peer::start(move |request: Request| {
            let (answer, notes) = (answer.clone(), notes.clone());
            async move {
                let (head, body) = request.into_parts();
                let header = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let body = serde_json::from_slice(&body).unwrap();
                let one = Seen { path: head.uri.path().to_owned(), authorization: header, body };
                notes.lock().unwrap().push(one.clone());
                answer(one).await
            }
        })
        .await;
        Self { base_url: server.url("/v1").into(), seen }
    }

    /// A provider that gives the same answer to everything.
    pub async fn always<R: IntoResponse + Clone + Send + Sync + 'static>(answer: R) -> Self {
        Self::start(move |_| {
            let answer = answer.clone();
            async move { answer.into_response() }
        })
        .await
    }

    /// A provider whose vectors are [`vector`].
    pub async fn embedding() -> Self {
        Self::start(|seen| async move { vectors(&seen) }).await
    }

    /// What came in so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn config(&self) -> config::Ai {
        config::Ai { base_url: Some(self.base_url.clone()), ..config::Ai::default() }
    }
}

impl Seen {
    pub fn texts(&self) -> Vec<String> {
        serde_json::from_value(self.body["input"].clone()).unwrap()
    }
}

/// A vector by which a test recognises the text.
pub(crate) fn vector(text: &str) -> Vec<f32> {
    vec![text.len() as f32, text.bytes().map(f32::from).sum()]
}

/// The right answer to a request for embeddings, last text first: the index counts, not the order.
pub(crate) fn vectors(seen: &Seen) -> Response {
    let rows: Vec<_> = seen
        .texts()
        .iter()
        .enumerate()
        .rev()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": vector(text)}))
        .collect();
    Json(json!({"object": "list", "data": rows, "model": seen.body["model"]})).into_response()
}

/// The right answer to a request for a text.
pub(crate) fn written(content: &str) -> Json<Value> {
    Json(json!({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }))
}
