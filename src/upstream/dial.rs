//! Dialling the upstream: DNS, TCP, the egress proxy, TLS.

use std::{borrow::Cow, io};

use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::{ConnectError, Settings, UpstreamErrorKind, egress, open_connection::OpenConnection, tcp};
use crate::{
    config::{EgressProtocol, EgressProxy},
    http1::io::Stream,
};

/// Offered to the upstream; HTTP/1.1 alone where it requires that.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A new connection and whether ALPN chose HTTP/2.
pub(super) struct DialedConnection {
    pub(super) stream: Stream,
    pub(super) http2: bool,
    pub(super) open: OpenConnection,
}

/// Dials within `connect_timeout`, through the egress proxy of this index if there is one. Errors:
/// [`UpstreamErrorKind::Unreachable`].
pub(super) async fn dial(
    settings: &Settings,
    nth_proxy: usize,
) -> Result<DialedConnection, UpstreamErrorKind> {
    let deadline = Instant::now() + settings.connect_timeout;
    let via = settings.egress_proxies.proxy(nth_proxy);
    dial_by(settings, via, deadline).await.map_err(|error| match error {
        UpstreamErrorKind::Unreachable(error) => {
            UpstreamErrorKind::Unreachable(error.in_section(&settings.id))
        }
        other => other,
    })
}

async fn dial_by(
    settings: &Settings,
    via: Option<&EgressProxy>,
    deadline: Instant,
) -> Result<DialedConnection, UpstreamErrorKind> {
    let timeout_error =
        |step: &str| connect_error(format!("{step} took longer than upstream.connect_timeout"));
    let (host, port) = via.map_or((&settings.host, settings.port), |via| (&via.host, via.port));
    let mut tcp = tcp::connect(host, port, deadline).await.map_err(|error| {
        UpstreamErrorKind::Unreachable(if via.is_some() { error.via_egress_proxy() } else { error })
    })?;
    let _ = tcp.set_nodelay(true);
    tcp::set_keepalive(&tcp, settings.tcp_keepalive);
    let requires_http1 = tcp.peer_addr().is_ok_and(|peer| settings.http1_only.contains(peer));
    if let Some(via) = via {
        let target = tunnel_target(settings, via, deadline).await?;
        let tunnel = timeout_at(deadline, egress::open_tunnel(via, tcp, &target)).await;
        tcp = tunnel.map_err(|_| timeout_error("the egress proxy's response to CONNECT"))??;
    }
    let (stream, open) = (Stream::Tcp(tcp), settings.open_connections.open());
    let Some(tls) = &settings.tls else { return Ok(DialedConnection { stream, http2: false, open }) };
    let (connector, alpn) = (
        TlsConnector::from(tls.trust.load().client_config.clone()),
        if requires_http1 { &ALPN[1..] } else { ALPN },
    );
    let alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let handshake = connector.with_alpn(alpn).connect(tls.server_name.clone(), stream);
    let tls = timeout_at(deadline, handshake)
        .await
        .map_err(|_| timeout_error("the TLS handshake"))?
        .map_err(tls_error)?;
    let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(DialedConnection { stream: Stream::ClientTls(Box::new(tls)), http2, open })
}

/// The host and port that the egress proxy is asked for.
async fn tunnel_target(
    settings: &Settings,
    via: &EgressProxy,
    deadline: Instant,
) -> Result<String, UpstreamErrorKind> {
    let Settings { host, port, .. } = settings;
    Ok(match via.protocol {
        EgressProtocol::Socks5 => {
            match tcp::resolve(host, *port, deadline).await.map_err(UpstreamErrorKind::Unreachable)?.first() {
                Some(address) => address.to_string(),
                None => return Err(connect_error("name not found")),
            }
        }
        _ if host.contains(':') => format!("[{host}]:{port}"),
        _ => format!("{}:{port}", host.trim_end_matches('.')),
    })
}

/// An error whose text may be shown to callers.
fn connect_error(text: impl Into<Cow<'static, str>>) -> UpstreamErrorKind {
    UpstreamErrorKind::Unreachable(ConnectError::new(text))
}

/// Maps a TLS error to a message that names the setting to check.
fn tls_error(error: io::Error) -> UpstreamErrorKind {
    use rustls::{CertificateError as Reason, Error, InvalidMessage};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    let rejected =
        |log_message| ConnectError::with_log_message("the upstream's certificate is rejected", log_message);
    UpstreamErrorKind::Unreachable(match cause {
        Some(Error::InvalidCertificate(Reason::NotValidForNameContext { presented, .. }))
            if presented.is_empty() =>
        {
            ConnectError::new(
                "the upstream's certificate has no subjectAltName, and its commonName does not count: it must be issued anew with one",
            )
        }
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
        Some(Error::InvalidCertificate(Reason::Other(other)))
            if other.to_string().contains("UnsupportedCertVersion") =>
        {
            ConnectError::new(
                "the upstream's certificate is X.509 version 1: it must be issued anew as version 3 with a subjectAltName",
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
