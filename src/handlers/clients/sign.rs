//! Signatures by Standard Webhooks: `v1,base64(HMAC-SHA256(secret, "id.timestamp.body"))`. Pure.
//!
//! Own lines, since the reference crate brings an HMAC, a base64 and a calendar of its own; a test compares the two.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const PREFIX: &str = "whsec_";
/// Shortest key that is taken, in bytes. (Recommended are 24 to 64.)
const KEY_MIN: usize = 16;

#[derive(Debug, thiserror::Error)]
#[error(
    "must be 'whsec_' and the base64 of at least {KEY_MIN} random bytes; make one with: echo whsec_$(openssl rand -base64 32)"
)]
pub struct BadSecret;

/// The keys that deliveries are signed with.
pub struct Signer {
    keys: Vec<Hmac<Sha256>>,
}

impl Signer {
    /// Reads one secret, or several parted by spaces: while a secret is being replaced every delivery carries a
    /// signature of each.
    ///
    /// # Errors
    /// A secret of another form.
    pub fn new(secrets: &str) -> Result<Self, BadSecret> {
        let keys: Vec<_> = secrets.split_ascii_whitespace().map(key).collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(BadSecret) } else { Ok(Self { keys }) }
    }

    /// The value of `webhook-signature`. `timestamp`: seconds since 1970.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut signatures = String::new();
        for key in &self.keys {
            let mut mac = key.clone();
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            if !signatures.is_empty() {
                signatures.push(' ');
            }
            signatures.push_str("v1,");
            STANDARD.encode_string(mac.finalize().into_bytes(), &mut signatures);
        }
        signatures
    }
}

fn key(secret: &str) -> Result<Hmac<Sha256>, BadSecret> {
    let bytes = STANDARD.decode(secret.strip_prefix(PREFIX).ok_or(BadSecret)?).map_err(|_| BadSecret)?;
    if bytes.len() < KEY_MIN {
        return Err(BadSecret);
    }
    Hmac::new_from_slice(&bytes).map_err(|_| BadSecret)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const NEXT: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    proptest! {
        #[test]
        fn the_reference_implementation_makes_the_same_signature(id in "[a-z0-9-]{1,40}", at in 0i64..4_000_000_000, body in ".{0,200}") {
            let reference = standardwebhooks::Webhook::new(SECRET).unwrap();
            let ours = Signer::new(SECRET).unwrap().sign(&id, at, body.as_bytes());
            prop_assert_eq!(ours, reference.sign(&id, at, body.as_bytes()).unwrap());
        }
    }

    #[test]
    fn while_a_secret_is_replaced_both_sign() {
        let (old, new) = (Signer::new(SECRET).unwrap(), Signer::new(NEXT).unwrap());
        let both = Signer::new(&format!("{SECRET} {NEXT}")).unwrap();
        assert_eq!(both.sign("a", 1, b"x"), format!("{} {}", old.sign("a", 1, b"x"), new.sign("a", 1, b"x")));
    }

    #[test]
    fn secrets_of_another_form_are_refused() {
        for secret in ["", " ", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_not base64!"] {
            assert!(Signer::new(secret).is_err(), "{secret}");
        }
    }
}
