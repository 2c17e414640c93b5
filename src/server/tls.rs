//! TLS settings of the listeners (`server.tls`): certificate, key, and which client certificates are required.

use std::{path::Path, path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, UnixTime,
        pem::{self, PemObject},
    },
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use crate::config::ServerTlsConfig;

/// Error in `server.tls`, with the file that causes it.
#[derive(Debug, thiserror::Error)]
#[error("server.tls: {path}: {message}", path = .path.display())]
pub struct TlsError {
    path: PathBuf,
    message: String,
}

/// TLS towards clients: the handshake's configuration and the client certificates that are required.
#[derive(Debug)]
pub struct TlsTermination {
    pub(super) config: Arc<ServerConfig>,
    client_auth: Option<ClientAuth>,
}

/// Client authentication by the authorities in `client_ca`.
#[derive(Debug)]
struct ClientAuth {
    roots: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl TlsTermination {
    /// Whether a client must present a certificate (`client_ca`).
    pub fn requires_certificate(&self) -> bool {
        self.client_auth.is_some()
    }
}

/// Whether two settings accept the same clients; `None` is plain text. The server's own certificate is not compared.
pub(super) fn accepts_same_clients(one: Option<&TlsTermination>, other: Option<&TlsTermination>) -> bool {
    let roots = |tls: Option<&TlsTermination>| Some(tls?.client_auth.as_ref()?.roots.clone());
    roots(one) == roots(other)
}

/// Whether these settings accept a client with this chain, or without one; `None` is plain text.
pub(super) fn accepts_client(tls: Option<&TlsTermination>, chain: Option<&[CertificateDer<'_>]>) -> bool {
    let Some(auth) = tls.and_then(|tls| tls.client_auth.as_ref()) else { return true };
    let Some((end_entity, intermediates)) = chain.and_then(|chain| chain.split_first()) else { return false };
    auth.verifier.verify_client_cert(end_entity, intermediates, UnixTime::now()).is_ok()
}

/// Reads the files and builds the handshake's configuration.
pub fn load_termination(tls: &ServerTlsConfig) -> Result<Arc<TlsTermination>, TlsError> {
    let tls_error = |path: &Path, message: String| TlsError { path: path.to_owned(), message };
    let chain = load_certificates(&tls.cert)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| {
        let message = match error {
            pem::Error::Io(error) => format!("cannot read: {error}"),
            // The text of other errors may repeat a part of the file.
            _ => "no private key found, expected PEM (BEGIN PRIVATE KEY)".into(),
        };
        tls_error(&tls.key, message)
    })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_error(&tls.cert, error.to_string()))?;
    let client_auth = tls.client_ca.as_deref().map(|path| load_client_auth(path, provider)).transpose()?;
    let builder = match &client_auth {
        None => builder.with_no_client_auth(),
        Some(auth) => builder.with_client_cert_verifier(auth.verifier.clone()),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            tls_error(&tls.cert, "certificate does not match server.tls.key".into())
        }
        rustls::Error::General(error) => tls_error(&tls.key, format!("unusable private key: {error}")),
        error => {
            let error = error.to_string();
            let is_old_version = error.contains("UnsupportedCertVersion");
            let hint = if is_old_version { ", expected X.509 version 3" } else { "" };
            tls_error(&tls.cert, format!("unusable certificate: {error}{hint}"))
        }
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(TlsTermination { config: Arc::new(config), client_auth }))
}

fn load_client_auth(path: &Path, provider: Arc<CryptoProvider>) -> Result<ClientAuth, TlsError> {
    let tls_error = |message: String| TlsError { path: path.to_owned(), message };
    let (roots, mut store) = (load_certificates(path)?, RootCertStore::empty());
    for root in &roots {
        store.add(root.clone()).map_err(|error| tls_error(error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
        .build()
        .map_err(|error| tls_error(error.to_string()))?;
    Ok(ClientAuth { roots, verifier })
}

fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let tls_error = |message: String| TlsError { path: path.to_owned(), message };
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| tls_error(error.to_string()))?;
    if certificates.is_empty() {
        return Err(tls_error("no certificate found, expected PEM (BEGIN CERTIFICATE)".into()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn unusable_key_file_is_reported_with_its_cause() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        fs::write(path("server.pem"), params.self_signed(&key).expect("a certificate").pem())
            .expect("a file");
        fs::write(path("empty"), "").expect("a file");
        let invalid = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        fs::write(path("invalid"), invalid).expect("a file");
        for (name, expected) in [
            ("missing", "missing: cannot read: No such file"),
            ("empty", "empty: no private key found"),
            ("invalid", "invalid: unusable private key: "),
        ] {
            let tls = ServerTlsConfig { cert: path("server.pem"), key: path(name), client_ca: None };
            let error = load_termination(&tls).map(drop).expect_err("an unusable key").to_string();
            assert!(error.contains(expected) && !error.contains("X.509"), "{error}");
        }
    }
}
