//! A client of the admin listener: one connection for each request.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    AdminLocation,
    endpoint::{AdminEndpoint, AdminTransport},
    response_error,
};
use crate::{cli::CliError, http1::io::Stream, secret::Masked, upstream};

/// Bounds connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds the wait for a response; a token refresh may take as long as several calls to WeCom.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(90);
/// The environment variable with the admin key.
const KEY_VARIABLE: &str = "WECOM_PROXY_ADMIN_KEY";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Sends requests to the admin listener.
pub(in crate::cli) struct AdminClient {
    endpoint: AdminEndpoint,
    key: Option<Masked>,
}

/// A whole response.
pub(in crate::cli) struct AdminResponse {
    pub(in crate::cli) status: StatusCode,
    pub(in crate::cli) body: Bytes,
}

impl AdminResponse {
    /// The JSON of a response with status 200; another one is an error with its text.
    pub(super) fn into_json(self) -> Result<Value, CliError> {
        let body = serde_json::from_slice(&self.body).unwrap_or_default();
        match self.status {
            StatusCode::OK => Ok(body),
            status => Err(response_error(status, &body)),
        }
    }
}

/// The admin key, if the environment has one.
pub(super) fn key_from_env() -> Option<Masked> {
    std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty()).map(Masked::new)
}

impl AdminClient {
    /// A client of the listener at this location.
    pub(in crate::cli) fn new(location: AdminLocation<'_>) -> Result<Self, CliError> {
        Ok(Self { endpoint: AdminEndpoint::find(location)?, key: key_from_env() })
    }

    /// The listener's address.
    pub(in crate::cli) fn address(&self) -> String {
        self.endpoint.to_string()
    }

    /// Sends GET; any status is a response.
    pub(in crate::cli) async fn get(&self, path: &str) -> Result<AdminResponse, CliError> {
        self.call(Method::GET, path, RESPONSE_TIMEOUT).await
    }

    /// As [`get`](Self::get), bounded by `limit`.
    pub(in crate::cli) async fn get_within(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<AdminResponse, CliError> {
        self.call(Method::GET, path, limit).await
    }

    /// Sends POST; any status is a response.
    pub(super) async fn post(&self, path: &str) -> Result<AdminResponse, CliError> {
        self.call(Method::POST, path, RESPONSE_TIMEOUT).await
    }

    /// Sends GET; the body of the response is read as it arrives.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, CliError> {
        let response = self.within(RESPONSE_TIMEOUT, self.send(Method::GET, path)).await?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let status = response.status();
        let body = self.within(RESPONSE_TIMEOUT, async { Ok(response.into_body().collect().await?) }).await?;
        Err(response_error(status, &serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
    }

    async fn call(&self, method: Method, path: &str, limit: Duration) -> Result<AdminResponse, CliError> {
        let exchange = async {
            let response = self.send(method, path).await?;
            let status = response.status();
            Ok(AdminResponse { status, body: response.into_body().collect().await?.to_bytes() })
        };
        self.within(limit, exchange).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, CliError> {
        let address = &self.endpoint;
        let timed_out =
            |_| CliError::other(format!("no response from {address} within {} s", limit.as_secs()));
        let outcome = timeout(limit, work).await.map_err(timed_out)?;
        outcome.map_err(|error| CliError::other(format!("no response from {address}: {error}")))
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, BoxError> {
        let stream = timeout(CONNECT_TIMEOUT, self.connect()).await.map_err(|_| "connecting timed out")??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.endpoint.path_prefix))
            .header(header::HOST, &self.endpoint.authority)
            .header(header::USER_AGENT, concat!("wecom-proxy/", env!("CARGO_PKG_VERSION")));
        if method == Method::POST {
            // Without it, the listener takes the request for one of another site's form.
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &self.key {
            let mut value = header::HeaderValue::try_from(format!("Bearer {}", key.expose()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        Ok(sender.send_request(request.body(Empty::<Bytes>::new())?).await?)
    }

    async fn connect(&self) -> Result<Stream, BoxError> {
        match &self.endpoint.target {
            AdminTransport::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
            AdminTransport::Tcp { host, port, tls } => {
                let stream = Stream::Tcp(TcpStream::connect((host.as_str(), *port)).await?);
                if !tls {
                    return Ok(stream);
                }
                let connector = TlsConnector::from(Arc::new(upstream::built_in_trust()?));
                let name = ServerName::try_from(host.clone())?;
                Ok(Stream::ClientTls(Box::new(connector.connect(name, stream).await?)))
            }
        }
    }
}
