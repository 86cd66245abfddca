//! How to log in to NATS: everything of `[nats]` that a connection needs.

use async_nats::{ConnectOptions, ServerAddr};
use secrecy::ExposeSecret;

use super::Error;
use crate::config::{self, layers::mask_url};

/// Adds what `config` says of the login to `options`, and gives the servers.
///
/// # Errors
/// Settings that can't be used.
pub async fn prepare(
    mut options: ConnectOptions,
    config: &config::Nats,
) -> Result<(ConnectOptions, Vec<ServerAddr>), Error> {
    let servers = servers(&config.url)?;
    // async-nats reads user and password of a URL and then does nothing with them (nats-io/nats.rs#1623). It has one
    // login for all servers.
    match servers.iter().find_map(|server| Some((server.username()?, server.password()))) {
        _ if config.token.is_some() || config.creds.is_some() => {}
        Some((user, Some(password))) => options = options.user_and_password(decode(user), decode(password)),
        Some((token, None)) => options = options.token(decode(token)),
        None => {}
    }
    if let Some(path) = &config.creds {
        let unusable = |e| Error::Setting { key: "creds", message: format!("{}: {e}", path.display()) };
        options = options.credentials_file(path).await.map_err(unusable)?;
    }
    if let Some(token) = &config.token {
        options = options.token(token.expose_secret().to_owned());
    }
    if let Some(ca) = &config.tls_ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok((options, servers))
}

fn servers(urls: &str) -> Result<Vec<ServerAddr>, Error> {
    urls.split(',')
        .map(|url| {
            let url = url.trim();
            url.parse().map_err(|e: std::io::Error| {
                let message = format!("'{}': {e}; write for instance nats://127.0.0.1:4222", mask_url(url));
                Error::Setting { key: "url", message }
            })
        })
        .collect()
}

/// Undoes the percent encoding that special characters of a password have in a URL.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_may_hold_anything() {
        let server = &servers("nats://me:p%40ss%2Fw%C3%B6rd%25@h:1, nats://other").unwrap()[0];
        assert_eq!(server.username().map(decode).as_deref(), Some("me"));
        assert_eq!(server.password().map(decode).as_deref(), Some("p@ss/wörd%"));
        assert_eq!((decode("100%"), decode("%zz"), decode("%")), ("100%".into(), "%zz".into(), "%".into()));
    }

    #[test]
    fn a_url_that_can_not_be_used_is_told_without_its_password() {
        let error = servers("nats://me:canary@h:1:2").unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
