//! Connects HTTP clients other than the proxy's own to one address, over TCP, TLS or a unix socket.

use std::{error::Error, future::Future, io, path::PathBuf, pin::Pin, sync::Arc, task, time::Duration};

use http::{Request, Response, Uri};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{
    ClientConfig,
    pki_types::{InvalidDnsNameError, ServerName},
};
use tokio::{
    net::UnixStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::tcp;
use crate::{format_text, http1::io::Stream, text::TextError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to one address, whatever the URI says.
#[derive(Clone)]
pub struct Connector(Arc<Destination>);

enum Destination {
    Tcp { host: String, port: u16, tls: Option<(TlsConnector, ServerName<'static>)> },
    Unix(PathBuf),
}

impl Connector {
    /// Connects to a unix socket.
    pub fn unix(path: PathBuf) -> Self {
        Self(Arc::new(Destination::Unix(path)))
    }

    /// Connects to a host; by TLS if there is a configuration of it, for which the host must be a valid name.
    pub fn tcp(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> Result<Self, InvalidDnsNameError> {
        let host = host.to_owned();
        let tls = match tls {
            None => None,
            Some(config) => Some((TlsConnector::from(config), ServerName::try_from(host.clone())?)),
        };
        Ok(Self(Arc::new(Destination::Tcp { host, port, tls })))
    }

    /// Connects within [`CONNECT_TIMEOUT`].
    pub async fn connect(&self) -> io::Result<Stream> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let connecting = async {
            match &*self.0 {
                Destination::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
                Destination::Tcp { host, port, tls } => {
                    let tcp = tcp::connect(host, *port, deadline).await;
                    let tcp = tcp.map_err(|error| io::Error::other(TextError(error.text().clone())))?;
                    let _ = tcp.set_nodelay(true);
                    let Some((connector, name)) = tls else { return Ok(Stream::Tcp(tcp)) };
                    let tls = connector.connect(name.clone(), Stream::Tcp(tcp)).await.map_err(tls_error)?;
                    Ok(Stream::ClientTls(Box::new(tls)))
                }
            }
        };
        timeout_at(deadline, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn tls_error(error: io::Error) -> io::Error {
    io::Error::other(TextError(format_text!("TLS handshake failed: {}", "TLS 握手失败：{}", error)))
}

/// Sends one request of HTTP/1 on a connection of its own, which ends with the response. Errors: hyper's.
pub async fn send_http1<B>(stream: Stream, request: Request<B>) -> hyper::Result<Response<Incoming>>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// The innermost cause of a client's error: the outer ones only say that connecting failed.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
