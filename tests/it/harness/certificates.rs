//! A certificate authority for tests, and a TLS client.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A certificate authority; its own certificate is in a file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    dir: TempDir,
}

/// A certificate and its key.
pub struct Identity {
    pub pem: String,
    pub key_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        // A unique name: otherwise a certificate of another authority would fail by its signature, not as an unknown issuer.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("authority {:02x?}", &key.public_key_raw()[1..9]));
        let certificate = params.self_signed(&key).expect("a certificate");
        let dir = TempDir::new().expect("a temporary directory");
        fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("a file");
        Self { root: certificate.der().clone(), issuer: Issuer::new(params, key), dir }
    }

    /// The `tls` line of `[server]` for this host.
    pub fn tls_config_line(&self, host: &str) -> String {
        let [cert, key] = self.server_files(host);
        format!("tls = {{ cert = \"{cert}\", key = \"{key}\" }}")
    }

    /// The paths of a certificate for this host and of its key.
    pub fn server_files(&self, host: &str) -> [String; 2] {
        self.issue_server(host).write_files(self.dir.path(), "server")
    }

    /// The `ca_file` line of a client that trusts this authority.
    pub fn ca_config_line(&self) -> String {
        format!("ca_file = \"{}\"", self.ca_file().display())
    }

    /// The path of its own certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A server certificate for this name or address.
    pub fn issue_server(&self, name: &str) -> Identity {
        self.issue(name, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// A server certificate that names nothing but in its subject.
    pub fn issue_without_alt_name(&self) -> Identity {
        self.issue("localhost", |params| params.subject_alt_names.clear())
    }

    /// An expired server certificate.
    pub fn issue_expired(&self, name: &str) -> Identity {
        self.issue(name, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        })
    }

    /// A self-signed certificate, as `openssl req -x509` creates, and an authority whose `ca_file` contains it.
    pub fn self_signed(name: &str, customize: impl FnOnce(&mut CertificateParams)) -> (Self, Identity) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        customize(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let identity = Identity {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        };
        let dir = TempDir::new().expect("a temporary directory");
        fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("a file");
        (Self { root: certificate.der().clone(), issuer: Issuer::new(params, key), dir }, identity)
    }

    /// A certificate for a client.
    pub fn issue_client(&self, name: &str) -> Identity {
        self.issue(name, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(&self, name: &str, customize: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        customize(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        }
    }

    /// Connects to a TLS server as a client that trusts only this authority, with these ALPN protocols.
    pub async fn connect_tls(
        &self,
        address: SocketAddr,
        alpn: &[&str],
        identity: Option<&Identity>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from(identity.key.clone_key());
                builder.with_client_auth_cert(identity.chain.clone(), key).expect("an identity")
            }
        };
        config.alpn_protocols = protocols(alpn);
        let stream = TcpStream::connect(address).await?;
        let name = "localhost".try_into().expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

impl Identity {
    /// Writes the certificate and its key to `{name}.pem` and `{name}.key`; returns the paths.
    pub fn write_files(&self, dir: &Path, name: &str) -> [String; 2] {
        [("pem", &self.pem), ("key", &self.key_pem)].map(|(extension, text)| {
            let path = dir.join(format!("{name}.{extension}"));
            fs::write(&path, text).expect("a file");
            path.display().to_string()
        })
    }

    /// The configuration of a TLS server with this certificate.
    pub fn server_config(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), PrivateKeyDer::from(self.key.clone_key()))
            .expect("an identity");
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}
