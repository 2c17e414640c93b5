//! The client of the OTLP collector: HTTP with protobuf or gRPC, on one reused connection.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::time::timeout;

use crate::{
    config::{OtlpConfig, TracesConfig},
    display_text, format_text,
    secret::Masked,
    text::Text,
    upstream::{Connector, UpstreamSetupError, client_tls, root_cause},
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
        }
    }
}

/// The client of the collector.
pub struct Collector {
    otlp: OtlpConfig,
    /// Sent with each export.
    headers: Vec<(String, Masked)>,
    connector: Connector,
    /// Has one connection, which is reused.
    client: Client<Connector, Full<Bytes>>,
    /// It has responded on that connection.
    has_responded: bool,
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
        let OtlpConfig { tls, host, port, grpc, .. } = otlp;
        let client_tls = || client_tls(ca_file.as_deref(), "OTEL_EXPORTER_OTLP_CERTIFICATE");
        let mut tls = tls.then(client_tls).transpose()?;
        if let Some(tls) = &mut tls {
            let protocol: &[u8] = if *grpc { b"h2" } else { b"http/1.1" };
            Arc::make_mut(tls).alpn_protocols = vec![protocol.to_vec()];
        }
        let invalid = |_| CollectorError::InvalidHost(host.clone());
        let connector = Connector::tcp(host, *port, tls).map_err(invalid)?;
        let client = unconnected_client(&connector, *grpc);
        Ok(Self { otlp: otlp.clone(), headers: headers.clone(), connector, client, has_responded: false })
    }

    /// Sends a message. Returns how many of its spans the collector rejected.
    pub(super) async fn export(&mut self, message: Bytes) -> Result<u64, ExportError> {
        let result = timeout(EXPORT_TIMEOUT, self.try_export(message)).await;
        if !matches!(result, Ok(Ok(_) | Err(ExportError::Permanent(_)))) {
            self.disconnect();
        }
        result.unwrap_or_else(|_| Err(transient("no response within 10 s")))
    }

    async fn try_export(&mut self, message: Bytes) -> Result<u64, ExportError> {
        let request = self.build_request(message)?;
        let mut sent = self.client.request(request.clone()).await;
        if self.has_responded && sent.as_ref().is_err_and(|error| !error.is_connect()) {
            // The collector may just have closed the connection while it was idle.
            self.disconnect();
            sent = self.client.request(request).await;
        }
        let response = sent.map_err(|error| match error.is_connect() {
            true => transient(root_cause(&error)),
            false => transient(format!("connection failed: {}", root_cause(&error))),
        })?;
        self.has_responded = true;
        self.read_response(response).await
    }

    /// Makes the next request open a connection.
    fn disconnect(&mut self) {
        self.client = unconnected_client(&self.connector, self.otlp.grpc);
        self.has_responded = false;
    }

    fn build_request(&self, message: Bytes) -> Result<Request<Full<Bytes>>, ExportError> {
        let OtlpConfig { tls, grpc, path, .. } = &self.otlp;
        let scheme = if *tls { "https" } else { "http" };
        let uri = format!("{scheme}://{}{path}", self.otlp.authority());
        let mut builder = Request::post(uri).header(header::USER_AGENT, USER_AGENT);
        for (name, value) in &self.headers {
            let mut value =
                HeaderValue::from_str(value.expose()).map_err(|_| permanent("a header is invalid"))?;
            value.set_sensitive(true);
            builder = builder.header(name, value);
        }
        let request = if *grpc {
            let builder = builder.header(header::TE, "trailers");
            builder.header(header::CONTENT_TYPE, "application/grpc").body(grpc_frame(&message).into())
        } else {
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

fn unconnected_client(connector: &Connector, grpc: bool) -> Client<Connector, Full<Bytes>> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.http2_only(grpc).pool_max_idle_per_host(1).build(connector.clone())
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
