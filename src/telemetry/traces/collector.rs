//! The receiver of traces: OTLP over HTTP with protobuf, or over gRPC, on one connection that is kept.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::protobuf::{FieldReader, FieldValue};
use crate::{config::OtlpConfig, http1::io::Stream};

/// How long one delivery may take, the connection with it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// What stands before a message of gRPC.
const GRPC_PREFIX_BYTES: usize = 5;

const USER_AGENT: &str = concat!("wecom-proxy/", env!("CARGO_PKG_VERSION"));

/// The receiver cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The host is no name that a certificate can carry.
    #[error("admin.otlp: {0:?} is not a host name that TLS can check")]
    InvalidHost(String),
    /// The cryptographic library refused its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Where traces go.
pub struct Collector {
    otlp: OtlpConfig,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    sender: Option<CollectorSender>,
}

enum CollectorSender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A batch was not taken.
#[derive(Debug)]
pub(super) enum ExportError {
    /// It will never be.
    Permanent(String),
    /// It may be later.
    Transient {
        /// Why not now.
        reason: String,
        /// How long the receiver wants to be left alone.
        retry_after: Option<Duration>,
    },
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
    /// A receiver to which there is no connection yet.
    pub fn new(otlp: &OtlpConfig) -> Result<Self, CollectorError> {
        let tls = match otlp.tls {
            false => None,
            true => {
                let name = ServerName::try_from(otlp.host.clone());
                let name = name.map_err(|_| CollectorError::InvalidHost(otlp.host.clone()))?;
                Some((TlsConnector::from(Arc::new(tls_config(otlp.grpc)?)), name))
            }
        };
        Ok(Self { otlp: otlp.clone(), tls, sender: None })
    }

    /// Delivers a message; how many of its spans the receiver did not want.
    pub(super) async fn export(&mut self, message: Bytes) -> Result<u64, ExportError> {
        let posted = timeout(EXPORT_TIMEOUT, self.try_export(message)).await;
        if !matches!(posted, Ok(Ok(_) | Err(ExportError::Permanent(_)))) {
            self.sender = None;
        }
        posted.unwrap_or_else(|_| Err(transient("it did not answer within 10 s")))
    }

    async fn try_export(&mut self, message: Bytes) -> Result<u64, ExportError> {
        let request = self.build_request(message)?;
        if let Some(kept) = &mut self.sender {
            // A kept connection may have been closed in the meantime, which says nothing of the receiver.
            if let Ok(response) = kept.send(request.clone()).await {
                return self.read_response(response).await;
            }
        }
        let broke = |error: hyper::Error| transient(format!("the connection failed: {error}"));
        let sender = self.sender.insert(connect(&self.otlp, self.tls.as_ref()).await?);
        let response = sender.send(request).await.map_err(broke)?;
        self.read_response(response).await
    }

    fn build_request(&self, message: Bytes) -> Result<Request<Full<Bytes>>, ExportError> {
        let OtlpConfig { tls, grpc, path, .. } = &self.otlp;
        let (authority, builder) = (self.otlp.authority(), Request::post("/"));
        let builder = builder.header(header::USER_AGENT, USER_AGENT);
        let built = if *grpc {
            let scheme = if *tls { "https" } else { "http" };
            let builder = builder.uri(format!("{scheme}://{authority}{path}")).header(header::TE, "trailers");
            builder.header(header::CONTENT_TYPE, "application/grpc").body(grpc_frame(&message).into())
        } else {
            let builder = builder.uri(path.as_str()).header(header::HOST, authority);
            builder.header(header::CONTENT_TYPE, "application/x-protobuf").body(message.into())
        };
        built.map_err(|error| ExportError::Permanent(error.to_string()))
    }

    /// What an answer means.
    async fn read_response(&self, response: Response<Incoming>) -> Result<u64, ExportError> {
        let (head, body) = response.into_parts();
        let whole = Limited::new(body, MAX_RESPONSE_BYTES).collect().await;
        let whole = whole.map_err(|error| transient(format!("its answer broke off: {error}")))?;
        if head.status != StatusCode::OK {
            return Err(http_error(head.status, &head.headers));
        }
        let trailers = whole.trailers().cloned();
        let message = whole.to_bytes();
        if !self.otlp.grpc {
            return Ok(rejected_span_count(&message));
        }
        // An answer without a message has its status in the head.
        match grpc_error(trailers.as_ref().unwrap_or(&head.headers)) {
            Some(failure) => Err(failure),
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
    let failed = |error: std::io::Error| transient(format!("cannot connect: {error}"));
    let tcp = TcpStream::connect((&*otlp.host, otlp.port)).await.map_err(failed)?;
    let _ = tcp.set_nodelay(true);
    let stream = match tls {
        None => Stream::Tcp(tcp),
        Some((connector, name)) => {
            let greeted = connector.connect(name.clone(), Stream::Tcp(tcp)).await;
            let failed = |error| transient(format!("the TLS handshake failed: {error}"));
            Stream::ClientTls(Box::new(greeted.map_err(failed)?))
        }
    };
    let failed = |error: hyper::Error| transient(format!("the connection failed: {error}"));
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

fn tls_config(grpc: bool) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![if grpc { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

/// A message of gRPC: not compressed, this long.
fn grpc_frame(message: &Bytes) -> Bytes {
    let mut framed = BytesMut::with_capacity(GRPC_PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// What a status other than 200 means; these four are said to pass.
fn http_error(status: StatusCode, headers: &HeaderMap) -> ExportError {
    let reason = format!("it answered {status}");
    match status.as_u16() {
        429 | 502..=504 => {
            let after = headers.get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
            ExportError::Transient { reason, retry_after: after.map(Duration::from_secs) }
        }
        _ => ExportError::Permanent(reason),
    }
}

/// What a status of gRPC means; `None` where it is fine.
fn grpc_error(headers: &HeaderMap) -> Option<ExportError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text("grpc-status").and_then(|status| status.parse::<u32>().ok()) else {
        return Some(ExportError::Permanent("its answer is not gRPC's; is it a port for HTTP?".to_owned()));
    };
    let reason = format!("it answered with status {status} of gRPC");
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

/// How many spans an `ExportTraceServiceResponse` says were not wanted.
fn rejected_span_count(answer: &[u8]) -> u64 {
    let partial = FieldReader(answer).find_map(|field| match field {
        (1, FieldValue::Bytes(partial)) => Some(partial),
        _ => None,
    });
    let mut fields = FieldReader(partial.unwrap_or_default());
    let number = fields.find_map(|field| match field {
        (1, FieldValue::Varint(number)) => Some(number),
        _ => None,
    });
    // It is signed on the wire.
    number.filter(|number| i64::try_from(*number).is_ok()).unwrap_or(0)
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
