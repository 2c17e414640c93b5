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

use super::protobuf::{Value, Walk};
use crate::{config::Otlp, io::Stream};

/// How long one delivery may take, the connection with it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const MOST_ANSWER: usize = 64 * 1024;
/// What stands before a message of gRPC.
const FRAME: usize = 5;

const USER_AGENT: &str = concat!("wecom-proxy/", env!("CARGO_PKG_VERSION"));

/// The receiver cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The host is no name that a certificate can carry.
    #[error("admin.otlp: {0:?} is not a host name that TLS can check")]
    Name(String),
    /// The cryptographic library refused its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Where traces go.
pub struct Receiver {
    otlp: Otlp,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    kept: Option<Sender>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A batch was not taken.
#[derive(Debug)]
pub(super) enum Failure {
    /// It will never be.
    Final(String),
    /// It may be later.
    Passing {
        /// Why not now.
        reason: String,
        /// How long the receiver wants to be left alone.
        after: Option<Duration>,
    },
}

fn passing(reason: impl Into<String>) -> Failure {
    Failure::Passing { reason: reason.into(), after: None }
}

impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.otlp.fmt(f)
    }
}

impl Receiver {
    /// A receiver to which there is no connection yet.
    pub fn new(otlp: &Otlp) -> Result<Self, ReceiverError> {
        let tls = match otlp.tls {
            false => None,
            true => {
                let name = ServerName::try_from(otlp.host.clone());
                let name = name.map_err(|_| ReceiverError::Name(otlp.host.clone()))?;
                Some((TlsConnector::from(Arc::new(client_config(otlp.grpc)?)), name))
            }
        };
        Ok(Self { otlp: otlp.clone(), tls, kept: None })
    }

    /// Delivers a message; how many of its spans the receiver did not want.
    pub(super) async fn post(&mut self, message: Bytes) -> Result<u64, Failure> {
        let posted = timeout(PATIENCE, self.try_post(message)).await;
        if !matches!(posted, Ok(Ok(_) | Err(Failure::Final(_)))) {
            self.kept = None;
        }
        posted.unwrap_or_else(|_| Err(passing("it did not answer within 10 s")))
    }

    async fn try_post(&mut self, message: Bytes) -> Result<u64, Failure> {
        let request = self.request(message)?;
        if let Some(kept) = &mut self.kept {
            // A kept connection may have been closed in the meantime, which says nothing of the receiver.
            if let Ok(response) = kept.send(request.clone()).await {
                return self.judge(response).await;
            }
        }
        let broke = |error: hyper::Error| passing(format!("the connection failed: {error}"));
        let sender = self.kept.insert(dial(&self.otlp, self.tls.as_ref()).await?);
        let response = sender.send(request).await.map_err(broke)?;
        self.judge(response).await
    }

    fn request(&self, message: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
        let Otlp { tls, grpc, path, .. } = &self.otlp;
        let (authority, builder) = (self.otlp.authority(), Request::post("/"));
        let builder = builder.header(header::USER_AGENT, USER_AGENT);
        let built = if *grpc {
            let scheme = if *tls { "https" } else { "http" };
            let builder = builder.uri(format!("{scheme}://{authority}{path}")).header(header::TE, "trailers");
            builder.header(header::CONTENT_TYPE, "application/grpc").body(framed(&message).into())
        } else {
            let builder = builder.uri(path.as_str()).header(header::HOST, authority);
            builder.header(header::CONTENT_TYPE, "application/x-protobuf").body(message.into())
        };
        built.map_err(|error| Failure::Final(error.to_string()))
    }

    /// What an answer means.
    async fn judge(&self, response: Response<Incoming>) -> Result<u64, Failure> {
        let (head, body) = response.into_parts();
        let whole = Limited::new(body, MOST_ANSWER).collect().await;
        let whole = whole.map_err(|error| passing(format!("its answer broke off: {error}")))?;
        if head.status != StatusCode::OK {
            return Err(http_failure(head.status, &head.headers));
        }
        let trailers = whole.trailers().cloned();
        let message = whole.to_bytes();
        if !self.otlp.grpc {
            return Ok(rejected(&message));
        }
        // An answer without a message has its status in the head.
        match grpc_failure(trailers.as_ref().unwrap_or(&head.headers)) {
            Some(failure) => Err(failure),
            None => Ok(rejected(message.get(FRAME..).unwrap_or_default())),
        }
    }
}

impl Sender {
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

async fn dial(otlp: &Otlp, tls: Option<&(TlsConnector, ServerName<'static>)>) -> Result<Sender, Failure> {
    let failed = |error: std::io::Error| passing(format!("cannot connect: {error}"));
    let tcp = TcpStream::connect((&*otlp.host, otlp.port)).await.map_err(failed)?;
    let _ = tcp.set_nodelay(true);
    let stream = match tls {
        None => Stream::Tcp(tcp),
        Some((connector, name)) => {
            let greeted = connector.connect(name.clone(), Stream::Tcp(tcp)).await;
            let failed = |error| passing(format!("the TLS handshake failed: {error}"));
            Stream::ClientTls(Box::new(greeted.map_err(failed)?))
        }
    };
    let failed = |error: hyper::Error| passing(format!("the connection failed: {error}"));
    if otlp.grpc {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(failed)?;
        tokio::spawn(connection);
        Ok(Sender::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        tokio::spawn(connection);
        Ok(Sender::Http1(sender))
    }
}

fn client_config(grpc: bool) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![if grpc { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

/// A message of gRPC: not compressed, this long.
fn framed(message: &Bytes) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// What a status other than 200 means; these four are said to pass.
fn http_failure(status: StatusCode, headers: &HeaderMap) -> Failure {
    let reason = format!("it answered {status}");
    match status.as_u16() {
        429 | 502..=504 => {
            let after = headers.get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
            Failure::Passing { reason, after: after.map(Duration::from_secs) }
        }
        _ => Failure::Final(reason),
    }
}

/// What a status of gRPC means; `None` where it is fine.
fn grpc_failure(headers: &HeaderMap) -> Option<Failure> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text("grpc-status").and_then(|status| status.parse::<u32>().ok()) else {
        return Some(Failure::Final("its answer is not gRPC's; is it a port for HTTP?".to_owned()));
    };
    let reason = format!("it answered with status {status} of gRPC");
    match status {
        0 => None,
        // CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS.
        1 | 4 | 8 | 10 | 11 | 14 | 15 => {
            let after = text("grpc-retry-pushback-ms").and_then(|after| after.parse().ok());
            Some(Failure::Passing { reason, after: after.map(Duration::from_millis) })
        }
        _ => Some(Failure::Final(reason)),
    }
}

/// How many spans an `ExportTraceServiceResponse` says were not wanted.
fn rejected(answer: &[u8]) -> u64 {
    let partial = Walk(answer).find_map(|field| match field {
        (1, Value::Bytes(partial)) => Some(partial),
        _ => None,
    });
    let mut fields = Walk(partial.unwrap_or_default());
    let number = fields.find_map(|field| match field {
        (1, Value::Number(number)) => Some(number),
        _ => None,
    });
    // It is signed on the wire.
    number.filter(|number| i64::try_from(*number).is_ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_may_take_only_a_part() {
        assert_eq!(rejected(b""), 0);
        assert_eq!(rejected(&[0x0a, 0x03, 0x08, 0x85, 0x01]), 133);
        assert_eq!(rejected(&[0x0a, 0x04, 0x12, 0x02, b'n', b'o']), 0);
        assert_eq!(rejected(b"<html>"), 0);
    }
}
