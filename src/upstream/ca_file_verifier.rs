//! Certificate verifier for an upstream with `ca_file`.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::{format_text, text::Text};

/// Accepts chains to a listed authority, and a listed certificate itself: `openssl req -x509` makes one certificate
/// that is both authority and server, which webpki rejects as an end entity.
#[derive(Debug)]
pub(super) struct CaFileVerifier {
    webpki_verifier: Arc<WebPkiServerVerifier>,
    pub(super) listed_certificates: Vec<CertificateDer<'static>>,
}

impl CaFileVerifier {
    /// Accepts these certificates and those signed by them.
    pub(super) fn new(
        listed_certificates: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Text> {
        let unusable = |error: &dyn std::fmt::Display| format_text!("{error}", "证书不可用：{error}");
        let mut roots = RootCertStore::empty();
        for certificate in &listed_certificates {
            roots.add(certificate.clone()).map_err(|error| unusable(&error))?;
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let webpki_verifier = authorities.map_err(|error| unusable(&error))?;
        Ok(Self { webpki_verifier, listed_certificates })
    }
}

impl ServerCertVerifier for CaFileVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let result = self.webpki_verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match result {
            // webpki checks the validity period before it returns this error.
            Err(Error::InvalidCertificate(CertificateError::Other(other)))
                if other.to_string() == "CaUsedAsEndEntity"
                    && self.listed_certificates.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki_verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki_verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki_verifier.supported_verify_schemes()
    }
}
