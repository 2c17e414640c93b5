//! The HTTP client of one target, over TCP, TLS or a unix socket.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    config::{self, TargetAddress, TargetUrl},
    format_text,
    text::{Text, TextError},
    upstream::{Connector, client_tls, root_cause},
};

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
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(connector(url)?);
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

fn connector(url: &TargetUrl) -> io::Result<Connector> {
    let (tls, host, port) = match &url.address {
        TargetAddress::Unix(path) => return Ok(Connector::unix(path.clone())),
        TargetAddress::Tcp { tls, host, port } => (*tls, host, *port),
    };
    let error = |text| io::Error::other(TextError(text));
    let tls = tls.then(|| client_tls(url.ca_file.as_deref(), "to.ca_file")).transpose();
    let tls = tls.map_err(|reason| error(reason.text()))?;
    Connector::tcp(host, port, tls).map_err(|_| {
        error(format_text!("{host:?} is not a valid TLS server name", "{host:?} 不是有效的 TLS 服务器名"))
    })
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
    let connected = async { connector(url)?.connect().await.map(drop) }.await;
    connected.map_err(|error| format_text!("connection failed: {}", "连接失败：{}", error))
}
