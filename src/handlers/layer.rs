//! What is done around every run of a worker: measuring, tracing, setting up. In the manner of tower's layers, each has
//! the next one in hand and decides when to go on.

use std::{future::Future, pin::Pin, sync::Arc};

use serde_json::value::RawValue;

use super::{
    RunContext,
    typed::{Ended, Erased, Run},
};
use crate::handlers::Faults;

/// A boxed future; what a [`Layer`] gives.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something around each run. Closures of this form are layers:
///
/// ```
/// use queue_service::handlers::{Ended, Next, RunContext, layer};
///
/// let timing = layer(|ctx: &RunContext, next: Next<'_>| {
///     let id = ctx.job_id;
///     Box::pin(async move {
///         let begun = std::time::Instant::now();
///         let ended = next.run().await;
///         println!("{id} took {:?}, done: {}", begun.elapsed(), matches!(ended, Ended::Done(_)));
///         ended
///     })
/// });
/// # let _ = timing;
/// ```
pub trait Layer: Send + Sync + 'static {
    /// Goes on with [`Next::run`], or ends the run itself. The future is dropped when the run's time is up.
    fn run<'a>(&'a self, ctx: &'a RunContext, next: Next<'a>) -> BoxFuture<'a, Ended>;
}

/// Helps the compiler to see that a closure is good for every lifetime.
pub fn layer<F>(closure: F) -> F
where
    F: for<'a> Fn(&'a RunContext, Next<'a>) -> BoxFuture<'a, Ended> + Send + Sync + 'static,
{
    closure
}

impl<F> Layer for F
where
    F: for<'a> Fn(&'a RunContext, Next<'a>) -> BoxFuture<'a, Ended> + Send + Sync + 'static,
{
    fn run<'a>(&'a self, ctx: &'a RunContext, next: Next<'a>) -> BoxFuture<'a, Ended> {
        self(ctx, next)
    }
}

/// The rest of a run: the layers within, and the handler.
pub struct Next<'a> {
    inner: &'a dyn Erased,
    ctx: &'a RunContext,
    payload: &'a RawValue,
}

impl<'a> Next<'a> {
    /// What the handler is given, as JSON.
    pub fn payload(&self) -> &'a RawValue {
        self.payload
    }

    /// Runs what is within.
    pub async fn run(self) -> Ended {
        self.inner.run(self.ctx, self.payload).await
    }
}

/// A handler in a layer.
pub(super) struct Layered {
    pub inner: Arc<dyn Erased>,
    pub layer: Arc<dyn Layer>,
}

impl Erased for Layered {
    fn check(&self, payload: &RawValue) -> Result<Faults, serde_path_to_error::Error<serde_json::Error>> {
        self.inner.check(payload)
    }

    fn run<'a>(&'a self, ctx: &'a RunContext, payload: &'a RawValue) -> Run<'a> {
        self.layer.run(ctx, Next { inner: &*self.inner, ctx, payload })
    }
}
