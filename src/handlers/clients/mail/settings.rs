//! `smtp.url` and what goes with it, taken apart and checked. Reads no network.

use std::{path::PathBuf, sync::Arc};

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};
use url::{Host, Url};

use crate::config::Smtp;

/// Where mail goes, how the way there is protected, and who we say we are.
pub(super) struct Settings {
    pub host: String,
    pub port: u16,
    pub security: Security,
    pub login: Option<Login>,
    /// What EHLO says; `None`: the host's full name or the address of the connection.
    pub hello: Option<String>,
}

pub(super) enum Security {
    None,
    /// Plain at first, then TLS or nothing.
    StartTls(Tls),
    /// TLS from the first byte.
    Tls(Tls),
}

/// How to begin TLS with this server.
#[derive(Clone)]
pub(super) struct Tls {
    pub connector: TlsConnector,
    pub name: ServerName<'static>,
}

/// Who logs in.
pub(super) struct Login {
    pub user: String,
    pub secret: Secret,
}

pub(super) enum Secret {
    Password(SecretString),
    /// An OAuth 2.0 access token for XOAUTH2, read at each connection, since it is renewed from outside.
    TokenFile(PathBuf),
}

/// Why the settings can't be used. It never repeats the URL, which holds a password.
#[derive(Debug, thiserror::Error)]
#[error("smtp.{0}")]
pub struct BadSettings(pub String);

impl Settings {
    /// `url` is `smtp.url`, the rest is taken from `config`.
    pub fn read(url: &str, config: &Smtp) -> Result<Self, BadSettings> {
        let bad = |message: &str| BadSettings(format!("url {message}"));
        let forms = "must be smtp://host:25, smtp://user:password@host:587?tls=required or smtps://host:465";
        let url = Url::parse(url).map_err(|_| bad(forms))?;
        // `smtp` is no web scheme, so the parser leaves the host as it is written.
        let host = match Host::parse(url.host_str().unwrap_or_default()) {
            Ok(Host::Domain(name)) => name,
            Ok(Host::Ipv4(ip)) => ip.to_string(),
            Ok(Host::Ipv6(ip)) => ip.to_string(),
            Err(_) => return Err(bad(forms)),
        };
        let tls = url.query_pairs().find(|(key, _)| key == "tls").map(|(_, value)| value.into_owned());
        let (security, port) = match (url.scheme(), tls.as_deref()) {
            ("smtp", None | Some("none")) => (Security::None, 25),
            ("smtp", Some("required")) => (Security::StartTls(Tls::to(&host)?), 587),
            ("smtps", _) => (Security::Tls(Tls::to(&host)?), 465),
            // "If the server offers it" protects from nobody: who can listen can also remove the offer.
            ("smtp", Some(_)) => return Err(bad("knows only tls=required and tls=none")),
            _ => return Err(bad(forms)),
        };
        let login = login(&url, config)?;
        if login.is_some() && matches!(security, Security::None) {
            tracing::warn!("smtp.url sends a password without TLS; add ?tls=required or use smtps://");
        }
        if let Some(hello) = &config.hello
            && !is_hello(hello)
        {
            return Err(BadSettings("hello must be a host name or an address in brackets, [192.0.2.1]".into()));
        }
        Ok(Self { port: url.port().unwrap_or(port), host, security, login, hello: config.hello.clone() })
    }
}

fn login(url: &Url, config: &Smtp) -> Result<Option<Login>, BadSettings> {
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
        decoded.map_err(|_| BadSettings("url holds a user name or password that is not UTF-8".into()))
    };
    let user = decode(url.username())?;
    let secret = match (url.password(), &config.token_file) {
        (Some(_), Some(_)) => {
            return Err(BadSettings("token_file replaces the password: take the password out of smtp.url".into()));
        }
        (Some(password), None) => Secret::Password(decode(password)?.into()),
        (None, Some(file)) => Secret::TokenFile(file.clone()),
        (None, None) if user.is_empty() => return Ok(None),
        (None, None) => return Err(BadSettings("url has a user name but no password".into())),
    };
    if user.is_empty() {
        return Err(BadSettings("url needs a user name for the login: smtps://user@host:465".into()));
    }
    Ok(Some(Login { user, secret }))
}

/// A name or an address literal that ends no command early. Source: RFC 5321, 4.1.3.
fn is_hello(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']');
    (1..=255).contains(&text.len()) && text.chars().all(allowed)
}

impl Tls {
    fn to(host: &str) -> Result<Self, BadSettings> {
        let bad = |message: &str| BadSettings(format!("url asks for TLS, which can't be set up here: {message}"));
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!(
                "this machine has no trusted certificates, so no mail server can prove itself: install ca-certificates or set SSL_CERT_FILE"
            );
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| bad("the host has no name to check"))?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(url: &str, config: Smtp) -> Result<Settings, BadSettings> {
        super::super::super::install_crypto();
        Settings::read(url, &config)
    }

    fn parsed(url: &str) -> Settings {
        read(url, Smtp::default()).unwrap()
    }

    #[test]
    fn the_three_forms_are_understood() {
        let plain = parsed("smtp://mail.example");
        assert!(matches!(plain.security, Security::None) && plain.port == 25 && plain.login.is_none());
        let starttls = parsed("smtp://ann%40example.org:p%25w@mail.example?tls=required");
        assert!(matches!(starttls.security, Security::StartTls(_)) && starttls.port == 587);
        let Some(Login { user, secret: Secret::Password(password) }) = starttls.login else { panic!() };
        assert_eq!((user.as_str(), password.expose_secret()), ("ann@example.org", "p%w"));
        let wrapped = parsed("smtps://mail.example:10465");
        assert!(matches!(wrapped.security, Security::Tls(_)) && wrapped.port == 10465);
        assert_eq!(parsed("smtp://[::1]:2525").host, "::1");
    }

    #[test]
    fn bad_settings_are_refused_without_showing_the_password() {
        for url in [
            "",
            "mail.example",
            "http://mail.example",
            "smtp://",
            "smtp://user:hunter2@mail.example?tls=maybe",
            "smtp://user@mail.example",
            "smtp://:hunter2@mail.example",
            "smtp://user:hunter2%ff@mail.example",
            "smtp://user:hunter2@mail example",
        ] {
            let refused = read(url, Smtp::default()).err().unwrap_or_else(|| panic!("{url}")).to_string();
            assert!(refused.starts_with("smtp.url ") && !refused.contains("hunter2"), "{refused}");
        }
        let token = || Smtp { token_file: Some("token".into()), ..Smtp::default() };
        assert!(read("smtp://user:hunter2@mail.example", token()).is_err());
        assert!(read("smtp://mail.example", token()).is_err());
        assert!(read("smtp://user@mail.example", token()).is_ok());
        for hello in ["", "a b", "mail\r\nRSET", "mail.example>"] {
            assert!(read("smtp://mail.example", Smtp { hello: Some(hello.into()), ..Smtp::default() }).is_err());
        }
    }
}
