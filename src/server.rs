//! The way in: connections from clients, their time-outs, and an orderly end.
//!
//! [`serve`] takes what a listener accepts and hands each request to the proxy. It knows nothing of tokens or agents.

mod client_auth;
mod connection_limit;
mod http1;
mod http2;
mod listener;
mod log_throttle;
mod task_pool;
pub mod tls;
mod wrong_key_throttle;

use std::{io, net::IpAddr, pin::pin, rc::Rc, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::http1::{bench, fuzz};
use self::{
    client_auth::CertificateChain,
    connection_limit::ConnectionPermit,
    http1::Recycled,
    task_pool::{Accepted, TaskPool},
    tls::TlsTermination,
    wrong_key_throttle::WrongKeyThrottle,
};
pub use self::{
    connection_limit::{ConnectionLimiter, max_admin_connections, raise_descriptor_limit},
    listener::{BoundListener, Inherited, InheritedError, Listener},
};
use crate::{http1::io::Stream, proxy::Proxy};

/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long accepting rests when the system is out of descriptors.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long a client that has just connected has for its first request when the server stops.
const SHUTDOWN_GRACE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long, and how much, is read after the last answer from a client that was still sending.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// See [`LINGER`].
const MAX_LINGER_BYTES: u64 = 256 * 1024 * 1024;
/// How long a client may take none of what it is sent as long as no request on its connection was authorized.
const UNAUTHORIZED_WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a client that speaks HTTP/2 without TLS says first.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From a head's first byte to its last; the TLS handshake too.
    pub header: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// To take the next bytes of an answer.
    pub write: Duration,
}

impl Timeouts {
    /// How long a client may take none of what it is sent.
    fn write_timeout(&self, seat: &ConnectionPermit) -> Duration {
        if seat.is_authorized() { self.write } else { self.write.min(UNAUTHORIZED_WRITE_TIMEOUT) }
    }
}

/// What all connections of one server share.
pub struct Server {
    /// The time-outs of a connection.
    pub timeouts: Timeouts,
    /// TLS, where clients speak it; a reload puts another one here.
    tls: Arc<ArcSwapOption<TlsTermination>>,
    /// Where connections have their seats.
    pub connection_limiter: ConnectionLimiter,
    wrong_keys: WrongKeyThrottle,
    /// Turns true when no more requests are taken.
    pub stopping: watch::Receiver<bool>,
}

impl Server {
    /// A server within these bounds.
    pub fn new(
        server: &crate::config::ServerConfig,
        tls: Arc<ArcSwapOption<TlsTermination>>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let timeouts =
            Timeouts { header: server.header_timeout, idle: server.idle_timeout, write: server.body_timeout };
        Self {
            timeouts,
            tls,
            connection_limiter: ConnectionLimiter::new(connection_limit::effective_max_connections(
                server.max_connections,
            )),
            wrong_keys: WrongKeyThrottle::new(),
            stopping,
        }
    }

    /// Whether no more requests are taken. The flag turns once, and nobody has looked at it by this receiver: that it
    /// changed says all, without a lock.
    fn is_stopping(&self) -> bool {
        self.stopping.has_changed().unwrap_or(true)
    }

    /// Whether clients must show a certificate.
    pub fn requires_certificate(&self) -> bool {
        self.tls.load().as_ref().is_some_and(|tls| tls.requires_certificate())
    }

    /// Takes other settings for new connections. Those whose client they do not accept are closed: idle ones at once, others
    /// when their requests in flight are answered. Returns how many.
    pub fn replace_tls(&self, fresh: Option<Arc<TlsTermination>>) -> usize {
        let before = self.tls.swap(fresh.clone());
        match tls::accepts_same_clients(before.as_deref(), fresh.as_deref()) {
            true => 0,
            false => self.connection_limiter.revoke(|chain| tls::accepts_client(fresh.as_deref(), chain)),
        }
    }

    /// Notes what a client has shown. Whether it is still accepted: the settings may have changed since `used` were taken.
    fn admit_client(
        &self,
        seat: &ConnectionPermit,
        used: Option<&Arc<TlsTermination>>,
        chain: Option<CertificateChain>,
    ) -> bool {
        seat.client_certificate.complete_handshake(chain);
        let now = self.tls.load();
        let (now, used) = (now.as_deref(), used.map(|used| &**used));
        tls::accepts_same_clients(now, used)
            || seat.client_certificate.is_accepted_by(|chain| tls::accepts_client(now, chain))
    }

