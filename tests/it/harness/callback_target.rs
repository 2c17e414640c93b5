//! A target of callbacks: an HTTP server that records what it receives and responds as the test says.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_rustls::TlsAcceptor;

use super::wait_for;

/// A received request.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub target: String,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Delivery {
    /// The value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }
}

/// How the target responds.
#[derive(Debug, Clone)]
pub enum TargetResponse {
    /// With this status and body, after a delay.
    Respond(u16, Bytes, Duration),
    /// Never.
    Hang,
}

impl TargetResponse {
    pub fn status(status: u16) -> Self {
        Self::Respond(status, Bytes::new(), Duration::ZERO)
    }

    pub fn body(body: impl Into<Bytes>) -> Self {
        Self::Respond(200, body.into(), Duration::ZERO)
    }
}

#[derive(Default)]
struct Script {
    received: Vec<Delivery>,
    /// The responses to the next requests; then 200.
    responses: VecDeque<TargetResponse>,
    in_flight: usize,
    max_in_flight: usize,
}

/// A target. Its tasks end with the test's runtime.
#[derive(Clone)]
pub struct CallbackTarget {
    pub address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl CallbackTarget {
    /// A target on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let target = Self { address, script: Arc::default() };
        let script = target.script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone()));
            }
        });
        target
    }

    /// A target on a free port, by TLS.
    pub async fn start_tls(config: Arc<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (target, acceptor) = (Self { address, script: Arc::default() }, TlsAcceptor::from(config));
        let script = target.script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, acceptor) = (script.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, script).await;
                    }
                });
            }
        });
        target
    }

    /// A target on a unix socket.
    pub fn start_unix(path: &std::path::Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let target = Self { address: ([127, 0, 0, 1], 0).into(), script: Arc::default() };
        let script = target.script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone()));
            }
        });
        target
    }

    /// Sets the responses to the next requests.
    pub fn respond(&self, responses: impl IntoIterator<Item = TargetResponse>) {
        self.lock(|script| script.responses.extend(responses));
    }

    /// What was received so far.
    pub fn received(&self) -> Vec<Delivery> {
        self.lock(|script| script.received.clone())
    }

    /// The most requests that were open at the same time.
    pub fn max_in_flight(&self) -> usize {
        self.lock(|script| script.max_in_flight)
    }

    /// Waits until this many requests were received.
    pub async fn wait_for(&self, count: usize) -> Vec<Delivery> {
        wait_for("a delivery", async || self.received().len() >= count).await;
        self.received()
    }

    fn lock<T>(&self, access: impl FnOnce(&mut Script) -> T) -> T {
        access(&mut self.script.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, script: Arc<Mutex<Script>>) {
    let service = service_fn(|request| respond(request, script.clone()));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(
    request: Request<Incoming>,
    script: Arc<Mutex<Script>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let response = {
        let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
        script.received.push(Delivery { target: head.uri.to_string(), headers: head.headers, body });
        script.in_flight += 1;
        script.max_in_flight = script.max_in_flight.max(script.in_flight);
        script.responses.pop_front()
    };
    let (status, body) = match response {
        None => (200, Bytes::new()),
        Some(TargetResponse::Respond(status, body, delay)) => {
            tokio::time::sleep(delay).await;
            (status, body)
        }
        Some(TargetResponse::Hang) => std::future::pending().await,
    };
    script.lock().unwrap_or_else(PoisonError::into_inner).in_flight -= 1;
    let response = Response::builder().status(status).body(Full::from(body));
    Ok(response.expect("a response"))
}
