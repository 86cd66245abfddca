//! One subject: takes its requests off the connection at once, carries each out in a task of its own, and counts.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Shared, reply};
use crate::ops::{ApiError, Code, EnqueueOptions, Verb};

/// A verb under one subject, and what has been asked there.
pub(crate) struct Endpoint {
    pub name: String,
    pub subject: String,
    pub verb: Verb,
    pub counts: Counts,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub requests: AtomicU64,
    pub errors: AtomicU64,
    pub busy_ns: AtomicU64,
    pub last_error: Mutex<String>,
}

impl Endpoint {
    pub fn new(name: String, subject: String, verb: Verb) -> Self {
        Self { name, subject, verb, counts: Counts::default() }
    }
}

impl Counts {
    fn note(&self, took: Duration, error: Option<&ApiError>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        if let Some(error) = error {
            self.errors.fetch_add(1, Ordering::Relaxed);
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
                format!("{}:{}", error.code.status(), error.detail);
        }
    }
}

/// Takes requests until `stop`, and then those that were on their way.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    requests: Arc<tokio::sync::Mutex<Subscriber>>,
    stop: CancellationToken,
) {
    // Kept when this panics, so that the requests that have come are answered by its successor.
    let mut requests = requests.lock().await;
    loop {
        tokio::select! {
            biased;
            request = requests.next() => match request {
                Some(request) => take(&shared, &endpoint, request),
                None => return,
            },
            _ = stop.cancelled() => break,
        }
    }
    // What the broker has sent already is ours to answer: nobody else will.
    if requests.drain().await.is_ok() {
        while let Ok(Some(request)) = tokio::time::timeout(Duration::from_millis(500), requests.next()).await {
            take(&shared, &endpoint, request);
        }
    }
}

fn take(shared: &Arc<Shared>, endpoint: &Arc<Endpoint>, request: Message) {
    let began = Instant::now();
    // Else whoever may ask could make the service publish anywhere, an enqueue for instance.
    if request.reply.as_ref().is_some_and(|reply| !allowed(reply, &shared.reply_prefixes)) {
        let refusal = ApiError::new(Code::Forbidden, "the reply subject is none of nats.reply_prefixes");
        tracing::warn!("ignored a request on {} whose reply subject is none of nats.reply_prefixes", endpoint.subject);
        return endpoint.counts.note(began.elapsed(), Some(&refusal));
    }
    // Waits hold no data and have a limit of their own.
    let share = match endpoint.verb {
        verb if verb.waits() => None,
        _ => match shared.budget.try_take(1, request.payload.len()) {
            Some(share) => Some(share),
            None => {
                let refusal = ApiError::overloaded("more requests are under way than rpc.max_in_flight allows");
                endpoint.counts.note(began.elapsed(), Some(&refusal));
                let shared_too = shared.clone();
                shared
                    .tasks
                    .spawn("refusal", async move { shared_too.replies.send(request.reply, Err(refusal)).await });
                return;
            }
        },
    };
    let carried_out = carry_out(shared.clone(), endpoint.clone(), request);
    // Boxed, since tokio copies a task's future at every change of its state.
    let work = Box::pin(async move {
        carried_out.await;
        drop(share);
    });
    shared.tasks.spawn("request", work);
}

async fn carry_out(shared: Arc<Shared>, endpoint: Arc<Endpoint>, request: Message) {
    let began = Instant::now();
    let answer = answer(&shared, &endpoint, &request).await;
    endpoint.counts.note(began.elapsed(), answer.as_ref().err());
    shared.replies.send(request.reply, answer).await;
}

async fn answer(shared: &Shared, endpoint: &Endpoint, request: &Message) -> Result<Vec<u8>, ApiError> {
    let header = |name: &str| request.headers.as_ref()?.get(name).map(|value| value.as_str());
    let options = EnqueueOptions {
        traceparent: header("traceparent"),
        answer_max: Some(reply::answer_max(&shared.ops.broker)),
        ..EnqueueOptions::default()
    };
    if !endpoint.subject.ends_with(".*") {
        return shared.ops.call(endpoint.verb, None, &request.payload, options).await;
    }
    let token = request.subject.rsplit('.').next().unwrap_or_default();
    let scope = shared.ops.type_named(token)?;
    shared.ops.call(endpoint.verb, Some(&scope), &request.payload, options).await
}

/// Whether `reply` may be answered to.
pub(crate) fn allowed(reply: &str, prefixes: &[String]) -> bool {
    prefixes.iter().any(|prefix| reply.starts_with(prefix.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_request_is_small_since_each_is_copied_when_it_begins() {
        let size = size_of_future(carry_out);
        assert!(size <= 2048, "{size} bytes: box what few requests wait for");
    }

    #[test]
    fn only_inboxes_are_answered() {
        let prefixes = ["_INBOX.".to_owned(), "_R_.".to_owned()];
        assert!(allowed("_INBOX.abc.1", &prefixes) && allowed("_R_.x.y", &prefixes));
        for other in ["queue.enqueue", "_INBOX", "$JS.ACK.background-jobs.x", ""] {
            assert!(!allowed(other, &prefixes), "{other}");
        }
    }
}