    /// Counts a wrong key that came from there. How long its refusal is to be held back.
    pub fn wrong_key_delay(&self, peer: Option<IpAddr>) -> Duration {
        self.wrong_keys.delay(peer, Instant::now())
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.connection_limiter.open_connections()
    }
}

/// Accepts connections until the server stops. Connections in use go on; wait for them by the seats they have.
pub async fn serve(mut listener: Listener, server: Arc<Server>, proxy: Rc<Proxy>) {
    let mut stopping = server.stopping.clone();
    let mut stop = pin!(stopping.wait_for(|stop| *stop));
    let tables = TaskPool::new(server.clone(), proxy);
    while !server.is_stopping() {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // A seat second: a listener that held one while nobody comes would take it from the others. What is not
                // accepted waits in the kernel, where it costs nothing.
                let seat = match server.connection_limiter.try_acquire() {
                    None => tokio::select! {
                        biased;
                        seat = server.connection_limiter.acquire() => seat,
                        // The loop ends with this one.
                        _ = &mut stop => server.connection_limiter.try_acquire(),
                    },
                    free => free,
                };
                if let Some(seat) = seat {
                    tables.serve(Accepted { stream, peer, permit: seat });
                }
            }
            Err(error) if is_per_connection_error(&error) => {}
            Err(error) => {
                server.connection_limiter.on_accept_error(&error);
                sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
    // Whoever is connected already, as far as they can see, would be thrown out when the socket closes.
    for (stream, peer) in listener.into_pending() {
        if let Some(seat) = server.connection_limiter.try_acquire() {
            tables.serve(Accepted { stream, peer, permit: seat });
        }
    }
    // Whoever waits for a request looks up now, and sees that the server stops.
    server.connection_limiter.wake_all();
}

/// Whether accepting failed because of the one connection that was to be accepted.
fn is_per_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves one connection to its end. What is not needed while an HTTP/1 connection idles has a box of its own.
async fn serve_connection(
    guest: Accepted,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
    leftovers: &mut Recycled,
) {
    let Accepted { stream, peer, permit: seat } = guest;
    seat.register_waker().await;
    let tls = server.tls.load_full();
    let (stream, by_alpn, chain) = match &tls {
        None => (stream, None, None),
        Some(tls) => {
            seat.mark_partial(Instant::now());
            let greeted = tokio::select! {
                () = seat.close_requested() => None,
                greeted = Box::pin(tls_handshake(stream, peer, tls.config.clone(), server)) => greeted,
            };
            let Some((stream, http2, chain)) = greeted else { return };
            (stream, Some(http2), chain)
        }
    };
    if !server.admit_client(&seat, tls.as_ref(), chain) {
        return;
    }
    if by_alpn == Some(true) {
        let serving = http2::serve(stream, BytesMut::new(), peer, server, seat, proxy);
        return Box::pin(serving).await;
    }
    let guest = Accepted { stream, peer, permit: seat.clone() };
    if let Some((stream, first)) = http1::serve(guest, by_alpn.is_none(), server, proxy, leftovers).await {
        Box::pin(http2::serve(stream, first, peer, server, seat, proxy)).await;
    }
}

/// Passes a moment after the server has stopped.
async fn shutdown_grace_elapsed(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
    sleep(SHUTDOWN_GRACE_TIMEOUT).await;
}

/// The TLS handshake. Whether HTTP/2 was agreed on, and what the client has shown, is returned too.
async fn tls_handshake(
    stream: Stream,
    peer: Option<IpAddr>,
    config: Arc<rustls::ServerConfig>,
    server: &Server,
) -> Option<(Stream, bool, Option<CertificateChain>)> {
    let mut stopping = server.stopping.clone();
    let greeting = timeout(server.timeouts.header, TlsAcceptor::from(config).accept(stream));
    let greeted = tokio::select! {
        () = shutdown_grace_elapsed(&mut stopping) => return None,
        greeted = greeting => greeted,
    };
    match greeted {
        Ok(Ok(tls)) => {
            let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let chain = tls.get_ref().1.peer_certificates().map(CertificateChain::from);
            return Some((Stream::ServerTls(Box::new(tls)), http2, chain));
        }
        Ok(Err(error)) => {
            // Anybody can fail as often as they like.
            if let Some(unsaid) = server.connection_limiter.handshake_log.allow() {
                let (peer, error) = (peer.map(tracing::field::display), error.to_string());
                let unsaid = (unsaid > 0).then_some(unsaid);
                tracing::info!(peer, error, unsaid, "a TLS handshake with a client failed");
            }
        }
        Err(_) => tracing::debug!("a TLS handshake with a client took too long"),
    }
    None
}
