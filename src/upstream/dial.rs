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

use super::{Flaw, Settings, Unreachable};
use crate::io::Stream;

/// How long a name's addresses are remembered.
const NAME_LIFETIME: Duration = Duration::from_secs(30);
/// Most bytes of an egress proxy's answer to CONNECT.
const MAX_CONNECT_HEAD: usize = 8 * 1024;

/// A fresh connection, and what TLS agreed to speak on it.
pub(super) struct Dialled {
    pub(super) stream: Stream,
    pub(super) http2: bool,
}

/// The addresses behind the name that is dialled, the one that worked last first.
#[derive(Default)]
pub(super) struct Addresses(Mutex<Option<(Instant, Vec<SocketAddr>)>>);

/// Connects, all within `connect_timeout`.
pub(super) async fn dial(settings: &Arc<Settings>, addresses: &Addresses) -> Result<Dialled, Flaw> {
    let until = Instant::now() + settings.connect_timeout;
    let slow = |what: &str| unreachable(format!("{what} took longer than upstream.connect_timeout"));
    let (host, port) = settings.dialled();
    let tcp = addresses.connect(host, port, until).await.map_err(|flaw| match (flaw, &settings.via) {
        (Flaw::Unreachable(why), Some(_)) => Flaw::Unreachable(why.at_egress_proxy()),
        (flaw, _) => flaw,
    })?;
    let _ = tcp.set_nodelay(true);
    let mut stream = Stream::Tcp(tcp);
    if settings.via.is_some() {
        let opened = timeout_at(until, open_tunnel(settings, &mut stream)).await;
        opened.map_err(|_| slow("the egress proxy's answer"))??;
    }
    let Some((tls, name)) = &settings.tls else { return Ok(Dialled { stream, http2: false }) };
    let greeting = TlsConnector::from(tls.clone()).connect(name.clone(), stream);
    let tls = timeout_at(until, greeting).await.map_err(|_| slow("the TLS handshake"))?.map_err(tls_flaw)?;
    let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Dialled { stream: Stream::ClientTls(Box::new(tls)), http2 })
}

impl Addresses {
    async fn connect(&self, host: &str, port: u16, until: Instant) -> Result<TcpStream, Flaw> {
        if let Some(remembered) = self.remembered() {
            // The name may have other addresses by now: there must be time left to ask for them.
            let half = Instant::now() + until.saturating_duration_since(Instant::now()) / 2;
            if let Ok(tcp) = self.try_all(&remembered, half).await {
                return Ok(tcp);
            }
            self.forget();
        }
        let found = resolve(host, port, until).await?;
        *self.known() = Some((Instant::now(), found.clone()));
        self.try_all(&found, until).await.map_err(|error| {
            self.forget();
            Flaw::Unreachable(Unreachable::connect(format_args!("{host}:{port}"), &error))
        })
    }

    async fn try_all(&self, addresses: &[SocketAddr], until: Instant) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (tried, address) in addresses.iter().enumerate() {
            // A dead address gets its share of the time, not all of it.
            let share = until.saturating_duration_since(Instant::now()) / (addresses.len() - tried) as u32;
            match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    if tried > 0 {
                        self.prefer(*address);
                    }
                    return Ok(tcp);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    fn remembered(&self) -> Option<Vec<SocketAddr>> {
        let known = self.known();
        let (since, addresses) = known.as_ref()?;
        (since.elapsed() < NAME_LIFETIME).then(|| addresses.clone())
    }

    fn prefer(&self, address: SocketAddr) {
        if let Some((_, known)) = &mut *self.known() {
            known.sort_by_key(|other| *other != address);
        }
    }

    fn forget(&self) {
        *self.known() = None;
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Vec<SocketAddr>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reason that callers may see as it is.
fn unreachable(text: impl Into<Cow<'static, str>>) -> Flaw {
    Flaw::Unreachable(Unreachable::general(text))
}

async fn resolve(host: &str, port: u16, until: Instant) -> Result<Vec<SocketAddr>, Flaw> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let failed =
        |general: &'static str, detail| Err(Flaw::Unreachable(Unreachable::with_detail(general, detail)));
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
async fn open_tunnel(settings: &Settings, stream: &mut Stream) -> Result<(), Flaw> {
    let broken =
        |error: io::Error| unreachable(format!("the egress proxy (upstream.via) broke off: {error}"));
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
        if head.len() == MAX_CONNECT_HEAD {
            return Err(unreachable("the egress proxy (upstream.via) answered CONNECT with no end"));
        }
        head.push(stream.read_u8().await.map_err(broken)?);
    }
    let status = head.split(|byte| *byte == b' ').nth(1).and_then(|code| std::str::from_utf8(code).ok());
    match status.and_then(|code| code.get(..3)).and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=299) => Ok(()),
        Some(407) => Err(unreachable(
            "the egress proxy wants a user and password: write upstream.via = \"http://USER:PASSWORD@HOST:PORT\"",
        )),
        Some(code) => Err(unreachable(format!(
            "the egress proxy (upstream.via) refused the tunnel with {code}: it must allow CONNECT to the host of upstream.url"
        ))),
        None => Err(unreachable("the egress proxy (upstream.via) does not speak HTTP")),
    }
}

