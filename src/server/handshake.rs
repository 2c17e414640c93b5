//! What precedes the first request of a connection: the header of the PROXY protocol, and the TLS handshake.

use std::{io, net::IpAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    SHUTDOWN_GRACE_TIMEOUT, Server, client_address::Peer, client_auth::CertificateChain, proxy_protocol,
    shutdown_grace_elapsed,
};
use crate::http1::io::{RecordStream, Stream};

/// The response to HTTP without TLS.
const PLAINTEXT_RESPONSE: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 63\r\n\
    Connection: close\r\n\r\nwecom-proxy: this port speaks HTTPS; begin the URL with https:\n";
/// Maximum bytes that are discarded after it; closing the socket with unread bytes would reset the connection.
const MAX_DISCARDED_BYTES: u64 = 64 * 1024;

/// Reads the header of the PROXY protocol. Returns the client as the peer, or the peer itself if the header names none;
/// `None` after a failure, which is logged, or when the server stops.
pub(super) async fn read_proxy_header(
    stream: &mut Stream,
    peer: Option<IpAddr>,
    server: &Server,
) -> Option<Peer> {
    let mut stopping = server.stopping.clone();
    let header = timeout(server.timeouts.header, proxy_protocol::read_header(stream));
    let outcome = tokio::select! {
        () = shutdown_grace_elapsed(&mut stopping) => return None,
        outcome = header => outcome,
    };
    match outcome {
        Ok(Ok(named)) => return Some(Peer { address: named.or(peer), is_unnamed: named.is_none() }),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => log_failure(
            server,
            peer,
            "connection from a trusted proxy begins without a PROXY protocol header: let it send one, or set \
             server.proxy_protocol = false",
        ),
        _ => tracing::debug!("no PROXY protocol header received"),
    }
    None
}

/// Performs the TLS handshake. Returns the stream, whether ALPN selected HTTP/2, and the client's certificate chain;
/// `None` after a failure, which is logged, or when the server stops.
pub(super) async fn tls_handshake(
    stream: Stream,
    peer: Option<IpAddr>,
    config: Arc<rustls::ServerConfig>,
    server: &Server,
) -> Option<(Stream, bool, Option<CertificateChain>)> {
    let mut stopping = server.stopping.clone();
    let handshake = timeout(server.timeouts.header, accept_tls(stream, peer, config, server));
    let outcome = tokio::select! {
        () = shutdown_grace_elapsed(&mut stopping) => return None,
        outcome = handshake => outcome,
    };
    outcome.unwrap_or_else(|_| {
        tracing::debug!("TLS handshake timed out");
        None
    })
}

async fn accept_tls(
    mut stream: Stream,
    peer: Option<IpAddr>,
    config: Arc<rustls::ServerConfig>,
    server: &Server,
) -> Option<(Stream, bool, Option<CertificateChain>)> {
    // A record of TLS begins with a number below 32, a request with its method.
    if let Ok(Some(b'A'..=b'Z')) = stream.peek_byte().await {
        log_failure(server, peer, "plain HTTP on a TLS listener, refused: the URL must begin with https://");
        let _ = timeout(SHUTDOWN_GRACE_TIMEOUT, reject_plaintext(&mut stream)).await;
        return None;
    }
    match TlsAcceptor::from(config).accept(RecordStream::new(stream)).await {
        Ok(mut tls) => {
            tls.get_mut().0.end_handshake();
            let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let chain = tls.get_ref().1.peer_certificates().map(CertificateChain::from);
            Some((Stream::ServerTls(Box::new(tls)), http2, chain))
        }
        Err(error) => {
            log_failure(server, peer, &format!("TLS handshake failed: {error}"));
            None
        }
    }
}

async fn reject_plaintext(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(PLAINTEXT_RESPONSE.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(MAX_DISCARDED_BYTES), &mut tokio::io::sink()).await.map(drop)
}

/// Logs why a connection failed before its first request. Any client can cause this without limit, so the log is
/// throttled.
fn log_failure(server: &Server, peer: Option<IpAddr>, reason: &str) {
    if let Some(suppressed) = server.handshake_log.allow() {
        let peer = peer.map(tracing::field::display);
        let suppressed = (suppressed > 0).then_some(suppressed);
        tracing::info!(peer, suppressed, "{reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_response_declares_its_length() {
        let (head, body) = PLAINTEXT_RESPONSE.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
