//! Accepts client connections, applies their time-outs, and drains them on shutdown.
//!
//! [`serve`] accepts connections and passes each request to the proxy. This module knows nothing of tokens or agents.

mod certificate_expiry;
mod client_address;
mod client_auth;
mod connection_limit;
mod descriptor_limit;
mod handoff;
mod handshake;
pub(crate) mod http1;
mod http2;
mod large_head;
mod listener;
mod proxy_protocol;
mod task_pool;
pub mod tls;
mod worker_share;
mod wrong_key_throttle;

use std::{
    future::{Future, poll_fn},
    io,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use self::{
    client_address::{ClientAddresses, Peer},
    client_auth::CertificateChain,
    http1::{Http1Connection, ReusedByTask},
    task_pool::{TaskPool, WaitingTask},
    tls::TlsTermination,
    worker_share::CountedConnection,
    wrong_key_throttle::WrongKeyThrottle,
};
pub use self::{
    connection_limit::{ConnectionLimiter, ConnectionPermit, EvictionPolicy},
    descriptor_limit::{max_admin_connections, raise_descriptor_limit},
    listener::{BoundListener, Inherited, InheritedError, Listener},
};
use crate::{
    http1::{head::MAX_HEAD_BYTES, io::Stream},
    proxy::Proxy,
    time::log_throttle::LogThrottle,
};

/// Delay before accepting again after the process has run out of file descriptors.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long something under way may still take when a connection is to end: a TLS handshake, a partial head, the first
/// request of a new connection, and over HTTP/2 the client's reply to GOAWAY.
const SHUTDOWN_GRACE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time for which input is discarded after the last response (lingering close), or for an unread HTTP/2 body;
/// also bounds close_notify.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of bytes discarded meanwhile.
const MAX_LINGER_BYTES: u64 = 256 * 1024 * 1024;
/// Write time-out of a connection on which no request was authorized yet.
const UNAUTHORIZED_WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Failed handshakes that are logged in a minute.
const MAX_HANDSHAKE_LINES: u32 = 5;
/// Connection preface of HTTP/2 with prior knowledge (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Time-outs of a client connection.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From the first byte of a request head to its last; also bounds the TLS handshake.
    pub header: Duration,
    /// From the accept, or the end of the TLS handshake, to the first byte of the first request, and between two
    /// requests; also the interval of HTTP/2 PINGs.
    pub idle: Duration,
    /// Longest time in which the client accepts no response bytes; set by `server.body_timeout`.
    pub write: Duration,
}

impl Timeouts {
    /// The write time-out of this connection; shorter until a request on it was authorized.
    fn write_timeout(&self, permit: &ConnectionPermit) -> Duration {
        if permit.is_authorized() { self.write } else { self.write.min(UNAUTHORIZED_WRITE_TIMEOUT) }
    }
}

/// State that all connections of one server share.
pub struct Server {
    /// Time-outs of every connection.
    pub timeouts: Timeouts,
    /// TLS settings, `None` for plain text; a reload replaces them.
    tls: Arc<ArcSwapOption<TlsTermination>>,
    /// Caps the open connections.
    pub connection_limiter: ConnectionLimiter,
    max_connections_log: LogThrottle,
    accept_error_log: LogThrottle,
    handshake_log: LogThrottle,
    wrong_keys: WrongKeyThrottle,
    client_addresses: ClientAddresses,
    workers: AtomicUsize,
    /// Becomes true when the shutdown begins: no connection is accepted any more, a new one may still send its first
    /// request, and further requests on others are rejected.
    pub stopping: watch::Receiver<bool>,
}