/// Says what is wrong with the upstream's certificate in words that lead somewhere.
fn tls_flaw(error: io::Error) -> Flaw {
    use rustls::{CertificateError as Bad, Error, InvalidMessage};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let refused = |detail| Unreachable::with_detail("the upstream's certificate is refused", detail);
    Flaw::Unreachable(match inner {
        Some(Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
            Unreachable::general("the upstream's certificate is not for its name: check upstream.url")
        }
        Some(Error::InvalidCertificate(Bad::UnknownIssuer)) => Unreachable::general(
            "the upstream's certificate is from an authority that is not trusted here: for a private one set upstream.ca_file",
        ),
        Some(Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => Unreachable::general(
            "the upstream's certificate has expired: renew it, or set this machine's clock",
        ),
        Some(Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. })) => {
            Unreachable::general("the upstream's certificate is not valid yet: set this machine's clock")
        }
        Some(Error::InvalidCertificate(Bad::Other(other))) if other.to_string() == "CaUsedAsEndEntity" => {
            Unreachable::general(
                "the upstream's certificate is self-signed and not trusted here: to trust it, set upstream.ca_file to it",
            )
        }
        Some(Error::InvalidCertificate(Bad::Other(other))) => {
            refused(format!("the upstream's certificate is refused: {other}"))
        }
        Some(Error::InvalidCertificate(bad)) => {
            refused(format!("the upstream's certificate is refused: {bad}"))
        }
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Unreachable::general(
            "what answers does not speak TLS: check the scheme and the port of upstream.url; a firewall or an egress proxy may answer in its place",
        ),
        _ => Unreachable::with_detail(
            "the TLS handshake with the upstream failed",
            format!("the TLS handshake with the upstream failed: {error}; a firewall may break it off"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    impl Addresses {
        fn of(known: &[SocketAddr]) -> Self {
            Self(Mutex::new(Some((Instant::now(), known.to_vec()))))
        }

        async fn connected(&self, port: u16) -> Result<SocketAddr, Flaw> {
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
    async fn of_several_addresses_the_one_that_lives_is_found_and_remembered() {
        let (dead, (_listener, live)) = (listener().await.1, listener().await);
        let addresses = Addresses::of(&[dead, live]);
        assert_eq!(addresses.connected(live.port()).await.expect("a connection"), live);
        assert_eq!(addresses.remembered(), Some(vec![live, dead]));
    }

    #[tokio::test]
    async fn a_name_that_has_moved_is_asked_for_again_before_the_request_fails() {
        let (gone, (_listener, live)) = (listener().await.1, listener().await);
        let addresses = Addresses::of(&[gone]);
        let found = addresses.connected(live.port()).await.expect("a connection");
        assert_eq!(found.port(), live.port());
        assert!(!addresses.remembered().expect("addresses").contains(&gone));
    }

    #[tokio::test]
    async fn what_is_dead_at_every_address_is_not_remembered() {
        let gone = listener().await.1;
        let addresses = Addresses::of(&[gone]);
        assert!(matches!(addresses.connected(gone.port()).await, Err(Flaw::Unreachable(_))));
        assert_eq!(addresses.remembered(), None);
    }
}
