//! TLS settings of the listeners (`server.tls`): certificate, key, and which client certificates are required.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, RootCertStore, ServerConfig,
    client::verify_server_name,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::certificate_expiry;
use crate::{
    config::ServerTlsConfig,
    display_text, format_text, text,
    text::Text,
    upstream::{read_certificates, read_pem},
};

/// Error in `server.tls`, with the file that causes it.
#[derive(Debug, thiserror::Error)]
pub struct TlsError {
    path: PathBuf,
    message: Text,
}

display_text!(TlsError);

impl TlsError {
    /// The file, and what is wrong with it.
    pub fn text(&self) -> Text {
        format_text!("server.tls: {}: {}", "server.tls：{}：{}", self.path.display(), self.message)
    }
}

/// TLS towards clients: the handshake's configuration and the client certificates that are required.
#[derive(Debug)]
pub struct TlsTermination {
    pub(super) config: Arc<ServerConfig>,
    client_auth: Option<ClientAuth>,
    /// Whether the certificate names what it is for in a subjectAltName, the only place where programs look.
    has_alt_name: bool,
    /// When the first certificate of the chain expires, in seconds since 1970.
    expires_at: Option<u64>,
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

    /// When the certificate expires, in seconds since 1970.
    pub fn expires_at(&self) -> Option<u64> {
        self.expires_at
    }

    /// Why most clients will refuse the certificate.
    pub fn warning(&self) -> Option<Text> {
        (!self.has_alt_name).then_some(text!(
            "the certificate has no subjectAltName, so clients refuse it whatever its commonName; make one with \
             -addext subjectAltName=DNS:NAME",
            "证书没有 subjectAltName，无论 commonName 是什么，客户端都会拒绝；请用 -addext subjectAltName=DNS:NAME 重新生成"
        ))
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
    let tls_error = |path: &Path, message: Text| TlsError { path: path.to_owned(), message };
    let chain = read_certificates(&tls.cert).map_err(|message| tls_error(&tls.cert, message))?;
    let has_alt_name = chain.first().is_some_and(has_alt_name);
    let expires_at = chain.first().and_then(|certificate| certificate_expiry::not_after(certificate));
    let key = load_key(&tls.key).map_err(|message| tls_error(&tls.key, message))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_error(&tls.cert, unusable_certificate(&error)))?;
    let client_auth = tls.client_ca.as_deref().map(|path| load_client_auth(path, provider)).transpose()?;
    let builder = match &client_auth {
        None => builder.with_no_client_auth(),
        Some(auth) => builder.with_client_cert_verifier(auth.verifier.clone()),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => tls_error(
            &tls.cert,
            text!("certificate does not match server.tls.key", "证书与 server.tls.key 不匹配"),
        ),
        rustls::Error::General(error) => {
            tls_error(&tls.key, format_text!("unusable private key: {error}", "私钥不可用：{error}"))
        }
        error => tls_error(&tls.cert, unusable_certificate(&error)),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(TlsTermination { config: Arc::new(config), client_auth, has_alt_name, expires_at }))
}

fn unusable_certificate(error: &rustls::Error) -> Text {
    let error = error.to_string();
    match error.contains("UnsupportedCertVersion") {
        true => text!(
            "the certificate is X.509 version 1; make one of version 3 with a subjectAltName",
            "证书是 X.509 第 1 版；请生成第 3 版、带 subjectAltName 的证书"
        ),
        false => format_text!("unusable certificate: {error}", "证书不可用：{error}"),
    }
}

/// Reads the private key. The error is a message without anything of the file.
fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, Text> {
    let text = read_pem(path)?;
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| match text.contains("ENCRYPTED") {
        true => text!(
            "the private key is protected by a passphrase; remove it with: openssl pkey -in KEY -out NEW_KEY",
            "私钥有密码保护；请去掉：openssl pkey -in KEY -out NEW_KEY"
        ),
        false => text!(
            "no private key found, expected PEM (BEGIN PRIVATE KEY)",
            "没有找到私钥，应为 PEM 格式（BEGIN PRIVATE KEY）"
        ),
    })
}

/// Whether a certificate has a subjectAltName. The names that it has are read off the error for another one.
fn has_alt_name(certificate: &CertificateDer<'_>) -> bool {
    let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return true };
    let Ok(name) = ServerName::try_from("name.invalid") else { return true };
    match verify_server_name(&parsed, &name) {
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented,
            ..
        })) => !presented.is_empty(),
        _ => true,
    }
}

fn load_client_auth(path: &Path, provider: Arc<CryptoProvider>) -> Result<ClientAuth, TlsError> {
    let tls_error = |message: Text| TlsError { path: path.to_owned(), message };
    let (roots, mut store) = (read_certificates(path).map_err(tls_error)?, RootCertStore::empty());
    for root in &roots {
        store.add(root.clone()).map_err(|error| tls_error(unusable_certificate(&error)))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
        .build()
        .map_err(|error| tls_error(format_text!("{error}", "不可用：{error}")))?;
    Ok(ClientAuth { roots, verifier })
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
        let encrypted = invalid.replace("PRIVATE", "ENCRYPTED PRIVATE");
        fs::write(path("encrypted"), encrypted).expect("a file");
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,AB\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        fs::write(path("old"), old).expect("a file");
        fs::write(path("utf-16"), b"\xFF\xFE-\0").expect("a file");
        fs::write(path("bom.key"), format!("\u{feff}{}", key.serialize_pem())).expect("a file");
        let with_bom = ServerTlsConfig { cert: path("server.pem"), key: path("bom.key"), client_ca: None };
        assert_eq!(load_termination(&with_bom).expect("a key").warning(), None);
        for (name, expected) in [
            ("missing", "missing: cannot read: No such file"),
            ("empty", "empty: no private key found"),
            ("invalid", "invalid: unusable private key: "),
            ("encrypted", "encrypted: the private key is protected by a passphrase"),
            ("old", "old: the private key is protected by a passphrase"),
            ("utf-16", "utf-16: line 1: is UTF-16, not UTF-8"),
        ] {
            let tls = ServerTlsConfig { cert: path("server.pem"), key: path(name), client_ca: None };
            let error = load_termination(&tls).map(drop).expect_err("an unusable key").to_string();
            assert!(error.contains(expected) && !error.contains("X.509"), "{error}");
        }
    }

    #[test]
    fn certificate_without_alt_name_is_warned_of() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        let key = rcgen::KeyPair::generate().expect("a key");
        fs::write(path("key"), key.serialize_pem()).expect("a file");
        for (names, expected) in [(vec![], false), (vec!["a.test"], true), (vec!["127.0.0.1"], true)] {
            let names = names.into_iter().map(str::to_owned).collect::<Vec<_>>();
            let params = rcgen::CertificateParams::new(names.clone()).expect("names");
            fs::write(path("cert"), params.self_signed(&key).expect("a certificate").pem()).expect("a file");
            let tls = ServerTlsConfig { cert: path("cert"), key: path("key"), client_ca: None };
            let termination = load_termination(&tls).expect("a usable certificate");
            assert_eq!(termination.warning().is_none(), expected, "{names:?}");
        }
    }
}
