//! A client of the proxy's listeners, of the admin listener above all: one connection for each request.

mod endpoint;

use std::{future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

pub use self::endpoint::AdminLocation;
use self::endpoint::{ListenerEndpoint, ListenerTransport};
use super::{CliError, style::visible};
use crate::{
    config::Address,
    format_text,
    http1::io::Stream,
    secret::Masked,
    text,
    text::Text,
    upstream::{client_tls, send_http1},
};

/// Bounds connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds the wait for a response; a token refresh may take as long as several calls to WeCom.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(90);
/// The environment variable with the admin key.
const KEY_VARIABLE: &str = "WECOM_PROXY_ADMIN_KEY";

/// Sends requests to a listener.
pub(super) struct ListenerClient {
    endpoint: ListenerEndpoint,
    /// Where the listener has TLS.
    trust: Option<Arc<ClientConfig>>,
    key: Option<Masked>,
}

/// A whole response.
pub(super) struct ListenerResponse {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl ListenerResponse {
    /// The JSON of a response with status 200; another one is an error with its text.
    pub(super) fn into_json(self) -> Result<Value, CliError> {
        let body = serde_json::from_slice(&self.body);
        match (self.status, body) {
            (StatusCode::OK, Ok(body)) => Ok(body),
            (StatusCode::OK, Err(_)) => Err(CliError::config(text!(
                "the response is not JSON, so this is not the admin listener of wecom-proxy: check --admin and admin.listen",
                "响应不是 JSON，说明这不是 wecom-proxy 的管理端口：请检查 --admin 和 admin.listen"
            ))),
            (status, body) => Err(response_error(status, &body.unwrap_or_default())),
        }
    }
}

/// The admin key, if the environment has one. A line break at its end, as a file has, does not belong to it.
fn key_from_env() -> Option<Masked> {
    let key = zeroize::Zeroizing::new(std::env::var(KEY_VARIABLE).ok()?);
    Some(key.trim_end_matches(['\r', '\n'])).filter(|key| !key.is_empty()).map(Masked::new)
}

/// The header with the admin key.
fn authorization(key: &Masked) -> Result<HeaderValue, CliError> {
    let invalid = || {
        CliError::config(text!(
            "WECOM_PROXY_ADMIN_KEY is not a key: it contains characters other than visible ASCII, such as a space or a line \
             break",
            "WECOM_PROXY_ADMIN_KEY 不是密钥：含有可见 ASCII 以外的字符，如空格或换行"
        ))
    };
    if !key.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid());
    }
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose())).map_err(|_| invalid())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Several mistakes are a line each.
fn visible_lines(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n")
}

/// The error for a response of the admin listener that is not 200. The statuses 4xx mean that another command line,
/// environment or configuration is needed.
fn response_error(status: StatusCode, body: &Value) -> CliError {
    let string_of = |keys: &[&str]| keys.iter().find_map(|key| body[key].as_str()).map(visible_lines);
    let is_unknown_path = status == StatusCode::NOT_FOUND
        && body["error"].as_str().is_none_or(|error| error.starts_with("unknown path"));
    let mut text = match string_of(&["failure", "error"]) {
        Some(english) => {
            let chinese = string_of(&["failure_zh", "error_zh"]).unwrap_or_else(|| english.clone());
            Text::formatted(english, chinese)
        }
        None => text!("no reason given", "没有给出原因"),
    };
    if is_unknown_path {
        text = text!(
            "this address does not know the path, so it is not the admin listener of wecom-proxy, or one of another version: \
             check --admin and admin.listen",
            "该地址没有这个路径，说明这不是 wecom-proxy 的管理端口，或版本不同：请检查 --admin 和 admin.listen"
        );
    }
    if status == StatusCode::UNAUTHORIZED {
        text = match key_from_env() {
            Some(_) => text!(
                "the admin listener refuses the key in WECOM_PROXY_ADMIN_KEY; set it to the key itself, not to its hash",
                "管理端口拒绝了 WECOM_PROXY_ADMIN_KEY 中的密钥；请把它设为密钥本身，而不是哈希"
            ),
            None => text!(
                "the admin listener requires its key; set WECOM_PROXY_ADMIN_KEY to it",
                "管理端口需要密钥；请把 WECOM_PROXY_ADMIN_KEY 设为它"
            ),
        };
    }
    if let Some(seconds) = body["next_try_in_seconds"].as_u64().filter(|seconds| *seconds > 0) {
        text =
            format_text!("{}; the proxy tries again in {seconds} s", "{}；代理将在 {seconds} 秒后重试", text);
    }
    let text = format_text!("{} ({})", "{}（{}）", text, status.as_u16());
    if status.is_client_error() { CliError::config(text) } else { CliError::other(text) }
}

