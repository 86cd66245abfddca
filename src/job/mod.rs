//! The rules of a job's life: values in, values out.
//!
//! Nothing here is async, reads a clock or touches the outside; callers bring the time and the dice. The guards in
//! `store`'s SQL mirror `state`, and a model test holds the two together.

pub mod backoff;
pub mod content;
mod ends;
pub mod integer;
pub mod json;
pub mod kept;
pub mod model;
pub mod settle;
pub mod span;
pub mod state;
mod trace;
pub mod update;

pub use backoff::RetryPolicy;
pub use ends::{End, EndKind};
pub use model::{BadType, JobType, Lane, Priority, Status, Work};
pub use settle::{Failure, FailureKind, Outcome, Verdict, settle};
pub use trace::Trace;
pub use update::Update;
