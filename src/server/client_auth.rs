//! The client certificate that a connection was accepted with, so that a changed `client_ca` can close what it no longer
//! covers.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;

/// A client's certificate and those that lead from it to an authority.
pub(super) type CertificateChain = Arc<[CertificateDer<'static>]>;

/// What a connection's client has shown.
#[derive(Debug, Default)]
pub(super) struct ClientCertificate(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// The handshake is not over: it is judged when it is.
    #[default]
    HandshakePending,
    Absent,
    Presented(CertificateChain),
}

impl ClientCertificate {
    /// Ends the handshake. A lock orders this before or after [`is_covered`](Self::is_covered): either that sees the chain, or
    /// what it judges by is seen here afterwards.
    pub(super) fn complete_handshake(&self, chain: Option<CertificateChain>) {
        *self.lock() = chain.map_or(State::Absent, State::Presented);
    }

    /// Whether `accepts` accepts what was shown, as far as that is known.
    pub(super) fn is_accepted_by(
        &self,
        accepts: impl FnOnce(Option<&[CertificateDer<'static>]>) -> bool,
    ) -> bool {
        match &*self.lock() {
            State::HandshakePending => true,
            State::Absent => accepts(None),
            State::Presented(chain) => accepts(Some(chain)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
