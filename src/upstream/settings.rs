//! The `[upstream]` section as used: trusted roots loaded, names parsed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use super::ca_file_verifier::CaFileVerifier;
use crate::config;

/// Why the upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamSetupError {
    /// `ca_file` cannot be used.
    #[error("upstream.ca_file: {path}: {message}", path = .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The host is not a valid TLS server name.
    #[error("upstream.url: {0:?} is not a valid TLS server name")]
    ServerName(String),
    /// rustls rejected the provider's default versions.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Where requests go, and the timeout of each step.
pub struct Settings {
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) host: String,
    pub(super) port: u16,
    /// Value of `Host`.
    pub(super) authority: String,
    pub(super) via: Option<config::EgressProxy>,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) body_timeout: Duration,
    pub(super) idle_timeout: Duration,
}

impl Settings {
    /// Builds the settings from the configuration section; reads `ca_file`. Errors: [`UpstreamSetupError`].
    pub fn new(upstream: &config::UpstreamConfig) -> Result<Self, UpstreamSetupError> {
        let tls = match upstream.tls {
            false => None,
            true => {
                let host = upstream.host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(host)
                    .map_err(|_| UpstreamSetupError::ServerName(upstream.host.clone()))?;
                Some((Arc::new(tls_config(upstream.ca_file.as_deref())?), name))
            }
        };
        Ok(Self {
            tls,
            host: upstream.host.clone(),
            port: upstream.port,
            authority: upstream.authority.clone(),
            via: upstream.via.clone(),
            connect_timeout: upstream.connect_timeout,
            response_timeout: upstream.response_timeout,
            body_timeout: upstream.body_timeout,
            idle_timeout: upstream.idle_timeout,
        })
    }

    /// Host and port of the TCP connection: the egress proxy's if there is one.
    pub(super) fn dial_address(&self) -> (&str, u16) {
        self.via.as_ref().map_or((&self.host, self.port), |via| (&via.host, via.port))
    }
}

fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig, UpstreamSetupError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let mut config = match ca_file {
        None => {
            let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Some(path) => {
            let verifier = Arc::new(ca_file_verifier(path, provider)?);
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Reads the certificates of `ca_file`.
fn ca_file_verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<CaFileVerifier, UpstreamSetupError> {
    let ca_file_error = |message: String| UpstreamSetupError::CaFile { path: path.to_owned(), message };
    let (mut roots, mut listed_certificates) = (RootCertStore::empty(), Vec::new());
    for certificate in
        CertificateDer::pem_file_iter(path).map_err(|error| ca_file_error(error.to_string()))?
    {
        let certificate = certificate.map_err(|error| ca_file_error(error.to_string()))?;
        roots.add(certificate.clone()).map_err(|error| ca_file_error(error.to_string()))?;
        listed_certificates.push(certificate);
    }
    if roots.is_empty() {
        return Err(ca_file_error("no certificate found, expected PEM (BEGIN CERTIFICATE)".into()));
    }
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(CaFileVerifier {
        webpki_verifier: authorities.map_err(|error| ca_file_error(error.to_string()))?,
        listed_certificates,
    })
}
