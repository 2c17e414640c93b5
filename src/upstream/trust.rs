//! The TLS settings of every client of the process but the Redis client, which takes only certificates and makes its own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use zeroize::Zeroizing;

use super::ca_file_verifier::CaFileVerifier;
use crate::{config::decode_utf8, display_text, format_text, text, text::Text};

/// Why an upstream, or another peer, cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamSetupError {
    /// `ca_file` cannot be used.
    CaFile {
        /// The key or variable that names the file.
        key: String,
        /// The file.
        path: PathBuf,
        /// The cause.
        message: Text,
    },
    /// The host is not a valid TLS server name.
    ServerName {
        /// The table in the file.
        section: String,
        /// The host.
        host: String,
    },
    /// rustls rejected the provider's default versions.
    Tls(#[from] rustls::Error),
}

display_text!(UpstreamSetupError);

impl UpstreamSetupError {
    /// The key of the file, and what is wrong with it.
    pub fn text(&self) -> Text {
        match self {
            Self::CaFile { key, path, message } => {
                format_text!("{key}: {}: {}", "{key}：{}：{}", path.display(), message)
            }
            Self::ServerName { section, host } => format_text!(
                "{section}.url: {host:?} is not a valid TLS server name",
                "{section}.url：{host:?} 不是有效的 TLS 服务器名"
            ),
            Self::Tls(error) => format_text!("TLS cannot be set up: {error}", "无法设置 TLS：{error}"),
        }
    }
}

/// The trusted certificates, and the TLS settings made from them.
pub(super) struct Trust {
    /// Those of `ca_file`; empty with the built-in ones.
    pub(super) listed_certificates: Vec<CertificateDer<'static>>,
    pub(super) client_config: Arc<ClientConfig>,
}

impl Trust {
    /// Trusts the certificates of `ca_file`, which `key` names, or else the built-in authorities.
    pub(super) fn new(ca_file: Option<&Path>, key: &str) -> Result<Self, UpstreamSetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let (builder, listed_certificates) = match ca_file {
            None => {
                let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
                (builder.with_root_certificates(roots), Vec::new())
            }
            Some(path) => {
                let verifier = read_certificates(path)
                    .and_then(|certificates| CaFileVerifier::new(certificates, provider))
                    .map_err(|message| {
                        let (key, path) = (key.to_owned(), path.to_owned());
                        UpstreamSetupError::CaFile { key, path, message }
                    })?;
                let listed_certificates = verifier.listed_certificates.clone();
                let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
                (builder, listed_certificates)
            }
        };
        Ok(Self { listed_certificates, client_config: Arc::new(builder.with_no_client_auth()) })
    }
}

/// TLS settings of a client that trusts the certificates of `ca_file`, which `key` names, or else the built-in
/// authorities. Errors: [`UpstreamSetupError`].
pub fn client_tls(ca_file: Option<&Path>, key: &str) -> Result<Arc<ClientConfig>, UpstreamSetupError> {
    Trust::new(ca_file, key).map(|trust| trust.client_config)
}

/// The text of a PEM file, which may be a private key. The error does not name the file.
pub fn read_pem(path: &Path) -> Result<Zeroizing<String>, Text> {
    let bytes = fs::read(path).map(Zeroizing::new);
    let bytes = bytes.map_err(|error| format_text!("cannot read: {}", "无法读取：{}", error))?;
    let text = decode_utf8(&bytes)
        .map_err(|error| format_text!("line {}: {}", "第 {} 行：{}", error.line, error.message()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The certificates of a PEM file, one at least. The error does not name the file.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Text> {
    // Not text: comments between the certificates may have any encoding.
    let bytes = fs::read(path).map_err(|error| format_text!("cannot read: {}", "无法读取：{}", error))?;
    let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| format_text!("{error}", "不是有效的 PEM：{error}"))?;
    match certificates.is_empty() {
        true => Err(text!(
            "no certificate found, expected PEM (BEGIN CERTIFICATE)",
            "没有找到证书，应为 PEM 格式（BEGIN CERTIFICATE）"
        )),
        false => Ok(certificates),
    }
}
