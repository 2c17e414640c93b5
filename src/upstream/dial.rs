//! Dialling the upstream: DNS, TCP, CONNECT through the egress proxy, TLS.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{ConnectError, Settings, UpstreamErrorKind};
use crate::http1::io::Stream;

/// How long resolved addresses are cached.
const DNS_CACHE_TTL: Duration = Duration::from_secs(30);
/// Maximum bytes of the egress proxy's CONNECT response head.
const MAX_CONNECT_HEAD_BYTES: usize = 8 * 1024;

/// A new connection and whether ALPN chose HTTP/2.
pub(super) struct DialedConnection {
    pub(super) stream: Stream,
    pub(super) http2: bool,
}

/// Cached addresses of the dialled host, the last working one first.
#[derive(Default)]
pub(super) struct AddressCache(Mutex<Option<(Instant, Vec<SocketAddr>)>>);

/// Dials within `connect_timeout`. Errors: [`UpstreamErrorKind::Unreachable`].
pub(super) async fn dial(
    settings: &Arc<Settings>,
    addresses: &AddressCache,
) -> Result<DialedConnection, UpstreamErrorKind> {
    let deadline = Instant::now() + settings.connect_timeout;
    let timeout_error =
        |step: &str| connect_error(format!("{step} took longer than upstream.connect_timeout"));
    let (host, port) = settings.dial_address();
    let tcp =
        addresses.connect(host, port, deadline).await.map_err(|error| match (error, &settings.via) {
            (UpstreamErrorKind::Unreachable(connect_error), Some(_)) => {
                UpstreamErrorKind::Unreachable(connect_error.via_egress_proxy())
            }
            (error, _) => error,
        })?;
    let _ = tcp.set_nodelay(true);
    let mut stream = Stream::Tcp(tcp);
    if settings.via.is_some() {
        let tunnel = timeout_at(deadline, open_tunnel(settings, &mut stream)).await;
        tunnel.map_err(|_| timeout_error("the egress proxy's CONNECT response"))??;
    }
    let Some((tls, name)) = &settings.tls else { return Ok(DialedConnection { stream, http2: false }) };
    let handshake = TlsConnector::from(tls.clone()).connect(name.clone(), stream);
    let tls = timeout_at(deadline, handshake)
        .await
        .map_err(|_| timeout_error("the TLS handshake"))?
        .map_err(tls_error)?;
    let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(DialedConnection { stream: Stream::ClientTls(Box::new(tls)), http2 })
}

impl AddressCache {
    async fn connect(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<TcpStream, UpstreamErrorKind> {
        if let Some(cached) = self.cached() {
            // The cached addresses get half of the time: the name may resolve to others by now.
            let cached_deadline = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
            if let Ok(tcp) = self.connect_any(&cached, cached_deadline).await {
                return Ok(tcp);
            }
            self.clear();
        }
        let resolved = resolve(host, port, deadline).await?;
        *self.lock() = Some((Instant::now(), resolved.clone()));
        self.connect_any(&resolved, deadline).await.map_err(|error| {
            self.clear();
            UpstreamErrorKind::Unreachable(ConnectError::tcp(format_args!("{host}:{port}"), &error))
        })
    }

    async fn connect_any(&self, addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
        let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (tried, address) in addresses.iter().enumerate() {
            // A dead address gets its share of the remaining time, not all of it.
            let share = deadline.saturating_duration_since(Instant::now()) / (addresses.len() - tried) as u32;
            match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    if tried > 0 {
                        self.move_to_front(*address);
                    }
                    return Ok(tcp);
                }
                Ok(Err(error)) => last_error = error,
                Err(_) => last_error = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last_error)
    }

    fn cached(&self) -> Option<Vec<SocketAddr>> {
        let cached = self.lock();
        let (resolved_at, addresses) = cached.as_ref()?;
        (resolved_at.elapsed() < DNS_CACHE_TTL).then(|| addresses.clone())
    }

    fn move_to_front(&self, address: SocketAddr) {
        if let Some((_, addresses)) = &mut *self.lock() {
            addresses.sort_by_key(|other| *other != address);
        }
    }

    fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Vec<SocketAddr>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error whose text may be shown to callers.
fn connect_error(text: impl Into<Cow<'static, str>>) -> UpstreamErrorKind {
    UpstreamErrorKind::Unreachable(ConnectError::new(text))
}

async fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, UpstreamErrorKind> {
    let host_name = host.trim_start_matches('[').trim_end_matches(']');
    let unreachable = |public_message: &'static str, log_message| {
        Err(UpstreamErrorKind::Unreachable(ConnectError::with_log_message(public_message, log_message)))
    };
    let addresses: Vec<_> = match timeout_at(deadline, tokio::net::lookup_host((host_name, port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            let log_message =
                format!("cannot resolve {host}: {error}; check the name and this machine's DNS");
            return unreachable("name not found", log_message);
        }
        Err(_) => {
            let log_message = format!("resolving {host} took longer than upstream.connect_timeout");
            return unreachable("name resolution timed out", log_message);
        }
    };
    if addresses.is_empty() {
        return unreachable("name not found", format!("{host} has no address"));
    }
    Ok(addresses)
}

/// Opens a CONNECT tunnel to the upstream (RFC 9110 §9.3.6).
async fn open_tunnel(settings: &Settings, stream: &mut Stream) -> Result<(), UpstreamErrorKind> {
    let tunnel_error = |error: io::Error| {
        connect_error(format!("the egress proxy (upstream.via) closed the connection: {error}"))
    };
    let target = format!("{}:{}", settings.host, settings.port);
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = settings.via.as_ref().and_then(|via| via.authorization.as_ref()) {
        request.push_str(&format!("Proxy-Authorization: {}\r\n", authorization.expose()));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(tunnel_error)?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head belongs to the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_CONNECT_HEAD_BYTES {
            return Err(connect_error(
                "the egress proxy (upstream.via) sent a CONNECT response head over 8 KiB",
            ));
        }
        head.push(stream.read_u8().await.map_err(tunnel_error)?);
    }
    let status = head.split(|byte| *byte == b' ').nth(1).and_then(|code| std::str::from_utf8(code).ok());
    match status.and_then(|code| code.get(..3)).and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=299) => Ok(()),
        Some(407) => Err(connect_error(
            "the egress proxy requires a user and password: set upstream.via = \"http://USER:PASSWORD@HOST:PORT\"",
        )),
        Some(code) => Err(connect_error(format!(
            "the egress proxy (upstream.via) refused the tunnel with {code}: it must allow CONNECT to the host of upstream.url"
        ))),
        None => Err(connect_error("the egress proxy (upstream.via) does not speak HTTP")),
    }
}

/// Maps a TLS error to a message that names the setting to check.
fn tls_error(error: io::Error) -> UpstreamErrorKind {
    use rustls::{CertificateError as Reason, Error, InvalidMessage};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    let rejected =
        |log_message| ConnectError::with_log_message("the upstream's certificate is rejected", log_message);
    UpstreamErrorKind::Unreachable(match cause {
        Some(Error::InvalidCertificate(Reason::NotValidForName | Reason::NotValidForNameContext { .. })) => {
            ConnectError::new("the upstream's certificate is not for its name: check upstream.url")
        }
        Some(Error::InvalidCertificate(Reason::UnknownIssuer)) => ConnectError::new(
            "the upstream's certificate is from an untrusted authority: for a private one set upstream.ca_file",
        ),
        Some(Error::InvalidCertificate(Reason::Expired | Reason::ExpiredContext { .. })) => {
            ConnectError::new("the upstream's certificate has expired: renew it, or set this machine's clock")
        }
        Some(Error::InvalidCertificate(Reason::NotValidYet | Reason::NotValidYetContext { .. })) => {
            ConnectError::new("the upstream's certificate is not valid yet: set this machine's clock")
        }
        Some(Error::InvalidCertificate(Reason::Other(other))) if other.to_string() == "CaUsedAsEndEntity" => {
            ConnectError::new(
                "the upstream's certificate is self-signed and untrusted: to trust it, set upstream.ca_file to it",
            )
        }
        Some(Error::InvalidCertificate(Reason::Other(other))) => {
            rejected(format!("the upstream's certificate is rejected: {other}"))
        }
        Some(Error::InvalidCertificate(reason)) => {
            rejected(format!("the upstream's certificate is rejected: {reason}"))
        }
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => ConnectError::new(
            "the peer does not speak TLS: check the scheme and the port of upstream.url; a firewall or an egress proxy may respond in its place",
        ),
        _ => ConnectError::with_log_message(
            "the TLS handshake with the upstream failed",
            format!("the TLS handshake with the upstream failed: {error}; a firewall may abort it"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    impl AddressCache {
        fn with_cached(addresses: &[SocketAddr]) -> Self {
            Self(Mutex::new(Some((Instant::now(), addresses.to_vec()))))
        }

        async fn connect_peer(&self, port: u16) -> Result<SocketAddr, UpstreamErrorKind> {
            let deadline = Instant::now() + Duration::from_secs(10);
            let tcp = self.connect("localhost", port, deadline).await?;
            Ok(tcp.peer_addr().expect("an address"))
        }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        (listener, address)
    }

    #[tokio::test]
    async fn live_address_is_found_and_cached_first() {
        let (dead, (_listener, live)) = (listener().await.1, listener().await);
        let addresses = AddressCache::with_cached(&[dead, live]);
        assert_eq!(addresses.connect_peer(live.port()).await.expect("a connection"), live);
        assert_eq!(addresses.cached(), Some(vec![live, dead]));
    }

    #[tokio::test]
    async fn stale_address_is_resolved_again() {
        let (closed, (_listener, live)) = (listener().await.1, listener().await);
        let addresses = AddressCache::with_cached(&[closed]);
        let found = addresses.connect_peer(live.port()).await.expect("a connection");
        assert_eq!(found.port(), live.port());
        assert!(!addresses.cached().expect("addresses").contains(&closed));
    }

    #[tokio::test]
    async fn unreachable_addresses_are_not_cached() {
        let closed = listener().await.1;
        let addresses = AddressCache::with_cached(&[closed]);
        assert!(matches!(
            addresses.connect_peer(closed.port()).await,
            Err(UpstreamErrorKind::Unreachable(_))
        ));
        assert_eq!(addresses.cached(), None);
    }
}
