//! `smtp.url`, taken apart.

use lettre::transport::smtp::{authentication::Credentials, client::TlsParameters};
use url::{Host, Url};

/// Where mail goes and how the way there is protected.
pub(super) struct Settings {
    pub host: String,
    pub port: u16,
    pub security: Security,
    pub credentials: Option<Credentials>,
}

pub(super) enum Security {
    None,
    /// Plain at first, then TLS or nothing.
    StartTls(TlsParameters),
    /// TLS from the first byte.
    Tls(TlsParameters),
}

/// Why an URL can't be used. It never repeats the URL, which holds a password.
#[derive(Debug, thiserror::Error)]
#[error("smtp.url {0}")]
pub struct BadUrl(String);

impl Settings {
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let bad = |message: &str| BadUrl(message.into());
        let forms = "must be smtp://host:25, smtp://user:password@host:587?tls=required or smtps://host:465";
        let url = Url::parse(text).map_err(|_| bad(forms))?;
        // `smtp` is no web scheme, so the parser leaves the host as it is written.
        let host = match Host::parse(url.host_str().unwrap_or_default()) {
            Ok(Host::Domain(name)) => name,
            Ok(Host::Ipv4(ip)) => ip.to_string(),
            Ok(Host::Ipv6(ip)) => ip.to_string(),
            Err(_) => return Err(bad(forms)),
        };
        let tls = url.query_pairs().find(|(key, _)| key == "tls").map(|(_, value)| value.into_owned());
        let parameters = || {
            TlsParameters::new(host.clone()).map_err(|e| bad(&format!("asks for TLS, which can't be set up here: {e}")))
        };
        let (security, port) = match (url.scheme(), tls.as_deref()) {
            ("smtp", None | Some("none")) => (Security::None, 25),
            ("smtp", Some("required")) => (Security::StartTls(parameters()?), 587),
            ("smtps", _) => (Security::Tls(parameters()?), 465),
            // "If the server offers it" protects from nobody: who can listen can also remove the offer.
            ("smtp", Some(_)) => return Err(bad("knows only tls=required and tls=none")),
            _ => return Err(bad(forms)),
        };
        let credentials = match (url.username(), url.password()) {
            ("", _) => None,
            (_, None) => return Err(bad("has a user name but no password")),
            (user, Some(password)) => Some(Credentials::new(decode(user)?, decode(password)?)),
        };
        if credentials.is_some() && matches!(security, Security::None) {
            tracing::warn!("smtp.url sends a password without TLS; add ?tls=required or use smtps://");
        }
        Ok(Self { port: url.port().unwrap_or(port), host, security, credentials })
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, BadUrl> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(BadUrl("has a % that is not followed by two hexadecimal digits; write %25".into())),
        }
    }
    String::from_utf8(bytes).map_err(|_| BadUrl("holds a user name or password that is not UTF-8".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Settings {
        super::super::super::install_crypto();
        Settings::parse(url).unwrap()
    }

    #[test]
    fn the_three_forms_are_understood() {
        let plain = parsed("smtp://mail.example");
        assert!(matches!(plain.security, Security::None) && plain.port == 25 && plain.credentials.is_none());
        let starttls = parsed("smtp://ann%40example.org:p%25w@mail.example?tls=required");
        assert!(matches!(starttls.security, Security::StartTls(_)) && starttls.port == 587);
        assert_eq!(starttls.credentials, Some(Credentials::new("ann@example.org".into(), "p%w".into())));
        let wrapped = parsed("smtps://mail.example:10465");
        assert!(matches!(wrapped.security, Security::Tls(_)) && wrapped.port == 10465);
        assert_eq!(parsed("smtp://[::1]:2525").host, "::1");
    }

    #[test]
    fn a_bad_url_is_refused_without_showing_its_password() {
        for url in [
            "",
            "mail.example",
            "http://mail.example",
            "smtp://",
            "smtp://user:hunter2@mail.example?tls=maybe",
            "smtp://user@mail.example",
            "smtp://user:hunter2%@mail.example",
            "smtp://user:hunter2@mail example",
        ] {
            let refused = Settings::parse(url).err().unwrap().to_string();
            assert!(refused.starts_with("smtp.url ") && !refused.contains("hunter2"), "{refused}");
        }
    }
}
