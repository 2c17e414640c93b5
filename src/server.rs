//! The way in: connections from clients, their time-outs, and an orderly end.
//!
//! [`serve`] takes what a listener accepts and hands each request to the proxy. It knows nothing of tokens or agents.

mod listen;
mod streams;
pub mod tls;
mod wire;

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

pub use self::listen::{Bound, Listener};
use self::{
    streams::Streams,
    wire::{ClientStream, Timeouts},
};
use crate::{io::Stream, link::Link, proxy::Proxy};

/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// Streams that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 256;
/// How long accepting rests when the system is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a client that speaks HTTP/2 without TLS says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
            Ok((stream, link, place)) => {
                let (server, proxy) = (server.clone(), proxy.clone());
                tokio::spawn(async move {
                    converse(stream, link, &server, &proxy).await;
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
) -> io::Result<(Stream, Link, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, local, peer) = listener.accept().await?;
    Ok((stream, Link::new(local, peer), place))
}

/// Whether accepting failed because of the one connection that was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves one connection to its end.
async fn converse(stream: Stream, link: Link, server: &Server, proxy: &Arc<Proxy>) {
    let mut stopping = server.stopping.clone();
    let secure = server.tls.load_full();
    let stream = match secure {
        None => stream,
        Some(config) => {
            let greeting = timeout(server.timeouts.head, TlsAcceptor::from(config).accept(stream));
            let greeted = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                greeted = greeting => greeted,
            };
            match greeted {
                Ok(Ok(tls)) => Stream::ServerTls(Box::new(tls)),
                Ok(Err(error)) => {
                    let (peer, error) = (link.peer().map(tracing::field::display), error.to_string());
                    return tracing::info!(peer, error, "a TLS handshake with a client failed");
                }
                Err(_) => return tracing::debug!("a TLS handshake with a client took too long"),
            }
        }
    };
    let by_alpn = match &stream {
        Stream::ServerTls(tls) => Some(tls.get_ref().1.alpn_protocol() == Some(b"h2")),
        _ => None,
    };
    let mut client = ClientStream::new(stream, link.clone(), server.timeouts);
    // Until its first bytes are here a connection is idle, whatever protocol TLS agreed on.
    let begins = tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => return,
        begins = timeout(server.timeouts.idle, client.begins_with(PREFACE)) => begins,
    };
    let http2 = match begins {
        Ok(Ok(begins)) => by_alpn.unwrap_or(begins),
        Ok(Err(error)) => return tracing::debug!(%error, "a connection ended before its first request"),
        Err(_) => return,
    };
    let outcome = match http2 {
        true => serve_http2(client, &link, server, proxy).await,
        false => serve_http1(client, &link, server, proxy).await,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection ended");
    }
}

async fn serve_http1(
    client: ClientStream,
    link: &Link,
    server: &Server,
    proxy: &Arc<Proxy>,
) -> hyper::Result<()> {
    let service =
        service_fn(
            |request| async move { Ok::<_, std::convert::Infallible>(proxy.handle(request, link).await) },
        );
    // The time-outs are the stream's own: hyper's single one would serve for idling and for slow heads alike.
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = std::pin::pin!(connection);
    let mut stopping = server.stopping.clone();
    tokio::select! {
        outcome = connection.as_mut() => return outcome,
        _ = stopping.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

async fn serve_http2(
    mut client: ClientStream,
    link: &Link,
    server: &Server,
    proxy: &Arc<Proxy>,
) -> hyper::Result<()> {
    client.speak_http2();
    let service = service_fn(|request| {
        // Each stream is a task of its own.
        let (proxy, link) = (proxy.clone(), link.clone());
        async move { Ok::<_, std::convert::Infallible>(proxy.handle(request, &link).await) }
    });
    let connection = http2::Builder::new(Streams(server.timeouts.stall))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(server.timeouts.idle)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = std::pin::pin!(connection);
    let mut stopping = server.stopping.clone();
    tokio::select! {
        outcome = connection.as_mut() => return outcome,
        _ = stopping.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
