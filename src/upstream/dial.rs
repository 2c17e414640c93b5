//! How a connection to the upstream is made: the name, the address, the CONNECT proxy if there is one, TLS.

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

/// How long a name's addresses are remembered.
const DNS_CACHE_TTL: Duration = Duration::from_secs(30);
/// Most bytes of an egress proxy's answer to CONNECT.
const MAX_CONNECT_HEAD_BYTES: usize = 8 * 1024;

/// A fresh connection, and what TLS agreed to speak on it.
pub(super) struct DialedConnection {
    pub(super) stream: Stream,
    pub(super) http2: bool,
}

/// The addresses behind the name that is dialled, the one that worked last first.
#[derive(Default)]
pub(super) struct AddressCache(Mutex<Option<(Instant, Vec<SocketAddr>)>>);

/// Connects, all within `connect_timeout`.
pub(super) async fn dial(
    settings: &Arc<Settings>,
    addresses: &AddressCache,
) -> Result<DialedConnection, UpstreamErrorKind> {
    let until = Instant::now() + settings.connect_timeout;
    let slow = |what: &str| connect_error(format!("{what} took longer than upstream.connect_timeout"));
    let (host, port) = settings.dial_address();
    let tcp = addresses.connect(host, port, until).await.map_err(|flaw| match (flaw, &settings.via) {
        (UpstreamErrorKind::Unreachable(why), Some(_)) => {
            UpstreamErrorKind::Unreachable(why.via_egress_proxy())
        }
        (flaw, _) => flaw,
    })?;
    let _ = tcp.set_nodelay(true);
    let mut stream = Stream::Tcp(tcp);
    if settings.via.is_some() {
        let opened = timeout_at(until, open_tunnel(settings, &mut stream)).await;
        opened.map_err(|_| slow("the egress proxy's answer"))??;
    }
    let Some((tls, name)) = &settings.tls else { return Ok(DialedConnection { stream, http2: false }) };
    let greeting = TlsConnector::from(tls.clone()).connect(name.clone(), stream);
    let tls = timeout_at(until, greeting).await.map_err(|_| slow("the TLS handshake"))?.map_err(tls_error)?;
    let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(DialedConnection { stream: Stream::ClientTls(Box::new(tls)), http2 })
}

impl AddressCache {
    async fn connect(&self, host: &str, port: u16, until: Instant) -> Result<TcpStream, UpstreamErrorKind> {
        if let Some(remembered) = self.cached() {
            // The name may have other addresses by now: there must be time left to ask for them.
            let half = Instant::now() + until.saturating_duration_since(Instant::now()) / 2;
            if let Ok(tcp) = self.connect_any(&remembered, half).await {
                return Ok(tcp);
            }
            self.clear();
        }
        let found = resolve(host, port, until).await?;
        *self.lock() = Some((Instant::now(), found.clone()));
        self.connect_any(&found, until).await.map_err(|error| {
            self.clear();
            UpstreamErrorKind::Unreachable(ConnectError::tcp(format_args!("{host}:{port}"), &error))
        })
    }

    async fn connect_any(&self, addresses: &[SocketAddr], until: Instant) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (tried, address) in addresses.iter().enumerate() {
            // A dead address gets its share of the time, not all of it.
            let share = until.saturating_duration_since(Instant::now()) / (addresses.len() - tried) as u32;
            match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    if tried > 0 {
                        self.move_to_front(*address);
                    }
                    return Ok(tcp);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    fn cached(&self) -> Option<Vec<SocketAddr>> {
        let known = self.lock();
        let (since, addresses) = known.as_ref()?;
        (since.elapsed() < DNS_CACHE_TTL).then(|| addresses.clone())
    }

    fn move_to_front(&self, address: SocketAddr) {
        if let Some((_, known)) = &mut *self.lock() {
            known.sort_by_key(|other| *other != address);
        }
    }

    fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Vec<SocketAddr>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reason that callers may see as it is.
fn connect_error(text: impl Into<Cow<'static, str>>) -> UpstreamErrorKind {
    UpstreamErrorKind::Unreachable(ConnectError::new(text))
}

async fn resolve(host: &str, port: u16, until: Instant) -> Result<Vec<SocketAddr>, UpstreamErrorKind> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let failed = |general: &'static str, detail| {
        Err(UpstreamErrorKind::Unreachable(ConnectError::with_log_message(general, detail)))
    };
    let found: Vec<_> = match timeout_at(until, tokio::net::lookup_host((bare, port))).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            let detail = format!("cannot resolve {host}: {error}; check the name and this machine's DNS");
            return failed("its name was not found", detail);
        }
        Err(_) => {
            let detail = format!("resolving {host} took longer than upstream.connect_timeout");
            return failed("resolving its name timed out", detail);
        }
    };
    if found.is_empty() {
        return failed("its name was not found", format!("{host} has no address"));
    }
    Ok(found)
}

