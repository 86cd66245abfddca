//! Clients of the outside world, for handlers only: each speaks one protocol, bounds what it reads and waits for, and
//! tells failures that may pass from those that can't.

pub mod ai;
pub mod retry_after;

/// Chooses the one TLS implementation of this process. Every client calls it before its first connection; only the
/// first call counts.
pub fn install_crypto() {
    // An error means that another client was first, which is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
