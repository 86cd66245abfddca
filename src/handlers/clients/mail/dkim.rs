//! DKIM signatures (RFC 6376, with Ed25519 by RFC 8463): headers and body in relaxed form, SHA-256. Pure but for the
//! clock and the randomness of RSA's blinding.
//!
//! Our own: the library made for it brings a resolver and a second cryptography, since it also verifies.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use sha2::{Digest, Sha256};

/// Signed where they are there; the sender twice, so that nobody can add another one (RFC 6376, 8.15).
const SIGNED: [&str; 16] = [
    "from",
    "from",
    "to",
    "cc",
    "subject",
    "date",
    "message-id",
    "reply-to",
    "in-reply-to",
    "references",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "auto-submitted",
];

/// Signs mails for one domain.
pub struct Signer {
    domain: String,
    selector: String,
    key: Key,
}

enum Key {
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// Why a key can't be used; shows nothing of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadKey(String);

impl Signer {
    /// `key`: a private key in PEM, RSA of at least 2048 bits (PKCS #1 or #8) or Ed25519 (PKCS #8).
    ///
    /// # Errors
    /// The key has another form, or a name can't stand in a signature.
    pub fn new(domain: &str, selector: &str, key: &str) -> Result<Self, BadKey> {
        let is_name = |text: &str| {
            !text.is_empty()
                && text.len() <= 255
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        };
        if !is_name(domain) || !is_name(selector) {
            return Err(BadKey("domain and selector must be names of letters, digits, '-', '_' and '.'".into()));
        }
        let expected = || BadKey("key must be a private key in PEM: RSA with at least 2048 bits, or Ed25519".into());
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| expected())?;
        let key = match &der {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).map(Key::Rsa).ok(),
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                let ed25519 = || Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Key::Ed25519).ok();
                RsaKeyPair::from_pkcs8(der).map(Key::Rsa).ok().or_else(ed25519)
            }
            _ => None,
        };
        Ok(Self { domain: domain.to_ascii_lowercase(), selector: selector.to_owned(), key: key.ok_or_else(expected)? })
    }

    /// The header to put before `mail`, with its line end.
    ///
    /// # Errors
    /// The cryptography refuses, or the mail has no body.
    pub fn sign(&self, mail: &[u8]) -> Result<Vec<u8>, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.sign_at(mail, now)
    }

    fn sign_at(&self, mail: &[u8], seconds: u64) -> Result<Vec<u8>, String> {
        let end = find(mail, b"\r\n\r\n").ok_or("the mail has no end of its headers")?;
        let fields = fields(&mail[..end + 2]);
        let names = signed(&fields);
        let algorithm = match &self.key {
            Key::Rsa(_) => "rsa-sha256",
            Key::Ed25519(_) => "ed25519-sha256",
        };
        let body_hash = BASE64.encode(Sha256::digest(relaxed_body(&mail[end + 4..])));
        let header = format!(
            "DKIM-Signature: v=1; a={algorithm}; c=relaxed/relaxed;\r\n d={}; s={}; t={seconds};\r\n h={};\r\n \
             bh={body_hash};\r\n b=",
            self.domain,
            self.selector,
            names.join(":\r\n  "),
        );
        let mut input = hashed(&fields, &names);
        // Without the line end: RFC 6376, 3.7.
        input.extend_from_slice(relaxed_field(header.as_bytes()).trim_ascii_end());
        let signature = BASE64.encode(self.signature(&input)?);
        let lines: Vec<&str> =
            signature.as_bytes().chunks(72).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
        Ok(format!("{header}{}\r\n", lines.join("\r\n  ")).into_bytes())
    }

    fn signature(&self, input: &[u8]) -> Result<Vec<u8>, String> {
        match &self.key {
            // Ed25519 signs the hash here, not the text: RFC 8463, 3.
            Key::Ed25519(key) => Ok(key.sign(&Sha256::digest(input)).as_ref().to_vec()),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let signed = key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input, &mut signature);
                signed.map_err(|_| "the mail can't be signed with the key of smtp.dkim".to_owned())?;
                Ok(signature)
            }
        }
    }
}