impl ListenerClient {
    /// A client of the admin listener at this location.
    pub(super) fn admin(location: AdminLocation<'_>) -> Result<Self, CliError> {
        let endpoint = ListenerEndpoint::find(location)?;
        let trust = match &endpoint.transport {
            ListenerTransport::Tcp { tls: true, ca_file, .. } => {
                let tls = client_tls(ca_file.as_deref(), "--admin-ca");
                Some(tls.map_err(|error| CliError::config(error.text()))?)
            }
            _ => None,
        };
        Ok(Self { endpoint, trust, key: key_from_env() })
    }

    /// A client without a key of a listener on this machine.
    pub(super) fn local(address: &Address) -> Self {
        Self { endpoint: ListenerEndpoint::of_listener(address), trust: None, key: None }
    }

    /// The listener's address.
    pub(super) fn address(&self) -> String {
        self.endpoint.to_string()
    }

    /// Sends GET; any status is a response.
    pub(super) async fn get(&self, path: &str) -> Result<ListenerResponse, CliError> {
        self.call(Method::GET, path, RESPONSE_TIMEOUT).await
    }

    /// As [`get`](Self::get), bounded by `limit`.
    pub(super) async fn get_within(&self, path: &str, limit: Duration) -> Result<ListenerResponse, CliError> {
        self.call(Method::GET, path, limit).await
    }

    /// Sends POST; any status is a response.
    pub(super) async fn post(&self, path: &str) -> Result<ListenerResponse, CliError> {
        self.call(Method::POST, path, RESPONSE_TIMEOUT).await
    }

    /// Sends GET; the body of the response is read as it arrives.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, CliError> {
        let response = self.within(RESPONSE_TIMEOUT, self.send(Method::GET, path)).await?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let status = response.status();
        let body = self.within(RESPONSE_TIMEOUT, collect(response)).await?;
        Err(response_error(status, &serde_json::from_slice(&body).unwrap_or_default()))
    }

    async fn call(&self, method: Method, path: &str, limit: Duration) -> Result<ListenerResponse, CliError> {
        let exchange = async {
            let response = self.send(method, path).await?;
            Ok(ListenerResponse { status: response.status(), body: collect(response).await? })
        };
        self.within(limit, exchange).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        timeout(limit, work).await.unwrap_or_else(|_| {
            Err(CliError::other(format_text!(
                "no response from {} within {} s",
                "{} 在 {} 秒内没有响应",
                self.address(),
                limit.as_secs()
            )))
        })
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, CliError> {
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
            request = request.header(header::AUTHORIZATION, authorization(key)?);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(CliError::foreign)?;
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|error| self.unreachable(&error))?;
        send_http1(stream, request).await.map_err(|error| self.broken(&error))
    }

    async fn connect(&self) -> io::Result<Stream> {
        match &self.endpoint.transport {
            ListenerTransport::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
            ListenerTransport::Tcp { host, port, .. } => {
                let stream = Stream::Tcp(TcpStream::connect((host.as_str(), *port)).await?);
                let Some(trust) = &self.trust else { return Ok(stream) };
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let tls = TlsConnector::from(trust.clone()).connect(name, stream).await?;
                Ok(Stream::ClientTls(Box::new(tls)))
            }
        }
    }

    fn unreachable(&self, error: &io::Error) -> CliError {
        let hint = match (error.kind(), &self.endpoint.transport) {
            (io::ErrorKind::PermissionDenied, _) => text!(
                "; this user may not use the socket: see its mode and the rights of its directory",
                "；本用户无权使用该套接字：见其权限和所在目录的权限"
            ),
            (io::ErrorKind::InvalidData, ListenerTransport::Tcp { tls: true, ca_file: None, .. }) => text!(
                "; TLS failed: a certificate of a private authority needs --admin-ca FILE, and a listener without TLS http://",
                "；TLS 失败：私有机构签发的证书需要 --admin-ca FILE；没有 TLS 的监听请用 http://"
            ),
            (io::ErrorKind::InvalidData, ListenerTransport::Tcp { tls: true, .. }) => text!(
                "; TLS failed: the certificate must be in the file of --admin-ca or signed by one in it, and name this host",
                "；TLS 失败：证书须在 --admin-ca 的文件中，或由其中的证书签发，且含有此主机名"
            ),
            (io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, _) => text!(
                "; the proxy does not run there, or its admin.listen is another address",
                "；代理没有在那里运行，或它的 admin.listen 是另一个地址"
            ),
            _ => Text::default(),
        };
        let address = self.address();
        CliError::other(format_text!(
            "no response from {address}: {}{}",
            "{address} 没有响应：{}{}",
            error,
            hint
        ))
    }

    fn broken(&self, error: &hyper::Error) -> CliError {
        let hint = match error.is_parse() || error.is_incomplete_message() {
            true => text!("; a listener with TLS needs https://", "；有 TLS 的监听请用 https://"),
            false => Text::default(),
        };
        let address = self.address();
        CliError::other(format_text!(
            "no response from {address}: {error}{}",
            "{address} 没有响应：{error}{}",
            hint
        ))
    }
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, CliError> {
    Ok(response.into_body().collect().await.map_err(CliError::foreign)?.to_bytes())
}
