//! Whether the files for TLS can be used, looked at once at the start: later the client reads them at each connect, and
//! would only say that it has no connection.

use std::path::Path;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::Error;
use crate::config;

/// # Errors
/// A file that can't be read, holds nothing of its kind, or does not go with the other one.
pub(super) fn check(config: &config::Nats) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.tls_ca {
        for certificate in certificates("tls_ca", path)? {
            roots.add(certificate).map_err(|e| unusable("tls_ca", path, &e))?;
        }
    }
    let (cert, key) = match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => return Ok(()),
        (Some(_), None) => return Err(alone("tls_cert", "tls_key")),
        (None, Some(_)) => return Err(alone("tls_key", "tls_cert")),
    };
    let certificates = certificates("tls_cert", cert)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable("tls_key", key, &e))?;
    let provider = rustls::crypto::ring::default_provider().into();
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| unusable("tls_cert", cert, &e))?.with_root_certificates(roots);
    builder.with_client_auth_cert(certificates, secret).map_err(|e| unusable("tls_key", key, &e))?;
    Ok(())
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|e| unusable(key, path, &e))?;
    if found.is_empty() { Err(unusable(key, path, &"there is no certificate in it (PEM)")) } else { Ok(found) }
}

fn unusable(key: &'static str, path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Setting { key, message: format!("{}: {why}", path.display()) }
}

fn alone(key: &'static str, missing: &str) -> Error {
    Error::Setting { key, message: format!("nats.{missing} is missing; they go together") }
}
