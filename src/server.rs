//! The way in: connections from clients, their time-outs, and an orderly end.
//!
//! [`serve`] takes what a listener accepts and hands each request to the proxy. It knows nothing of tokens or agents.

mod http1;
mod http2;
mod listen;
pub mod tls;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::http1::{bench, fuzz};
pub use self::listen::{Bound, Listener};
use crate::{io::Stream, proxy::Proxy};

/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// How long accepting rests when the system is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long, and how much, is read after the last answer from a client that was still sending.
const LINGER: Duration = Duration::from_secs(5);
/// See [`LINGER`].
const LINGER_BYTES: u64 = 256 * 1024 * 1024;
/// What a client that speaks HTTP/2 without TLS says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From a head's first byte to its last; the TLS handshake too.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// To take the next bytes of an answer.
    pub stall: Duration,
}

/// What all connections of one server share.
pub struct Server {
    /// The time-outs of a connection.
    pub timeouts: Timeouts,
    /// TLS, where clients speak it; a reload puts another one here.
    pub tls: Arc<ArcSwapOption<rustls::ServerConfig>>,
    /// Places for connections.
    pub places: Arc<Semaphore>,
    /// Turns true when no more requests are taken.
    pub stopping: watch::Receiver<bool>,
}

impl Server {
    /// A server within these bounds.
    pub fn new(
        server: &crate::config::Server,
        tls: Arc<ArcSwapOption<rustls::ServerConfig>>,
        places: Arc<Semaphore>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let timeouts =
            Timeouts { head: server.header_timeout, idle: server.idle_timeout, stall: server.body_timeout };
        Self { timeouts, tls, places, stopping }
    }
}

/// Accepts connections until the server stops. Connections in use go on; wait for them by the places they hold.
pub async fn serve(listener: Listener, server: Arc<Server>, proxy: Arc<Proxy>) {
    let mut stopping = server.stopping.clone();
    loop {
        // A place first: what is not accepted waits in the kernel, where it costs nothing.
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => return,
            accepted = accept(&listener, &server.places) => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let (server, proxy) = (server.clone(), proxy.clone());
                tokio::spawn(async move {
                    converse(stream, peer, &server, &proxy).await;
                    drop(place);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(
    listener: &Listener,
    places: &Arc<Semaphore>,
) -> io::Result<(Stream, Option<IpAddr>, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

/// Whether accepting failed because of the one connection that was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves one connection to its end. What is not needed while an HTTP/1 connection idles has a box of its own.
async fn converse(stream: Stream, peer: Option<IpAddr>, server: &Server, proxy: &Arc<Proxy>) {
    let (timeouts, stopping) = (server.timeouts, &server.stopping);
    let (stream, by_alpn) = match server.tls.load_full() {
        None => (stream, None),
        Some(config) => match Box::pin(greet(stream, peer, config, server)).await {
            Some((stream, http2)) => (stream, Some(http2)),
            None => return,
        },
    };
    if by_alpn == Some(true) {
        let serving = http2::serve(stream, BytesMut::new(), peer, timeouts, stopping.clone(), proxy);
        return Box::pin(serving).await;
    }
    let http2 = http1::serve(stream, peer, by_alpn.is_none(), timeouts, stopping.clone(), proxy).await;
    if let Some((stream, first)) = http2 {
        Box::pin(http2::serve(stream, first, peer, timeouts, stopping.clone(), proxy)).await;
    }
}

/// The TLS handshake. Whether HTTP/2 was agreed on is returned too.
async fn greet(
    stream: Stream,
    peer: Option<IpAddr>,
    config: Arc<rustls::ServerConfig>,
    server: &Server,
) -> Option<(Stream, bool)> {
    let mut stopping = server.stopping.clone();
    let greeting = timeout(server.timeouts.head, TlsAcceptor::from(config).accept(stream));
    let greeted = tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => return None,
        greeted = greeting => greeted,
    };
    match greeted {
        Ok(Ok(tls)) => {
            let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            return Some((Stream::ServerTls(Box::new(tls)), http2));
        }
        Ok(Err(error)) => {
            let (peer, error) = (peer.map(tracing::field::display), error.to_string());
            tracing::info!(peer, error, "a TLS handshake with a client failed");
        }
        Err(_) => tracing::debug!("a TLS handshake with a client took too long"),
    }
    None
}
