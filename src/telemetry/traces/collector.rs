//! The client of the OTLP collector: HTTP with protobuf or gRPC, on one reused connection.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::{
    config::{OtlpConfig, TracesConfig},
    display_text, format_text,
    http1::io::Stream,
    secret::Masked,
    text::Text,
    upstream::{UpstreamSetupError, built_in_trust, ca_file_trust, tcp},
};

/// Bounds one export, connect included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the body of a response.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// The prefix of a gRPC message: compression flag and length.
const GRPC_PREFIX_BYTES: usize = 5;

const USER_AGENT: &str = concat!("wecom-proxy/", env!("CARGO_PKG_VERSION"));

/// The collector's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The host is not a name that a certificate can contain.
    InvalidHost(String),
    /// The certificates cannot be read.
    Certificate(#[from] UpstreamSetupError),
    /// rustls refused the cryptographic provider's defaults.
    Tls(#[from] rustls::Error),
}

display_text!(CollectorError);

impl CollectorError {
    /// The key of the file, and what is wrong with it.
    pub fn text(&self) -> Text {
        match self {
            Self::InvalidHost(host) => format_text!(
                "admin.otlp: {host:?} is not a host name that TLS can check",
                "admin.otlp：{host:?} 不是 TLS 能校验的主机名"
            ),
            Self::Certificate(error) => format_text!(
                "the certificates to check the OpenTelemetry collector with cannot be used: {}",
                "用于校验 OpenTelemetry 收集器的证书不可用：{}",
                error
            ),
            Self::Tls(error) => format_text!("TLS cannot be set up: {error}", "无法设置 TLS：{error}"),
        }
    }
}

/// The client of the collector.
pub struct Collector {
    otlp: OtlpConfig,
    /// Sent with each export.
    headers: Vec<(String, Masked)>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    sender: Option<CollectorSender>,
}

enum CollectorSender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A batch was not accepted.
#[derive(Debug)]
pub(super) enum ExportError {
    /// A retry would fail too.
    Permanent(String),
    /// A retry may succeed.
    Transient {
        /// The cause.
        reason: String,
        /// The delay that the collector asks for.
        retry_after: Option<Duration>,
    },
}

fn permanent(reason: impl Into<String>) -> ExportError {
    ExportError::Permanent(reason.into())
}

fn transient(reason: impl Into<String>) -> ExportError {
    ExportError::Transient { reason: reason.into(), retry_after: None }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.otlp.fmt(f)
    }
}

impl Collector {
    /// A client without a connection.
    pub fn new(
        TracesConfig { collector: otlp, headers, ca_file, .. }: &TracesConfig,
    ) -> Result<Self, CollectorError> {
        let tls = match otlp.tls {
            false => None,
            true => {
                let name = ServerName::try_from(otlp.host.clone());
                let name = name.map_err(|_| CollectorError::InvalidHost(otlp.host.clone()))?;
                Some((TlsConnector::from(Arc::new(tls_config(otlp.grpc, ca_file.as_deref())?)), name))
            }
        };
        Ok(Self { otlp: otlp.clone(), headers: headers.clone(), tls, sender: None })
    }

    /// Sends a message. Returns how many of its spans the collector rejected.
    pub(super) async fn export(&mut self, message: Bytes) -> Result<u64, ExportError> {
        let result = timeout(EXPORT_TIMEOUT, self.try_export(message)).await;
        if !matches!(result, Ok(Ok(_) | Err(ExportError::Permanent(_)))) {
            self.sender = None;
        }
        result.unwrap_or_else(|_| Err(transient("no response within 10 s")))
    }

    async fn try_export(&mut self, message: Bytes) -> Result<u64, ExportError> {
        let request = self.build_request(message)?;
        if let Some(sender) = &mut self.sender {
            // An error on a reused connection is not reported: the collector may just have closed it while idle.
            if let Ok(response) = sender.send(request.clone()).await {
                return self.read_response(response).await;
            }
        }
        let failed = |error: hyper::Error| transient(format!("connection failed: {error}"));
        let sender = self.sender.insert(connect(&self.otlp, self.tls.as_ref()).await?);
        let response = sender.send(request).await.map_err(failed)?;
        self.read_response(response).await
    }

    fn build_request(&self, message: Bytes) -> Result<Request<Full<Bytes>>, ExportError> {
        let OtlpConfig { tls, grpc, path, .. } = &self.otlp;
        let (authority, builder) = (self.otlp.authority(), Request::post("/"));
        let mut builder = builder.header(header::USER_AGENT, USER_AGENT);
        for (name, value) in &self.headers {
            let mut value =
                HeaderValue::from_str(value.expose()).map_err(|_| permanent("a header is invalid"))?;
            value.set_sensitive(true);
            builder = builder.header(name, value);
        }
        let request = if *grpc {
            let scheme = if *tls { "https" } else { "http" };
            let builder = builder.uri(format!("{scheme}://{authority}{path}")).header(header::TE, "trailers");
            builder.header(header::CONTENT_TYPE, "application/grpc").body(grpc_frame(&message).into())
        } else {
            let builder = builder.uri(path.as_str()).header(header::HOST, authority);
            builder.header(header::CONTENT_TYPE, "application/x-protobuf").body(message.into())
        };
        request.map_err(|error| ExportError::Permanent(error.to_string()))
    }

