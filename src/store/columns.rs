//! The columns of a job: what goes along when its row moves between the live and the finished ones. Here is their one list;
//! `tests/it/columns.rs` holds the tables, the view and the entity to it, so that a new column is lost by no move.

/// Go along as they are in every move.
macro_rules! kept {
    () => {
        "id, type, priority, max_attempts, run, timeout_ms, tags, idempotency_key, payload, checkpoint, traceparent, created_at"
    };
}
pub(super) use kept;

/// Of the attempts so far: go along to the finished ones. A retry by hand begins anew with them.
macro_rules! attempts {
    () => {
        "attempt, progress, worker_id, run_at, started_at"
    };
}
pub(super) use attempts;

/// How the last run outside ended: written by the statement that ends it, and kept until the next one begins.
macro_rules! last_end {
    () => {
        "end_run, end_kind, end_hash, end_status"
    };
}
pub(super) use last_end;

/// Both tables have them, and each move says what becomes of them.
const CHANGED: &str = "status, errors, cancel_reason";
/// Say something of a job only as long as it is not over.
const LIVE: &str = "cancel_requested_at, lease_until, lease_ms, deadline";
/// Say something of a job only once it is over.
const FINISHED: &str = "result, finished_at";

/// The columns of `jobs`.
pub const OF_LIVE: [&str; 5] = [kept!(), attempts!(), last_end!(), CHANGED, LIVE];
/// The columns of `finished_jobs`.
pub const OF_FINISHED: [&str; 5] = [kept!(), attempts!(), last_end!(), CHANGED, FINISHED];
