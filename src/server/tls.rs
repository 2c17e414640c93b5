//! `server.tls`, made ready: certificate, key, and whose certificates clients must show.

use std::{path::Path, path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::config::ServerTls;

/// Why TLS towards clients cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("server.tls: {path}: {what}", path = .path.display())]
pub struct TlsError {
    path: PathBuf,
    what: String,
}

/// Reads the files and builds what the handshake needs.
pub fn server_config(tls: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    let wrong = |path: &Path, what: String| TlsError { path: path.to_owned(), what };
    let chain = certificates(&tls.cert)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|_| wrong(&tls.key, "holds no private key; it wants PEM with BEGIN PRIVATE KEY".into()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&tls.cert, error.to_string()))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| wrong(path, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| wrong(path, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong(&tls.cert, "does not go with the key in server.tls.key".into())
        }
        error => {
            wrong(&tls.cert, format!("cannot be served: {error}; it wants an X.509 version 3 certificate"))
        }
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |what: String| TlsError { path: path.to_owned(), what };
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong("holds no certificate; it wants PEM with BEGIN CERTIFICATE".into()));
    }
    Ok(found)
}
