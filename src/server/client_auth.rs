//! Client certificate of a connection, kept so that a changed `client_ca` can close connections it no longer covers.

use std::sync::Arc;

use parking_lot::Mutex;

use rustls::pki_types::CertificateDer;

/// A client's certificate, followed by the intermediates that lead to an authority.
pub(super) type CertificateChain = Arc<[CertificateDer<'static>]>;

/// Certificate state of one connection.
#[derive(Debug, Default)]
pub(super) struct ClientCertificate(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// The handshake is running; the certificate is checked when it completes.
    #[default]
    HandshakePending,
    Absent,
    Presented(CertificateChain),
}

impl ClientCertificate {
    /// Stores the result of the handshake.
    ///
    /// The TLS settings may be replaced during the handshake: `Server::replace_tls` stores the new ones, then calls
    /// [`is_accepted_by`](Self::is_accepted_by). Because of the lock, either that call sees this chain, or
    /// `Server::admit_client`, which calls this function, sees the new settings when it loads them next. So no
    /// connection escapes the check.
    pub(super) fn complete_handshake(&self, chain: Option<CertificateChain>) {
        *self.lock() = chain.map_or(State::Absent, State::Presented);
    }

    /// Whether `accepts` accepts the chain; true while the handshake is running.
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

    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }
}
