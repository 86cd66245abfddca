//! Bounded hand-over between tasks: batches that gather while the last one is under way, and budgets that say no.

pub mod batcher;
pub mod budget;
pub mod together;

pub use batcher::{Batcher, Unanswered};
pub use budget::Budget;
pub use together::Together;
