//! What handlers use to speak with the outside: guarded HTTP requests, text models, mail, signatures.
//!
//! Nothing here knows of jobs but through the `Failure` a handler returns, nor of the store or the broker.

pub mod ai;
pub mod fetch;
pub mod guard;
pub mod mail;
pub mod retry_after;
pub mod sign;

#[cfg(test)]
pub(crate) mod peer;

/// Chooses the cryptography of TLS for the whole process, once; further calls do nothing. Clients are built without a
/// provider of their own, so whoever builds one calls this first.
pub fn install_crypto() {
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
