//! The `[upstream]` section as used: trusted roots loaded, names parsed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, ServerName,
        pem::{self, PemObject},
    },
};

use super::{
    ca_file_verifier::CaFileVerifier, egress_proxies::EgressProxies, http1_only::Http1OnlyAddresses,
    open_connection::OpenConnections, suspects::SuspectConnections,
};
use crate::{
    config::{self, UpstreamId},
    display_text, format_text, text,
    text::{Language, Text},
};

/// Why the upstream cannot be set up.
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

/// Where requests go, and the timeout of each step.
pub struct Settings {
    pub(super) id: UpstreamId,
    pub(super) tls: Option<UpstreamTls>,
    pub(super) host: String,
    pub(super) port: u16,
    /// Value of `Host`.
    pub(super) authority: String,
    /// What stands before each path.
    pub(super) path_prefix: String,
    pub(super) egress_proxies: EgressProxies,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) body_timeout: Duration,
    pub(super) idle_timeout: Duration,
    /// Zero: no probes.
    pub(super) tcp_keepalive: Duration,
    pub(super) max_age: Duration,
    /// Told to the pools of all workers.
    pub(super) suspects: SuspectConnections,
    pub(super) http1_only: Http1OnlyAddresses,
    pub(super) open_connections: OpenConnections,
}

/// TLS towards the upstream.
pub(super) struct UpstreamTls {
    pub(super) server_name: ServerName<'static>,
    /// Replaced when `ca_file` has changed.
    pub(super) trust: ArcSwap<Trust>,
}

/// The trusted certificates, and the TLS settings made from them.
pub(super) struct Trust {
    /// Those of `ca_file`; empty with the built-in ones.
    listed_certificates: Vec<CertificateDer<'static>>,
    pub(super) client_config: Arc<ClientConfig>,
}

impl Settings {
    /// Builds the settings from the configuration section; reads `ca_file`. Errors: [`UpstreamSetupError`].
    pub fn new(id: UpstreamId, upstream: &config::UpstreamConfig) -> Result<Self, UpstreamSetupError> {
        let tls = match upstream.tls {
            false => None,
            true => {
                let host = upstream.host.trim_end_matches('.').to_owned();
                let name = ServerName::try_from(host).map_err(|_| {
                    let (section, host) = (id.section(), upstream.host.clone());
                    UpstreamSetupError::ServerName { section, host }
                })?;
                let trust = ArcSwap::from_pointee(Trust::new(upstream.ca_file.as_deref(), &id)?);
                Some(UpstreamTls { server_name: name, trust })
            }
        };
        Ok(Self {
            id,
            tls,
            host: upstream.host.clone(),
            port: upstream.port,
            authority: upstream.authority.clone(),
            path_prefix: upstream.path_prefix.clone(),
            egress_proxies: EgressProxies::new(&upstream.via),
            connect_timeout: upstream.connect_timeout,
            response_timeout: upstream.response_timeout,
            body_timeout: upstream.body_timeout,
            idle_timeout: upstream.idle_timeout,
            tcp_keepalive: upstream.tcp_keepalive,
            max_age: upstream.max_age,
            suspects: SuspectConnections::default(),
            http1_only: Http1OnlyAddresses::default(),
            open_connections: OpenConnections::default(),
        })
    }

    /// Takes the trusted certificates from settings that were read again. Returns whether they have changed; then idle
    /// connections are closed, and those with requests after these.
    pub fn replace_trust(&self, loaded: &Self) -> bool {
        let (Some(current), Some(loaded)) = (&self.tls, &loaded.tls) else { return false };
        let trust = loaded.trust.load_full();
        if current.trust.load().listed_certificates == trust.listed_certificates {
            return false;
        }
        current.trust.store(trust);
        self.suspects.retire_all();
        true
    }

    /// Which upstream it is.
    pub fn id(&self) -> &UpstreamId {
        &self.id
    }

    /// The number of open connections, of all workers.
    pub fn open_connections(&self) -> usize {
        self.open_connections.count()
    }

    /// The authority of each egress proxy, and whether the last connection through it succeeded.
    pub fn egress_proxies(&self) -> impl Iterator<Item = (String, bool)> {
        self.egress_proxies.iter().map(|(proxy, is_up)| (proxy.authority(), is_up))
    }

    /// The longest that connecting may take, over one route after the other.
    pub fn max_connect_time(&self) -> Duration {
        let routes = u32::try_from(self.egress_proxies.len()).unwrap_or(u32::MAX).max(1);
        self.connect_timeout.saturating_mul(routes)
    }

    /// Longest time to a response's head.
    pub fn response_timeout(&self) -> Duration {
        self.response_timeout
    }
}

/// TLS settings of a client that trusts the built-in authorities. Errors: rustls rejects the provider's versions.
pub fn built_in_trust() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// TLS settings of a client that trusts the certificates of a file, which `key` names. Errors:
/// [`UpstreamSetupError::CaFile`].
pub fn ca_file_trust(path: &Path, key: &str) -> Result<Arc<ClientConfig>, UpstreamSetupError> {
    Trust::of_file(path, key).map(|trust| trust.client_config)
}

impl Trust {
    fn new(ca_file: Option<&Path>, id: &UpstreamId) -> Result<Self, UpstreamSetupError> {
        let Some(path) = ca_file else {
            let client_config = Arc::new(built_in_trust()?);
            return Ok(Self { listed_certificates: Vec::new(), client_config });
        };
        Self::of_file(path, &format!("{}.ca_file", id.section()))
    }

    fn of_file(path: &Path, key: &str) -> Result<Self, UpstreamSetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = ca_file_verifier(path, provider.clone(), key)?;
        let listed_certificates = verifier.listed_certificates.clone();
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        Ok(Self { listed_certificates, client_config: Arc::new(builder.with_no_client_auth()) })
    }
}

/// Reads the certificates of `ca_file`.
fn ca_file_verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
    key: &str,
) -> Result<CaFileVerifier, UpstreamSetupError> {
    let ca_file_error =
        |message: Text| UpstreamSetupError::CaFile { key: key.to_owned(), path: path.to_owned(), message };
    let (mut roots, mut listed_certificates) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| ca_file_error(pem_text(&error)))? {
        let certificate = certificate.map_err(|error| ca_file_error(pem_text(&error)))?;
        roots
            .add(certificate.clone())
            .map_err(|error| ca_file_error(format_text!("{error}", "证书不可用：{error}")))?;
        listed_certificates.push(certificate);
    }
    if roots.is_empty() {
        return Err(ca_file_error(text!(
            "no certificate found, expected PEM (BEGIN CERTIFICATE)",
            "没有找到证书，应为 PEM 格式（BEGIN CERTIFICATE）"
        )));
    }
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(CaFileVerifier {
        webpki_verifier: authorities
            .map_err(|error| ca_file_error(format_text!("{error}", "证书不可用：{error}")))?,
        listed_certificates,
    })
}

fn pem_text(error: &pem::Error) -> Text {
    match error {
        pem::Error::Io(cause) => {
            let chinese = format_text!("{}", "无法读取：{}", cause);
            Text::formatted(error.to_string(), chinese.get(Language::Chinese).to_owned())
        }
        _ => format_text!("{error}", "不是有效的 PEM：{error}"),
    }
}
