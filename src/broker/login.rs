//! How to log in to NATS: everything of `[nats]` that a connection needs.
//!
//! What lies in files is read at each connect, so that whoever renews it need not restart us: credentials and passwords
//! here, certificates and keys by the client.

use std::path::{Path, PathBuf};

use async_nats::{Auth, AuthError, ConnectOptions, ServerAddr};
use secrecy::{ExposeSecret, SecretString};

use super::{Error, tls};
use crate::config::{self, layers::mask_url};

/// Options that have what `config` says of the login, and the servers.
///
/// # Errors
/// Settings that can't be used, among them files that can't be read now.
pub async fn prepare(config: &config::Nats) -> Result<(ConnectOptions, Vec<ServerAddr>), Error> {
    let servers = servers(&config.url)?;
    let login = Login::of(config, &servers)?;
    login.read(b"").await.map_err(|e| Error::Setting { key: e.key, message: e.to_string() })?;
    tls::check(config)?;
    let options = match login.is_empty() {
        true => ConnectOptions::new(),
        false => ConnectOptions::with_auth_callback(move |nonce| {
            let login = login.clone();
            async move { login.read(&nonce).await.map_err(|e| AuthError::new(format!("nats.{}: {e}", e.key))) }
        }),
    };
    let mut options = options;
    if let Some(ca) = &config.tls_ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok((options, servers))
}

/// Who we say that we are. The client has one login for all servers.
#[derive(Clone, Default)]
struct Login {
    user: Option<String>,
    password: Option<Secret>,
    token: Option<Secret>,
    creds: Option<PathBuf>,
}

#[derive(Clone)]
enum Secret {
    Known(SecretString),
    /// The key that names the file, for messages.
    File(&'static str, PathBuf),
}

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
struct Unusable {
    key: &'static str,
    path: PathBuf,
    message: String,
}

impl Login {
    fn of(config: &config::Nats, servers: &[ServerAddr]) -> Result<Self, Error> {
        // async-nats reads user and password of a URL and then does nothing with them (nats-io/nats.rs#1623).
        let mut named = servers.iter().filter_map(|server| Some((server.username()?, server.password())));
        let in_url = named.next();
        if named.any(|other| Some(other) != in_url) {
            let message = "the servers have different logins; one login must do for all of them".to_owned();
            return Err(Error::Setting { key: "url", message });
        }
        let known = |text: &str| Secret::Known(decode(text).into());
        let file = |key, path: &Option<PathBuf>| path.clone().map(|path| Secret::File(key, path));
        let mut login = Self {
            token: config.token.clone().map(Secret::Known).or(file("token_file", &config.token_file)),
            password: file("password_file", &config.password_file),
            creds: config.creds.clone(),
            user: None,
        };
        match in_url {
            Some((_, Some(_))) if login.password.is_some() => {
                let message = "the URL has a password already; leave it out there".to_owned();
                return Err(Error::Setting { key: "password_file", message });
            }
            None if login.password.is_some() => {
                let message = "whose password is it? name the user in nats.url, as in nats://user@host".to_owned();
                return Err(Error::Setting { key: "password_file", message });
            }
            _ if login.token.is_some() || login.creds.is_some() => {}
            Some((user, None)) if login.password.is_some() => login.user = Some(decode(user)),
            Some((user, Some(password))) => {
                (login.user, login.password) = (Some(decode(user)), Some(known(password)));
            }
            Some((token, None)) => login.token = Some(known(token)),
            None => {}
        }
        Ok(login)
    }

    fn is_empty(&self) -> bool {
        self.user.is_none() && self.token.is_none() && self.creds.is_none()
    }

