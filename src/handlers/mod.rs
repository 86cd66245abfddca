//! The work itself: what a job type is, and the context a run gets.
//!
//! A handler sees its payload and a [`RunContext`], never the store or the broker, so that a job type cannot break the
//! queue. A new type is one file here and one line in `registry`.

pub mod batch_import;
pub mod clients;
pub mod context;
mod crawl;
pub mod crawl_website;
mod function;
pub mod generate_content;
pub mod generate_embedding;
mod layer;
pub mod registry;
pub(crate) mod result;
pub(crate) mod schema_faults;
pub mod send_email;
pub mod typed;
pub mod webhook_delivery;

pub use context::{Progress, RunContext};
pub use layer::{BoxFuture, Layer, Next, layer};
pub use registry::Registry;
pub use typed::{AnyHandler, Ended, Faults};

use std::future::Future;

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::job::Failure;

/// The work of one job type.
///
/// # Examples
/// ```
/// use queue_service::{handlers::{Handler, RunContext}, job::Failure};
///
/// struct Greet;
///
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct Payload { name: String }
///
/// impl Handler for Greet {
///     const TYPE: &'static str = "greet";
///     const ABOUT: &'static str = "Says hello.";
///     type Payload = Payload;
///     type Output = String;
///
///     async fn run(&self, _ctx: &RunContext, payload: Payload) -> Result<String, Failure> {
///         Ok(format!("Hello, {}", payload.name))
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// The name on the wire: `^[a-z][a-z0-9-]{0,62}$`.
    const TYPE: &'static str;
    /// One sentence for lists and documentation.
    const ABOUT: &'static str;
    /// What a caller sends. Derive `JsonSchema` and put `#[serde(deny_unknown_fields)]` on it: a shape that does not
    /// fit is refused at enqueue, with a pointer for each fault.
    type Payload: DeserializeOwned + JsonSchema + Send;
    /// What a completed job shows as its result; JSON of at most `limits.result`.
    type Output: Serialize + Send;

    /// Rules beyond the shape, checked at enqueue; each fault with its JSON pointer.
    fn check(&self, payload: &Self::Payload, faults: &mut Faults) {
        let _ = (payload, faults);
    }

    /// How many jobs of this type one process should run at the same time, where the settings say nothing: for work that
    /// waits in a narrower queue behind it, so that waiting there spends no attempt.
    fn concurrency(&self) -> Option<usize> {
        None
    }

    /// Does the work once. It may run more than once for the same job (a crash after the work and before its record),
    /// so let the other side recognise repetitions by [`RunContext::job_id`].
    ///
    /// The future is dropped when the timeout passes; it should end by itself soon after [`RunContext::cancelled`].
    fn run(
        &self,
        ctx: &RunContext,
        payload: Self::Payload,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}