/// Name in small letters and the whole field with its line end, in the order of the mail.
fn fields(headers: &[u8]) -> Vec<(String, &[u8])> {
    let (mut fields, mut start) = (Vec::new(), 0);
    while start < headers.len() {
        let mut end = start;
        loop {
            end += find(&headers[end..], b"\r\n").map_or(headers.len() - end, |at| at + 2);
            if !matches!(headers.get(end), Some(b' ' | b'\t')) {
                break;
            }
        }
        let field = &headers[start..end];
        let name = field.split(|b| *b == b':').next().unwrap_or_default();
        fields.push((String::from_utf8_lossy(name).trim().to_ascii_lowercase(), field));
        start = end;
    }
    fields
}

fn signed(fields: &[(String, &[u8])]) -> Vec<&'static str> {
    SIGNED.into_iter().filter(|name| fields.iter().any(|(found, _)| found == name)).collect()
}

/// The named fields as they are hashed: of a name that stands more than once the last one first (RFC 6376, 5.4.2). A
/// name for which no field is left counts as an empty one.
fn hashed(fields: &[(String, &[u8])], names: &[&str]) -> Vec<u8> {
    let mut left: Vec<_> = fields.iter().collect();
    let mut out = Vec::new();
    for name in names {
        if let Some(at) = left.iter().rposition(|(found, _)| found == name) {
            out.extend(relaxed_field(left.remove(at).1));
        }
    }
    out
}

/// RFC 6376, 3.4.2: the name in small letters, unfolded, runs of blanks as one.
fn relaxed_field(field: &[u8]) -> Vec<u8> {
    let colon = field.iter().position(|b| *b == b':').unwrap_or(field.len());
    let mut out = field[..colon].trim_ascii().to_ascii_lowercase();
    out.push(b':');
    let value: Vec<u8> = field.get(colon + 1..).unwrap_or_default().iter().filter(|b| !is_end(**b)).copied().collect();
    out.extend(with_single_blanks(value.trim_ascii()));
    out.extend_from_slice(b"\r\n");
    out
}

/// RFC 6376, 3.4.4: blanks at line ends and empty lines at the end go, runs of blanks become one.
fn relaxed_body(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    for line in body.split_inclusive(|b| *b == b'\n') {
        let text: Vec<u8> = line.iter().filter(|b| !is_end(**b)).copied().collect();
        let single = with_single_blanks(&text);
        out.extend_from_slice(single.strip_suffix(b" ").unwrap_or(&single));
        out.extend_from_slice(b"\r\n");
    }
    while out.ends_with(b"\r\n\r\n") {
        out.truncate(out.len() - 2);
    }
    if out == b"\r\n" { Vec::new() } else { out }
}

fn is_end(b: u8) -> bool {
    matches!(b, b'\r' | b'\n')
}