/// Asks the egress proxy for a tunnel to the upstream.
async fn open_tunnel(settings: &Settings, stream: &mut Stream) -> Result<(), UpstreamErrorKind> {
    let broken =
        |error: io::Error| connect_error(format!("the egress proxy (upstream.via) broke off: {error}"));
    let target = format!("{}:{}", settings.host, settings.port);
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = settings.via.as_ref().and_then(|via| via.authorization.as_ref()) {
        request.push_str(&format!("Proxy-Authorization: {}\r\n", authorization.expose()));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut head = Vec::new();
    // A byte at a time: what follows the head belongs to the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_CONNECT_HEAD_BYTES {
            return Err(connect_error("the egress proxy (upstream.via) answered CONNECT with no end"));
        }
        head.push(stream.read_u8().await.map_err(broken)?);
    }
    let status = head.split(|byte| *byte == b' ').nth(1).and_then(|code| std::str::from_utf8(code).ok());
    match status.and_then(|code| code.get(..3)).and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=299) => Ok(()),
        Some(407) => Err(connect_error(
            "the egress proxy wants a user and password: write upstream.via = \"http://USER:PASSWORD@HOST:PORT\"",
        )),
        Some(code) => Err(connect_error(format!(
            "the egress proxy (upstream.via) refused the tunnel with {code}: it must allow CONNECT to the host of upstream.url"
        ))),
        None => Err(connect_error("the egress proxy (upstream.via) does not speak HTTP")),
    }
}

/// Says what is wrong with the upstream's certificate in words that lead somewhere.
fn tls_error(error: io::Error) -> UpstreamErrorKind {
    use rustls::{CertificateError as Bad, Error, InvalidMessage};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let refused = |detail| ConnectError::with_log_message("the upstream's certificate is refused", detail);
    UpstreamErrorKind::Unreachable(match inner {
        Some(Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
            ConnectError::new("the upstream's certificate is not for its name: check upstream.url")
        }
        Some(Error::InvalidCertificate(Bad::UnknownIssuer)) => ConnectError::new(
            "the upstream's certificate is from an authority that is not trusted here: for a private one set upstream.ca_file",
        ),
        Some(Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
            ConnectError::new("the upstream's certificate has expired: renew it, or set this machine's clock")
        }
        Some(Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. })) => {
            ConnectError::new("the upstream's certificate is not valid yet: set this machine's clock")
        }
        Some(Error::InvalidCertificate(Bad::Other(other))) if other.to_string() == "CaUsedAsEndEntity" => {
            ConnectError::new(
                "the upstream's certificate is self-signed and not trusted here: to trust it, set upstream.ca_file to it",
            )
        }
        Some(Error::InvalidCertificate(Bad::Other(other))) => {
            refused(format!("the upstream's certificate is refused: {other}"))
        }
        Some(Error::InvalidCertificate(bad)) => {
            refused(format!("the upstream's certificate is refused: {bad}"))
        }
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => ConnectError::new(
            "what answers does not speak TLS: check the scheme and the port of upstream.url; a firewall or an egress proxy may answer in its place",
        ),
        _ => ConnectError::with_log_message(
            "the TLS handshake with the upstream failed",
            format!("the TLS handshake with the upstream failed: {error}; a firewall may break it off"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    impl AddressCache {
        fn with_cached(known: &[SocketAddr]) -> Self {
            Self(Mutex::new(Some((Instant::now(), known.to_vec()))))
        }

        async fn connect_peer(&self, port: u16) -> Result<SocketAddr, UpstreamErrorKind> {
            let until = Instant::now() + Duration::from_secs(10);
            let tcp = self.connect("localhost", port, until).await?;
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
        let (gone, (_listener, live)) = (listener().await.1, listener().await);
        let addresses = AddressCache::with_cached(&[gone]);
        let found = addresses.connect_peer(live.port()).await.expect("a connection");
        assert_eq!(found.port(), live.port());
        assert!(!addresses.cached().expect("addresses").contains(&gone));
    }

    #[tokio::test]
    async fn unreachable_addresses_are_not_cached() {
        let gone = listener().await.1;
        let addresses = AddressCache::with_cached(&[gone]);
        assert!(matches!(addresses.connect_peer(gone.port()).await, Err(UpstreamErrorKind::Unreachable(_))));
        assert_eq!(addresses.cached(), None);
    }
}