    /// What to send now. `nonce`: what the server wants to have signed.
    async fn read(&self, nonce: &[u8]) -> Result<Auth, Unusable> {
        let mut auth = Auth::new();
        auth.username = self.user.clone();
        if let Some(password) = self.password.as_ref().filter(|_| self.user.is_some()) {
            auth.password = Some(password.read().await?);
        }
        if let Some(token) = &self.token {
            auth.token = Some(token.read().await?);
        }
        if let Some(path) = &self.creds {
            let text = read_file("creds", path).await?;
            let unusable = |message: &str| Unusable { key: "creds", path: path.clone(), message: message.to_owned() };
            let mut parts = armoured(&text);
            let (Some(jwt), Some(seed)) = (parts.next(), parts.next()) else {
                return Err(unusable("a user's JWT and seed are needed, as `nsc generate creds` writes them"));
            };
            let key = nkeys::KeyPair::from_seed(seed).map_err(|_| unusable("the seed is not one of NATS"))?;
            auth.jwt = Some(jwt.to_owned());
            auth.signature = Some(key.sign(nonce).map_err(|_| unusable("the seed can't sign"))?);
        }
        Ok(auth)
    }
}

impl Secret {
    async fn read(&self) -> Result<String, Unusable> {
        match self {
            Secret::Known(text) => Ok(text.expose_secret().to_owned()),
            Secret::File(key, path) => {
                let text = read_file(key, path).await?;
                // Editors end the last line, which no password means.
                let text = text.trim_end_matches(['\r', '\n']);
                if text.is_empty() {
                    let message = "the file is empty".to_owned();
                    return Err(Unusable { key, path: path.clone(), message });
                }
                Ok(text.to_owned())
            }
        }
    }
}

async fn read_file(key: &'static str, path: &Path) -> Result<String, Unusable> {
    let read = tokio::fs::read_to_string(path).await;
    read.map_err(|e| Unusable { key, path: path.to_owned(), message: e.to_string() })
}

/// What stands between `-----BEGIN …-----` and `------END …------`, block by block.
fn armoured(text: &str) -> impl Iterator<Item = &str> {
    let is_rule = |line: &str| line.starts_with("---") && line.ends_with("---");
    let mut lines = text.lines().map(str::trim);
    std::iter::from_fn(move || {
        lines.find(|line| is_rule(line) && line.contains("BEGIN"))?;
        lines.find(|line| !line.is_empty()).filter(|line| !is_rule(line))
    })
}

fn servers(urls: &str) -> Result<Vec<ServerAddr>, Error> {
    let mut servers = Vec::new();
    for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        let wrong = |what: String| {
            let message = format!("'{}': {what}; write for instance nats://127.0.0.1:4222", mask_url(url));
            Error::Setting { key: "url", message }
        };
        let server: ServerAddr = url.parse().map_err(|e: std::io::Error| wrong(e.to_string()))?;
        if server.is_websocket() {
            return Err(wrong("WebSocket is not spoken here".into()));
        }
        if server.host().is_empty() {
            return Err(wrong("there is no host".into()));
        }
        servers.push(server);
    }
    if servers.is_empty() {
        let message = "there is no server; write for instance nats://127.0.0.1:4222".to_owned();
        return Err(Error::Setting { key: "url", message });
    }
    Ok(servers)
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

    fn config(url: &str) -> config::Nats {
        config::Nats { url: url.to_owned(), ..config::Nats::default() }
    }

    async fn refused(config: &config::Nats) -> String {
        match prepare(config).await {
            Ok(_) => panic!("{config:?} was taken"),
            Err(e) => e.to_string(),
        }
    }

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

    #[test]
    fn several_servers_and_addresses_of_both_kinds_are_taken() {
        let read =
            |urls| servers(urls).unwrap().iter().map(|s| format!("{} {}", s.host(), s.port())).collect::<Vec<_>>();
        assert_eq!(read("nats://[::1]:4223, b:1,tls://c,"), ["::1 4223", "b 1", "c 4222"]);
        for wrong in ["", " , ", "ws://h", "nats://:4222", "http://h"] {
            let error = servers(wrong).unwrap_err().to_string();
            assert!(error.contains("nats://127.0.0.1:4222"), "{wrong}: {error}");
        }
    }

    #[test]
    fn blocks_of_a_credentials_file_are_read_in_their_order() {
        let text = "-----BEGIN NATS USER JWT-----\r\none\r\n------END NATS USER JWT------\n\n****\nwords\n\n\
                    -----BEGIN USER NKEY SEED-----\ntwo\n------END USER NKEY SEED------\n";
        assert_eq!(armoured(text).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(armoured("-----BEGIN X-----\n------END X------\n").count(), 0);
    }

    #[tokio::test]
    async fn what_can_not_be_a_login_is_refused_with_the_key_and_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let password = file("password", "canary\n");
        for (config, expected) in [
            (config("nats://a:1@h,nats://b:canary@h"), "nats.url"),
            (config::Nats { password_file: password.clone(), ..config("nats://h") }, "nats.password_file"),
            (config::Nats { password_file: password.clone(), ..config("nats://a:b@h") }, "nats.password_file"),
            (config::Nats { token_file: file("empty", "\n"), ..config("nats://h") }, "empty"),
            (config::Nats { token_file: Some(folder.path().join("none")), ..config("nats://h") }, "nats.token_file"),
            (config::Nats { creds: password.clone(), ..config("nats://h") }, "nats.creds"),
            (config::Nats { tls_ca: password.clone(), ..config("nats://h") }, "nats.tls_ca"),
        ] {
            let error = refused(&config).await;
            assert!(error.contains(expected) && !error.contains("canary"), "{expected}: {error}");
        }
    }
}
