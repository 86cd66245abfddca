//! What handlers use to speak with the outside: guarded HTTP requests, text models, mail, signatures.
//!
//! Nothing here knows more of jobs than a run's deadline and the `Failure` it may end with.

pub mod ai;
pub mod fetch;
pub mod guard;
pub mod mail;
pub mod retry_after;
pub mod sign;

#[cfg(test)]
pub(crate) mod peer;

use std::time::Duration;

use tokio::time::Instant;

use super::RunContext;

/// When a handler should have its answer: a little before the run is cut off, so that it can still say what went wrong.
/// At most `reserve` before, and no more than an eighth of the time that is left.
pub fn answer_by(ctx: &RunContext, reserve: Duration) -> Instant {
    ctx.deadline - reserve.min(ctx.time_left() / 8)
}

/// Chooses the cryptography of TLS for the whole process, once; further calls do nothing. Clients are built without a
/// provider of their own, so whoever builds one calls this first.
pub fn install_crypto() {
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
