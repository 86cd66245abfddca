//! Bounded hand-over between tasks: batches that gather while the last one is under way, and budgets that say no; and how
//! often to tell of trouble that lasts.

pub mod batcher;
pub mod budget;
pub mod pace;
pub mod together;

pub use batcher::{Batcher, Unanswered};
pub use budget::Budget;
pub use pace::Pace;
pub use together::Together;
