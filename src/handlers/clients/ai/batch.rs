//! Embeddings of many jobs in one request: whatever waits for the same model goes together, and each job gets its own
//! vector or its own error. The request belongs to no job, so a job that is cancelled or times out spoils nothing.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::future::join;

use super::{Ai, Error, Target};
use crate::{
    flow::{Batcher, batcher::Size},
    supervise::{Supervisor, Tasks},
};

/// Most texts in one request. Providers stop at 96 (Cloudflare: 100), 2048 (OpenAI), or what memory allows (others);
/// beyond some dozens there is little left to win.
const TEXTS_MAX: usize = 64;
/// Most bytes of text in one request, unless a single text has more.
const BYTES_MAX: usize = 256 * 1024;
/// Requests for one model at the same time. Few, so that what waits gathers; more than one, so that a slow answer does
/// not hold up everybody.
const LANES: usize = 2;
/// How many jobs may wait for one model; the worker's own limit is lower.
const WAITING: usize = 10_000;

type Reply = Result<Vec<f32>, Error>;
type Line = Batcher<Arc<str>, Reply>;

/// Embeds single texts, together where they meet.
pub struct Embedder {
    ai: Arc<Ai>,
    /// One line per provider and model while somebody waits in it. Callers choose the models, so a line must not
    /// outlive its jobs.
    lines: Mutex<HashMap<(String, String), Weak<Line>>>,
    tasks: Tasks,
}

impl Embedder {
    pub fn new(ai: Arc<Ai>, supervisor: &Supervisor) -> Self {
        Self { ai, lines: Mutex::default(), tasks: supervisor.tasks() }
    }

    /// The name of the model that was asked, and the vector.
    ///
    /// # Errors
    /// See [`Error`]: this text's own, or one that all texts of the request share.
    pub async fn embed(&self, model: &str, text: String) -> Result<(String, Vec<f32>), Error> {
        let target = self.ai.pick(model)?;
        let (provider, model) = target.key();
        let line = self.line(target);
        match line.submit(Arc::from(text)).await {
            Ok(reply) => Ok((model, reply?)),
            Err(closed) => Err(Error::NoAnswer { provider, message: closed.to_string() }),
        }
    }

    /// How many lines are remembered.
    #[cfg(test)]
    pub(crate) fn lines(&self) -> usize {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn line(&self, target: Target) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let key = target.key();
        if let Some(line) = lines.get(&key).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let size = Size { weight: BYTES_MAX, lanes: LANES, enough: 1, waiting: WAITING };
        let weigh = |text: &Arc<str>| text.len().max(BYTES_MAX / TEXTS_MAX);
        let target = Arc::new(target);
        let line = Arc::new(Batcher::start("embeddings", size, weigh, &self.tasks, move |texts: Vec<Arc<str>>| {
            let target = target.clone();
            async move { ask(&target, &texts).await }
        }));
        lines.insert(key, Arc::downgrade(&line));
        line
    }
}

type Replies<'a> = Pin<Box<dyn Future<Output = Vec<Reply>> + Send + 'a>>;

/// Asks for all texts at once. When the whole request fails for what may be one text's fault, asks for each half by
/// itself, and so on: the culprit ends up alone, its neighbours get their vectors, and a provider that takes fewer
/// texts at a time is served too.
fn ask<'a>(target: &'a Target, texts: &'a [Arc<str>]) -> Replies<'a> {
    Box::pin(async move {
        match target.embed(texts).await {
            Ok(vectors) => vectors.into_iter().map(Ok).collect(),
            Err(error) if texts.len() > 1 && error.may_be_the_fault_of_one() => {
                let (left, right) = texts.split_at(texts.len() / 2);
                let (mut replies, more) = join(ask(target, left), ask(target, right)).await;
                replies.extend(more);
                replies
            }
            Err(error) => vec![Err(error); texts.len()],
        }
    })
}