fn with_single_blanks(text: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(text.len());
    for b in text.iter().map(|b| if *b == b'\t' { b' ' } else { *b }) {
        if b != b' ' || out.last() != Some(&b' ') {
            out.push(b);
        }
    }
    out
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;

    /// Source: RFC 8463, A.2.
    const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    const PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    /// Source: RFC 8463, A.3.
    const MAIL: &str = "From: Joe SixPack <joe@football.example.com>\r\n\
        To: Suzie Q <suzie@shopping.example.net>\r\n\
        Subject: Is dinner ready?\r\n\
        Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n\
        Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\
        \r\n\
        Hi.\r\n\
        \r\n\
        We lost the game.  Are you hungry yet?\r\n\
        \r\n\
        Joe.\r\n";

    fn pem(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der))
    }

    fn ed25519() -> Signer {
        // PKCS #8, version 1, of an Ed25519 key: RFC 8410, 7.
        let head = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        let der = [head.as_slice(), &BASE64.decode(SEED).unwrap()].concat();
        Signer::new("football.example.com", "brisbane", &pem("PRIVATE KEY", &der)).unwrap()
    }

    /// What RFC 6376, 3.7, says is hashed for [`MAIL`], written by hand, and the signature of the header.
    fn taken_apart(header: &str) -> (String, Vec<u8>) {
        let unfolded = header.replace("\r\n", "");
        let (unsigned, signature) = unfolded.rsplit_once("b=").unwrap();
        let words: Vec<&str> = unsigned.strip_prefix("DKIM-Signature:").unwrap().split_whitespace().collect();
        let input = format!(
            "from:Joe SixPack <joe@football.example.com>\r\nto:Suzie Q <suzie@shopping.example.net>\r\n\
             subject:Is dinner ready?\r\ndate:Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n\
             message-id:<20030712040037.46341.5F8J@football.example.com>\r\n\
             dkim-signature:{} b=",
            words.join(" "),
        );
        (input, BASE64.decode(signature.replace(' ', "")).unwrap())
    }

    #[test]
    fn headers_and_bodies_are_relaxed_as_in_the_examples_of_the_rfc() {
        // Source: RFC 6376, 3.4.5.
        assert_eq!(relaxed_field(b"A: X\r\n"), b"a:X\r\n");
        assert_eq!(relaxed_field(b"B : Y\t\r\n\tZ  \r\n"), b"b:Y Z\r\n");
        assert_eq!(relaxed_body(b" C \r\nD \t E\r\n\r\n\r\n"), b" C\r\nD E\r\n");
        assert_eq!(relaxed_body(b""), b"");
        assert_eq!(relaxed_body(b"\r\n\r\n"), b"");
        assert_eq!(relaxed_body(b"no end"), b"no end\r\n");
    }

    #[test]
    fn a_signature_by_ed25519_is_verified_with_the_key_of_the_rfc() {
        let header = String::from_utf8(ed25519().sign_at(MAIL.as_bytes(), 1_528_637_909).unwrap()).unwrap();
        assert!(header.contains("bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;"), "{header}");
        assert!(header.contains("a=ed25519-sha256") && header.contains("t=1528637909"), "{header}");
        let (input, signature) = taken_apart(&header);
        let key = UnparsedPublicKey::new(&ED25519, BASE64.decode(PUBLIC).unwrap());
        key.verify(&Sha256::digest(input.as_bytes()), &signature).unwrap();
    }

    #[test]
    fn a_signature_by_rsa_is_verified_with_its_public_key() {
        let der = BASE64.decode(include_str!("rsa_test_key.txt").replace('\n', "")).unwrap();
        let signer = Signer::new("football.example.com", "test", &pem("RSA PRIVATE KEY", &der)).unwrap();
        let header = String::from_utf8(signer.sign_at(MAIL.as_bytes(), 1_528_637_909).unwrap()).unwrap();
        assert!(header.lines().all(|line| line.len() <= 78), "{header}");
        let (input, signature) = taken_apart(&header);
        let Key::Rsa(key) = &signer.key else { panic!() };
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public().as_ref());
        public.verify(input.as_bytes(), &signature).unwrap();
    }

    #[test]
    fn a_second_sender_breaks_the_signature() {
        let twice = format!("From: Eve <eve@example.org>\r\n{MAIL}");
        let (fields_of_one, names) = (fields(MAIL.as_bytes()), ["from", "from"]);
        assert_ne!(hashed(&fields(twice.as_bytes()), &names), hashed(&fields_of_one, &names));
    }

    #[test]
    fn keys_that_are_none_are_refused_and_not_shown() {
        for key in ["", "secret-stuff", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0LXN0dWZm\n-----END PRIVATE KEY-----\n"] {
            let refused = Signer::new("example.org", "mail", key).err().unwrap().to_string();
            assert!(refused.contains("2048") && !refused.contains("secret-stuff"), "{refused}");
        }
        assert!(Signer::new("example.org;", "mail", "").is_err());
    }
}
