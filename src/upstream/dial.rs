//! Dialling the upstream: DNS, TCP, the egress proxy, TLS.

use std::io;

use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::{ConnectError, Settings, UpstreamErrorKind, egress, open_connection::OpenConnection, tcp};
use crate::{
    config::{EgressProtocol, EgressProxy, authority},
    format_text,
    http1::io::Stream,
    text,
    text::Text,
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
    let timeout_error = |step: Text| {
        connect_error(format_text!(
            "{} took longer than upstream.connect_timeout",
            "{}超过 upstream.connect_timeout",
            step
        ))
    };
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
        tcp = tunnel.map_err(|_| {
            timeout_error(text!("the egress proxy's response to CONNECT", "出口代理对 CONNECT 的响应"))
        })??;
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
        .map_err(|_| timeout_error(text!("the TLS handshake", "TLS 握手")))?
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
                None => return Err(connect_error(text!("name not found", "找不到该名称"))),
            }
        }
        _ => authority(host.trim_end_matches('.'), *port),
    })
}

/// An error whose text may be shown to callers.
fn connect_error(text: Text) -> UpstreamErrorKind {
    UpstreamErrorKind::Unreachable(ConnectError::new(text))
}

/// Maps a TLS error to a message that names the setting to check.
fn tls_error(error: io::Error) -> UpstreamErrorKind {
    use rustls::{Error, InvalidMessage};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    UpstreamErrorKind::Unreachable(match cause {
        Some(Error::InvalidCertificate(reason)) => certificate_error(reason),
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => ConnectError::new(text!(
            "the peer does not speak TLS: check the scheme and the port of upstream.url; a firewall or an egress proxy may \
             respond in its place",
            "对方不使用 TLS：请检查 upstream.url 的协议和端口；也可能是防火墙或出口代理代为响应"
        )),
        _ => ConnectError::with_details(
            "the TLS handshake with the upstream failed",
            format_text!(
                "the TLS handshake with the upstream failed: {}; a firewall may abort it",
                "与上游的 TLS 握手失败：{}；可能被防火墙中断",
                error
            ),
        ),
    })
}

fn certificate_error(reason: &rustls::CertificateError) -> ConnectError {
    use rustls::CertificateError as Reason;
    let rejected = |reason: &dyn std::fmt::Display| {
        ConnectError::with_details(
            "the upstream's certificate is rejected",
            format_text!("the upstream's certificate is rejected: {reason}", "上游的证书被拒绝：{reason}"),
        )
    };
    ConnectError::new(match reason {
        Reason::NotValidForNameContext { presented, .. } if presented.is_empty() => text!(
            "the upstream's certificate has no subjectAltName, and its commonName does not count: it must be issued anew \
             with one",
            "上游的证书没有 subjectAltName，而 commonName 不起作用：需要重新签发"
        ),
        Reason::NotValidForName | Reason::NotValidForNameContext { .. } => text!(
            "the upstream's certificate is not for its name: check upstream.url",
            "上游的证书与名称不符：请检查 upstream.url"
        ),
        Reason::UnknownIssuer => text!(
            "the upstream's certificate is from an untrusted authority: for a private one set upstream.ca_file",
            "上游的证书由不受信任的机构签发：私有机构请设置 upstream.ca_file"
        ),
        Reason::Expired | Reason::ExpiredContext { .. } => text!(
            "the upstream's certificate has expired: renew it, or set this machine's clock",
            "上游的证书已过期：请更新证书，或校准本机时钟"
        ),
        Reason::NotValidYet | Reason::NotValidYetContext { .. } => text!(
            "the upstream's certificate is not valid yet: set this machine's clock",
            "上游的证书尚未生效：请校准本机时钟"
        ),
        Reason::Other(other) if other.to_string() == "CaUsedAsEndEntity" => text!(
            "the upstream's certificate is self-signed and untrusted: to trust it, set upstream.ca_file to it",
            "上游的证书是自签名的，不受信任：要信任它，请把 upstream.ca_file 设为它"
        ),
        Reason::Other(other) if other.to_string().contains("UnsupportedCertVersion") => text!(
            "the upstream's certificate is X.509 version 1: it must be issued anew as version 3 with a subjectAltName",
            "上游的证书是 X.509 第 1 版：需要重新签发为第 3 版，并带 subjectAltName"
        ),
        Reason::Other(other) => return rejected(other),
        reason => return rejected(reason),
    })
}