    /// Evaluates a response. Returns how many spans the collector rejected.
    async fn read_response(&self, response: Response<Incoming>) -> Result<u64, ExportError> {
        let (head, body) = response.into_parts();
        let collected = Limited::new(body, MAX_RESPONSE_BYTES).collect().await;
        let collected = collected.map_err(|error| transient(format!("response body incomplete: {error}")))?;
        if head.status != StatusCode::OK {
            return Err(http_error(head.status, &head.headers));
        }
        let trailers = collected.trailers().cloned();
        let message = collected.to_bytes();
        if !self.otlp.grpc {
            return Ok(rejected_span_count(&message));
        }
        // A response without a message has its status in the headers (trailers-only).
        match grpc_error(trailers.as_ref().unwrap_or(&head.headers)) {
            Some(error) => Err(error),
            None => Ok(rejected_span_count(message.get(GRPC_PREFIX_BYTES..).unwrap_or_default())),
        }
    }
}

impl CollectorSender {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

async fn connect(
    otlp: &OtlpConfig,
    tls: Option<&(TlsConnector, ServerName<'static>)>,
) -> Result<CollectorSender, ExportError> {
    let connected = tcp::connect(&otlp.host, otlp.port, Instant::now() + EXPORT_TIMEOUT).await;
    let tcp = connected.map_err(|error| transient(format!("cannot connect: {error}")))?;
    let _ = tcp.set_nodelay(true);
    let stream = match tls {
        None => Stream::Tcp(tcp),
        Some((connector, name)) => {
            let stream = connector.connect(name.clone(), Stream::Tcp(tcp)).await;
            let failed = |error| transient(format!("TLS handshake failed: {error}"));
            Stream::ClientTls(Box::new(stream.map_err(failed)?))
        }
    };
    let failed = |error: hyper::Error| transient(format!("connection failed: {error}"));
    if otlp.grpc {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(failed)?;
        tokio::spawn(connection);
        Ok(CollectorSender::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        tokio::spawn(connection);
        Ok(CollectorSender::Http1(sender))
    }
}

fn tls_config(grpc: bool, ca_file: Option<&Path>) -> Result<ClientConfig, CollectorError> {
    let mut config = match ca_file {
        None => built_in_trust()?,
        Some(path) => Arc::unwrap_or_clone(ca_file_trust(path, "OTEL_EXPORTER_OTLP_CERTIFICATE")?),
    };
    config.alpn_protocols = vec![if grpc { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

/// A gRPC message: compression flag 0, length, content.
fn grpc_frame(message: &Bytes) -> Bytes {
    let mut framed = BytesMut::with_capacity(GRPC_PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// The error of a status other than 200. OTLP/HTTP defines four of them as retryable.
fn http_error(status: StatusCode, headers: &HeaderMap) -> ExportError {
    let reason = format!("HTTP status {status}");
    match status.as_u16() {
        429 | 502..=504 => {
            let after = headers.get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
            ExportError::Transient { reason, retry_after: after.map(Duration::from_secs) }
        }
        _ => ExportError::Permanent(reason),
    }
}

/// The error of a gRPC status; `None` for OK.
fn grpc_error(headers: &HeaderMap) -> Option<ExportError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text("grpc-status").and_then(|status| status.parse::<u32>().ok()) else {
        return Some(ExportError::Permanent("response is not gRPC; the port may be OTLP/HTTP".to_owned()));
    };
    let reason = format!("gRPC status {status}");
    match status {
        0 => None,
        // CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS.
        1 | 4 | 8 | 10 | 11 | 14 | 15 => {
            let after = text("grpc-retry-pushback-ms").and_then(|after| after.parse().ok());
            Some(ExportError::Transient { reason, retry_after: after.map(Duration::from_millis) })
        }
        _ => Some(ExportError::Permanent(reason)),
    }
}

/// The number of rejected spans in an `ExportTraceServiceResponse`.
fn rejected_span_count(response: &[u8]) -> u64 {
    let response = ExportTraceServiceResponse::decode(response).unwrap_or_default();
    response.partial_success.and_then(|partial| u64::try_from(partial.rejected_spans).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_span_count_reads_partial_success() {
        assert_eq!(rejected_span_count(b""), 0);
        assert_eq!(rejected_span_count(&[0x0a, 0x03, 0x08, 0x85, 0x01]), 133);
        assert_eq!(rejected_span_count(&[0x0a, 0x04, 0x12, 0x02, b'n', b'o']), 0);
        assert_eq!(rejected_span_count(b"<html>"), 0);
    }
}
