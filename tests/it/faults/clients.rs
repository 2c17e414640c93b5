//! A client of any protocol, and the outcome of its requests.

use std::{fmt, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;

use crate::{
    harness::{TestClient, with_timeout},
    raw_http::RawConnection,
};

/// The protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientProtocol {
    Http10,
    Http11,
    Http2,
}

/// The outcome of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientOutcome {
    /// A complete response.
    Complete { status: u16, kind: String, retried: bool, body: Bytes },
    /// A response that is incomplete and detectable as such.
    Aborted,
}

impl ClientOutcome {
    pub(super) fn body(&self) -> &[u8] {
        match self {
            Self::Complete { body, .. } => body,
            Self::Aborted => b"",
        }
    }

    fn complete(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Self::Complete {
            status: status.as_u16(),
            kind: text("x-wecom-proxy-error").to_owned(),
            retried: !text("x-wecom-retried").is_empty(),
            body,
        }
    }
}

/// As in the tables of cases: `200`, `200 retried`, `502 upstream-broke`, `aborted`.
impl fmt::Display for ClientOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("aborted"),
            Self::Complete { status, retried: true, .. } => write!(f, "{status} retried"),
            Self::Complete { status, kind, .. } if kind.is_empty() => write!(f, "{status}"),
            Self::Complete { status, kind, .. } => write!(f, "{status} {kind}"),
        }
    }
}

/// A client with one connection, which is replaced after a failure.
pub(super) struct ProtocolClient {
    protocol: ClientProtocol,
    address: SocketAddr,
    connection: Option<OpenConnection>,
}

enum OpenConnection {
    Raw(RawConnection),
    Hyper(TestClient),
}

impl ProtocolClient {
    pub(super) fn new(protocol: ClientProtocol, address: SocketAddr) -> Self {
        Self { protocol, address, connection: None }
    }

    async fn connection(&mut self) -> &mut OpenConnection {
        if self.connection.is_none() {
            self.connection = Some(match self.protocol {
                ClientProtocol::Http10 => OpenConnection::Raw(RawConnection::connect(self.address).await),
                ClientProtocol::Http11 => {
                    OpenConnection::Hyper(TestClient::connect_http1(self.address).await)
                }
                ClientProtocol::Http2 => OpenConnection::Hyper(TestClient::connect_http2(self.address).await),
            });
        }
        self.connection.as_mut().expect("an open connection")
    }

    /// The outcome of one request through the agent `hr`.
    pub(super) async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> ClientOutcome {
        let body = body.into();
        let (outcome, keep_alive) = match self.connection().await {
            OpenConnection::Raw(connection) => request_http10(connection, method, path, &body).await,
            OpenConnection::Hyper(client) => {
                let request = Request::builder().method(method).uri(format!("/hr{path}"));
                let request = request.body(body.into()).expect("a request");
                match with_timeout(client.send(request)).await {
                    Err(_) => (ClientOutcome::Aborted, false),
                    Ok(response) => {
                        let (head, body) = response.into_parts();
                        match with_timeout(body.collect()).await {
                            Err(_) => (ClientOutcome::Aborted, false),
                            Ok(body) => {
                                let closes =
                                    head.headers.get("connection").is_some_and(|value| value == "close");
                                (
                                    ClientOutcome::complete(head.status, &head.headers, body.to_bytes()),
                                    !closes,
                                )
                            }
                        }
                    }
                }
            }
        };
        if !keep_alive {
            self.connection = None;
        }
        outcome
    }
}

/// The outcome of an HTTP/1.0 request, and whether its connection stays open.
async fn request_http10(
    connection: &mut RawConnection,
    method: &str,
    path: &str,
    body: &[u8],
) -> (ClientOutcome, bool) {
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    let head = format!("{method} /hr{path} HTTP/1.0\r\nConnection: keep-alive\r\n{length}\r\n");
    // A proxy that responds early may close before all is sent.
    let _ = connection.send([head.as_bytes(), body].concat()).await;
    let head = connection.read_head().await;
    if !head.ends_with("\r\n\r\n") {
        return (ClientOutcome::Aborted, false);
    }
    let status = head.get(9..12).and_then(|code| code.parse().ok()).expect("a status");
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
        let name: http::HeaderName = name.parse().expect("a name");
        headers.append(name, value.parse().expect("a value"));
    }
    let length = headers.get("content-length").map(|value| value.to_str().expect("digits").parse::<usize>());
    let bodiless = method == "HEAD" || matches!(status, 204 | 304);
    let (body, keep_alive) = match length {
        _ if bodiless => (Vec::new(), true),
        Some(length) => match connection.try_read_exact(length.expect("a number")).await {
            Some(body) => (body, true),
            None => return (ClientOutcome::Aborted, false),
        },
        None => match connection.read_to_end().await {
            (body, Ok(())) => (body, false),
            (_, Err(_)) => return (ClientOutcome::Aborted, false),
        },
    };
    let says_close = headers.get("connection").is_none_or(|value| value != "keep-alive");
    (
        ClientOutcome::complete(StatusCode::from_u16(status).expect("a status"), &headers, body.into()),
        keep_alive && !says_close,
    )
}