impl Server {
    /// Creates a server with these settings.
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
            connection_limiter: ConnectionLimiter::new(
                descriptor_limit::effective_max_connections(server.max_connections),
                EvictionPolicy::KeepActive,
            ),
            max_connections_log: LogThrottle::per_minute(1),
            accept_error_log: LogThrottle::per_minute(1),
            handshake_log: LogThrottle::per_minute(MAX_HANDSHAKE_LINES),
            wrong_keys: WrongKeyThrottle::new(),
            client_addresses: ClientAddresses::new(&server.trusted),
            workers: AtomicUsize::new(0),
            stopping,
        }
    }

    /// Whether the shutdown has begun (see [`Server::stopping`]), or the flag's sender is gone. `has_changed` reads an
    /// atomic, where `borrow` would take a lock. It stays true, because the flag changes once and this receiver never
    /// marks the change as seen.
    fn is_stopping(&self) -> bool {
        self.stopping.has_changed().unwrap_or(true)
    }

    /// Whether clients must present a certificate.
    pub fn requires_certificate(&self) -> bool {
        self.tls.load().as_ref().is_some_and(|tls| tls.requires_certificate())
    }

    /// Replaces the TLS settings for new connections. Connections whose client certificate the new settings do not
    /// accept are closed: idle ones at once, others when their requests in flight have completed. Returns how many.
    pub fn replace_tls(&self, new_tls: Option<Arc<TlsTermination>>) -> usize {
        let old_tls = self.tls.swap(new_tls.clone());
        match tls::accepts_same_clients(old_tls.as_deref(), new_tls.as_deref()) {
            true => 0,
            false => self.connection_limiter.revoke(|chain| tls::accepts_client(new_tls.as_deref(), chain)),
        }
    }

    /// Replaces the proxies that may name the client's address, from the next request on.
    pub fn replace_trusted_proxies(&self, trusted: crate::config::TrustedProxies) {
        self.client_addresses.replace(trusted);
    }

    /// Stores the client's certificate chain and returns whether the client is still accepted: the settings may have
    /// changed since the handshake began with `handshake_tls`.
    fn admit_client(
        &self,
        permit: &ConnectionPermit,
        handshake_tls: Option<&Arc<TlsTermination>>,
        chain: Option<CertificateChain>,
    ) -> bool {
        permit.client_certificate.complete_handshake(chain);
        let current = self.tls.load();
        let (current, handshake_tls) = (current.as_deref(), handshake_tls.map(|tls| &**tls));
        tls::accepts_same_clients(current, handshake_tls)
            || permit.client_certificate.is_accepted_by(|chain| tls::accepts_client(current, chain))
    }

    /// Waits for the permit of a connection while `max_connections` are open.
    async fn wait_for_permit(&self) -> Option<Arc<ConnectionPermit>> {
        if self.max_connections_log.allow().is_some() {
            tracing::warn!(
                max_connections = self.connection_limiter.max_connections(),
                "max_connections reached, each new connection closes an idle one, or waits while none is idle"
            );
        }
        self.connection_limiter.acquire().await
    }

    /// Whether `server.proxy_protocol` is on.
    pub fn reads_proxy_protocol(&self) -> bool {
        self.client_addresses.has_proxy_protocol()
    }

    /// Counts a wrong key from `peer` and returns how long its rejection is delayed.
    pub fn count_wrong_key(&self, peer: Option<IpAddr>) -> Duration {
        self.wrong_keys.count_wrong_key(peer, Instant::now())
    }

    /// When the certificate of the listeners expires, in seconds since 1970.
    pub fn certificate_expires_at(&self) -> Option<u64> {
        self.tls.load().as_ref().and_then(|tls| tls.expires_at())
    }

    /// Counts a worker that accepts connections from now on.
    pub fn add_worker(&self) {
        self.workers.fetch_add(1, Relaxed);
    }

    /// Number of open connections.
    pub fn open_connections(&self) -> usize {
        self.connection_limiter.open_connections()
    }

    /// The bound on [`Server::open_connections`].
    pub fn max_connections(&self) -> usize {
        self.connection_limiter.max_connections()
    }
}

/// An accepted connection that is to be served.
struct Accepted {
    stream: Stream,
    peer: Peer,
    permit: Arc<ConnectionPermit>,
}

