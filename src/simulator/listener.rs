//! Listeners and connections: HTTP/1 and HTTP/2, plain or over TLS; connections close on request.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

use super::response::{ConnectionDropped, SimulatedBody};
use super::state::Shared;
use super::{api, control};

/// Length of the kernel's accept queue. On overflow the kernel drops the SYN instead of refusing it, so the client
/// waits a second or more for its retransmission.
const LISTEN_BACKLOG: i32 = 4096;
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the API.
pub(super) struct SimulatedConnection {
    pub(super) id: u64,
    pub(super) peer: IpAddr,
    close_requested: Notify,
}

impl SimulatedConnection {
    /// Requests that the connection closes at once.
    pub(super) fn close(&self) -> ConnectionDropped {
        self.close_requested.notify_one();
        ConnectionDropped
    }
}

/// Raises the accept queue to `LISTEN_BACKLOG`, enough for thousands of simultaneous connects.
pub(super) fn set_backlog(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).listen(LISTEN_BACKLOG)
}

/// Serves the API until `stop` changes or its sender is dropped.
pub(super) async fn serve_api(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    mut stop: watch::Receiver<()>,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    while let Some(socket) = accept(&listener, &mut stop).await {
        let (shared, acceptor, stop) = (shared.clone(), acceptor.clone(), stop.clone());
        tokio::spawn(async move {
            // An error ends only this connection; the recorded requests and the peer show what happened.
            let _ = handle_connection(shared, socket, acceptor, stop).await;
        });
    }
}

/// Serves the control address until `stop` changes or its sender is dropped.
pub(super) async fn serve_control(shared: Arc<Shared>, listener: TcpListener, mut stop: watch::Receiver<()>) {
    while let Some(socket) = accept(&listener, &mut stop).await {
        let (shared, mut stop) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| control::serve(shared.clone(), request));
            let mut builder = hyper::server::conn::http1::Builder::new();
            let serving = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                _ = serving => {}
                _ = stop.changed() => {}
            }
        });
    }
}

async fn accept(listener: &TcpListener, stop: &mut watch::Receiver<()>) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return None,
        };
        match accepted {
            Ok((socket, _)) => return Some(socket),
            // Most often EMFILE or ENFILE: the pause lets other connections close.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn handle_connection(
    shared: Arc<Shared>,
    socket: TcpStream,
    acceptor: Option<TlsAcceptor>,
    mut stop: watch::Receiver<()>,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let peer = socket.peer_addr()?.ip();
    let mut disconnect = shared.subscribe_disconnects();
    let id = shared.update(|state| state.connection_opened());
    let connection = Arc::new(SimulatedConnection { id, peer, close_requested: Notify::new() });
    let _open = OpenConnectionGuard(shared.clone());
    tokio::select! {
        served = serve_connection(shared, connection.clone(), socket, acceptor) => served,
        () = connection.close_requested.notified() => Ok(()),
        _ = disconnect.changed() => Ok(()),
        _ = stop.changed() => Ok(()),
    }
}

async fn serve_connection(
    shared: Arc<Shared>,
    connection: Arc<SimulatedConnection>,
    socket: TcpStream,
    acceptor: Option<TlsAcceptor>,
) -> io::Result<()> {
    let service = move |request| api::serve(shared.clone(), connection.clone(), request);
    match acceptor {
        None => serve_http(socket, service).await,
        Some(acceptor) => {
            serve_http(tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await??, service)
                .await
        }
    }
}

async fn serve_http<I, S, F>(socket: I, service: S) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Clone,
    F: Future<Output = Result<Response<SimulatedBody>, ConnectionDropped>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT).title_case_headers(true);
    builder.http2().timer(TokioTimer::new());
    builder.serve_connection(TokioIo::new(socket), service_fn(service)).await.map_err(io::Error::other)
}

/// Decrements the number of open connections when dropped.
struct OpenConnectionGuard(Arc<Shared>);

impl Drop for OpenConnectionGuard {
    fn drop(&mut self) {
        self.0.update(|state| state.connection_closed());
    }
}
