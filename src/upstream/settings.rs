//! `[upstream]`, made ready: trusted roots loaded, names parsed.

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
    /// The file of trusted authorities cannot be used.
    #[error("upstream.ca_file: {path}: {what}", path = .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The host is no name that a certificate can carry.
    #[error("upstream.url: {0:?} is not a host name that TLS can check")]
    ServerName(String),
    /// The cryptographic library refused its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Where requests go, and how long each step may take.
pub struct Settings {
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) host: String,
    pub(super) port: u16,
    /// As it goes into `Host`.
    pub(super) authority: String,
    pub(super) via: Option<config::EgressProxy>,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) body_timeout: Duration,
    pub(super) idle_timeout: Duration,
}

impl Settings {
    /// Makes the configuration's section ready for use; reads `ca_file`.
    pub fn new(upstream: &config::UpstreamConfig) -> Result<Self, UpstreamSetupError> {
        let tls = match upstream.tls {
            false => None,
            true => {
                let bare = upstream.host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(bare)
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

    /// The host and port that TCP connects to.
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
            let trust = Arc::new(ca_file_verifier(path, provider)?);
            builder.dangerous().with_custom_certificate_verifier(trust).with_no_client_auth()
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
    let wrong = |what: String| UpstreamSetupError::CaFile { path: path.to_owned(), what };
    let (mut roots, mut listed) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate.clone()).map_err(|error| wrong(error.to_string()))?;
        listed.push(certificate);
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate; it wants PEM with BEGIN CERTIFICATE".into()));
    }
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(CaFileVerifier {
        webpki_verifier: authorities.map_err(|error| wrong(error.to_string()))?,
        listed_certificates: listed,
    })
}