/// Accepts connections until the server stops. Open connections go on; wait for them with
/// [`ConnectionLimiter::wait_drained`].
pub async fn serve(mut listener: Listener, server: Arc<Server>, proxy: Rc<Proxy>) {
    let mut stopping = server.stopping.clone();
    let mut stop = pin!(stopping.wait_for(|stop| *stop));
    let task_pool = TaskPool::new(server.clone(), proxy);
    while !server.is_stopping() {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept_after(async || worker_share::leave_to_others(&server).await) => accepted,
            _ = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // The permit is acquired after the accept: a worker that held one while no client connects would take
                // it from the other workers. Connections that are not accepted wait in the kernel's backlog, where they
                // cost nothing.
                let permit = match server.connection_limiter.try_acquire() {
                    None => tokio::select! {
                        biased;
                        permit = server.wait_for_permit() => permit,
                        // The loop ends after this connection.
                        _ = &mut stop => server.connection_limiter.try_acquire(),
                    },
                    free => free,
                };
                if let Some(permit) = permit {
                    task_pool.serve(Accepted { stream, peer: peer.into(), permit });
                }
            }
            Err(error) if is_per_connection_error(&error) => {}
            Err(error) => {
                // It does not concern one connection alone: no descriptor or memory is left.
                if server.accept_error_log.allow().is_some() {
                    tracing::error!(%error, "accept failed, closing one idle connection and retrying");
                }
                server.connection_limiter.evict_one();
                sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
    // Connections in the backlog are established from the client's side: closing the socket would reset them.
    for (stream, peer) in listener.into_pending() {
        if let Some(permit) = server.connection_limiter.try_acquire() {
            task_pool.serve(Accepted { stream, peer: peer.into(), permit });
        }
    }
    // Wakes idle connections, which then see that the server stops.
    server.connection_limiter.wake_all();
}

/// Whether the error concerns only the connection that was to be accepted, so that the next accept may succeed.
fn is_per_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// A connection after the PROXY protocol header and the TLS handshake, if there are any.
struct Negotiated {
    accepted: Accepted,
    /// The settings of the TLS handshake, and the client's certificate chain.
    tls: Option<Arc<TlsTermination>>,
    chain: Option<CertificateChain>,
    /// What ALPN selected. Without TLS there is no ALPN, and the first bytes decide.
    alpn_is_http2: Option<bool>,
}

/// How a connection is served.
enum Protocol<'a> {
    Http1(Box<Http1Connection>),
    Http2(Pin<Box<dyn Future<Output = ()> + 'a>>),
}

/// Serves the connection that was handed over to its end.
///
/// An idle HTTP/1 connection keeps this future: what it does not need then is boxed or moved away as a whole, because
/// arguments and partly moved variables keep their memory while others are awaited.
async fn serve_connection(
    waiting: Rc<WaitingTask>,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
    reused: &mut ReusedByTask,
) {
    let Some((protocol, _counted)) = open_connection(waiting, server, proxy, reused).await else { return };
    match protocol {
        Protocol::Http2(serving) => serving.await,
        Protocol::Http1(connection) => {
            let serve_http2 =
                |(accepted, received)| Box::pin(http2::serve(accepted, received, server, proxy));
            if let Some(serving) = http1::serve(connection, reused).await.map(serve_http2) {
                serving.await;
            }
        }
    }
}

/// Takes the connection that was handed over and does what precedes its first request.
async fn open_connection<'a>(
    waiting: Rc<WaitingTask>,
    server: &'a Arc<Server>,
    proxy: &'a Rc<Proxy>,
    reused: &mut ReusedByTask,
) -> Option<(Protocol<'a>, CountedConnection)> {
    let (accepted, counted) = poll_fn(|_| waiting.next.poll_take()).await;
    drop(waiting);
    accepted.permit.register_waker().await;
    let is_plaintext = server.tls.load().is_none();
    let negotiated = match is_plaintext && !server.client_addresses.sends_proxy_header(accepted.peer.address)
    {
        true => Negotiated { accepted, tls: None, chain: None, alpn_is_http2: None },
        false => Box::pin(negotiate(accepted, server)).await?,
    };
    Some((select_protocol(negotiated, server, proxy, reused)?, counted))
}

/// Reads the header of the PROXY protocol, and performs the TLS handshake.
async fn negotiate(accepted: Accepted, server: &Arc<Server>) -> Option<Negotiated> {
    let Accepted { mut stream, mut peer, permit } = accepted;
    if server.client_addresses.sends_proxy_header(peer.address) {
        peer = tokio::select! {
            () = permit.close_requested() => None,
            named = handshake::read_proxy_header(&mut stream, peer.address, server) => named,
        }?;
    }
    let Some(tls) = server.tls.load_full() else {
        let accepted = Accepted { stream, peer, permit };
        return Some(Negotiated { accepted, tls: None, chain: None, alpn_is_http2: None });
    };
    let (stream, is_http2, chain) = tokio::select! {
        () = permit.close_requested() => None,
        outcome = handshake::tls_handshake(stream, peer.address, tls.config.clone(), server) => outcome,
    }?;
    let accepted = Accepted { stream, peer, permit };
    Some(Negotiated { accepted, tls: Some(tls), chain, alpn_is_http2: Some(is_http2) })
}

/// Decides how a connection is served; `None` if the current TLS settings do not accept its client.
fn select_protocol<'a>(
    negotiated: Negotiated,
    server: &'a Arc<Server>,
    proxy: &'a Rc<Proxy>,
    reused: &mut ReusedByTask,
) -> Option<Protocol<'a>> {
    let Negotiated { accepted, tls, chain, alpn_is_http2 } = negotiated;
    if !server.admit_client(&accepted.permit, tls.as_ref(), chain) {
        return None;
    }
    Some(match alpn_is_http2 {
        Some(true) => Protocol::Http2(Box::pin(http2::serve(accepted, BytesMut::new(), server, proxy))),
        _ => {
            let may_be_http2 = alpn_is_http2.is_none();
            Protocol::Http1(Http1Connection::new(accepted, may_be_http2, server, proxy, reused))
        }
    })
}

/// Completes [`SHUTDOWN_GRACE_TIMEOUT`] after the server has begun to stop.
async fn shutdown_grace_elapsed(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
    sleep(SHUTDOWN_GRACE_TIMEOUT).await;
}
