//! The HTTP client of one target, over TCP, TLS or a unix socket.

use std::{future::Future, io, pin::Pin, sync::Arc, task, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::pki_types::ServerName;
use tokio::{
    net::UnixStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::{
    config::{self, TargetAddress, TargetUrl},
    format_text,
    http1::io::Stream,
    text::{Text, TextError},
    upstream::{built_in_trust, ca_file_trust, tcp},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than the keep-alive time of most servers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Bounds the body of a response, which is read so that the connection can be used again.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

/// Why a request has no response, in words that name no address.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetSendError {
    #[error("connection failed: {0}")]
    Connect(String),
    #[error("the connection broke before the response was complete")]
    Broken,
    #[error("no response in time")]
    TimedOut,
    #[error("the response is larger than 1 MiB")]
    TooLarge,
}

/// A target's response.
pub(super) struct TargetResponse {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// The client of one target, with its pool of connections. Requests must be sent on one and the same runtime.
pub(super) struct TargetClient {
    client: Client<Connector, Full<Bytes>>,
    authority: String,
}

impl TargetClient {
    pub(super) fn new(url: &TargetUrl) -> io::Result<Self> {
        let connector = Connector(Arc::new(Destination::new(url)?));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(connector);
        Ok(Self { client, authority: authority(&url.address) })
    }

    /// A request builder for a path and query of this target.
    pub(super) fn post(&self, path_and_query: &str) -> http::request::Builder {
        // The connector knows itself whether it connects by TLS.
        Request::post(format!("http://{}{path_and_query}", self.authority))
    }

    /// Sends a request and reads the response, by the deadline. Redirects are not followed.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<TargetResponse, TargetSendError> {
        timeout_at(deadline, self.try_send(request)).await.unwrap_or(Err(TargetSendError::TimedOut))
    }

    async fn try_send(&self, request: Request<Full<Bytes>>) -> Result<TargetResponse, TargetSendError> {
        let response = self.client.request(request).await.map_err(|error| match error.is_connect() {
            true => TargetSendError::Connect(root_cause(&error)),
            false => TargetSendError::Broken,
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
        let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
            true => TargetSendError::TooLarge,
            false => TargetSendError::Broken,
        })?;
        Ok(TargetResponse { status, body: body.to_bytes() })
    }
}

/// The innermost cause: the outer ones only say that connecting failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The value of `Host`.
fn authority(address: &TargetAddress) -> String {
    match address {
        TargetAddress::Unix(_) => "localhost".to_owned(),
        TargetAddress::Tcp { tls, host, port } => {
            let default_port = if *tls { 443 } else { 80 };
            if *port == default_port { config::bracketed(host) } else { config::authority(host, *port) }
        }
    }
}

/// Why a target cannot be connected to, in words that name no address. Sends no request.
pub async fn probe_target(url: &TargetUrl) -> Result<(), Text> {
    let connected = async { Destination::new(url)?.connect().await.map(drop) }.await;
    connected.map_err(|error| format_text!("connection failed: {}", "连接失败：{}", error))
}

/// Connects to one address, whatever the URI says.
#[derive(Clone)]
struct Connector(Arc<Destination>);

enum Destination {
    Tcp { host: String, port: u16, tls: Option<(TlsConnector, ServerName<'static>)> },
    Unix(std::path::PathBuf),
}

impl Destination {
    fn new(url: &TargetUrl) -> io::Result<Self> {
        Ok(match &url.address {
            TargetAddress::Unix(path) => Self::Unix(path.clone()),
            TargetAddress::Tcp { tls, host, port } => {
                let tls = match tls {
                    false => None,
                    true => {
                        let name = ServerName::try_from(host.clone()).map_err(|_| {
                            io::Error::other(TextError(format_text!(
                                "{host:?} is not a valid TLS server name",
                                "{host:?} 不是有效的 TLS 服务器名"
                            )))
                        })?;
                        let config = match &url.ca_file {
                            None => built_in_trust().map(Arc::new).map_err(io::Error::other)?,
                            Some(path) => ca_file_trust(path, "to.ca_file")
                                .map_err(|error| io::Error::other(TextError(error.text())))?,
                        };
                        Some((TlsConnector::from(config), name))
                    }
                };
                Self::Tcp { host: host.clone(), port: *port, tls }
            }
        })
    }

    async fn connect(&self) -> io::Result<Stream> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let connecting = async {
            match self {
                Self::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
                Self::Tcp { host, port, tls } => {
                    let tcp = tcp::connect(host, *port, deadline).await;
                    let tcp = tcp.map_err(|error| io::Error::other(TextError(error.text().clone())))?;
                    let _ = tcp.set_nodelay(true);
                    let stream = Stream::Tcp(tcp);
                    match tls {
                        None => Ok(stream),
                        Some((connector, name)) => {
                            let tls = connector.connect(name.clone(), stream).await?;
                            Ok(Stream::ClientTls(Box::new(tls)))
                        }
                    }
                }
            }
        };
        timeout_at(deadline, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let destination = self.0.clone();
        Box::pin(async move { destination.connect().await.map(TokioIo::new) })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
