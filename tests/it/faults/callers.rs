//! A caller of any protocol, and what it makes of an answer.

use std::{fmt, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;

use crate::{
    stage::{Caller, soon},
    wire::Line,
};

/// What a caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tongue {
    Http10,
    Http11,
    Http2,
}

/// What a caller was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A whole answer.
    Whole { status: u16, kind: String, retried: bool, body: Bytes },
    /// An answer that is not whole, and does not look it.
    BrokenOff,
}

impl Told {
    pub(super) fn body(&self) -> &[u8] {
        match self {
            Self::Whole { body, .. } => body,
            Self::BrokenOff => b"",
        }
    }

    fn whole(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Self::Whole {
            status: status.as_u16(),
            kind: text("x-wecom-proxy-error").to_owned(),
            retried: !text("x-wecom-retried").is_empty(),
            body,
        }
    }
}

/// As a table has it: `200`, `200 retried`, `502 upstream-broke`, `broken off`.
impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BrokenOff => f.write_str("broken off"),
            Self::Whole { status, retried: true, .. } => write!(f, "{status} retried"),
            Self::Whole { status, kind, .. } if kind.is_empty() => write!(f, "{status}"),
            Self::Whole { status, kind, .. } => write!(f, "{status} {kind}"),
        }
    }
}

/// One connection of a caller. A broken one is replaced.
pub(super) struct Asker {
    tongue: Tongue,
    address: SocketAddr,
    open: Option<Open>,
}

enum Open {
    Old(Line),
    New(Caller),
}

impl Asker {
    pub(super) fn new(tongue: Tongue, address: SocketAddr) -> Self {
        Self { tongue, address, open: None }
    }

    async fn connected(&mut self) -> &mut Open {
        if self.open.is_none() {
            self.open = Some(match self.tongue {
                Tongue::Http10 => Open::Old(Line::to(self.address).await),
                Tongue::Http11 => Open::New(Caller::http1(self.address).await),
                Tongue::Http2 => Open::New(Caller::http2(self.address).await),
            });
        }
        self.open.as_mut().expect("it was opened")
    }

    /// One request through the agent `hr`, and what came of it.
    pub(super) async fn ask(&mut self, method: &str, path: &str, body: impl Into<Bytes>) -> Told {
        let body = body.into();
        let (told, kept) = match self.connected().await {
            Open::Old(line) => old(line, method, path, &body).await,
            Open::New(caller) => {
                let request = Request::builder().method(method).uri(format!("/hr{path}"));
                let request = request.body(body.into()).expect("a request");
                match soon(caller.send(request)).await {
                    Err(_) => (Told::BrokenOff, false),
                    Ok(response) => {
                        let (head, body) = response.into_parts();
                        match soon(body.collect()).await {
                            Err(_) => (Told::BrokenOff, false),
                            Ok(body) => {
                                let closes =
                                    head.headers.get("connection").is_some_and(|value| value == "close");
                                (Told::whole(head.status, &head.headers, body.to_bytes()), !closes)
                            }
                        }
                    }
                }
            }
        };
        if !kept {
            self.open = None;
        }
        told
    }
}

/// A request of HTTP/1.0, and whether its connection is kept.
async fn old(line: &mut Line, method: &str, path: &str, body: &[u8]) -> (Told, bool) {
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    let head = format!("{method} /hr{path} HTTP/1.0\r\nConnection: keep-alive\r\n{length}\r\n");
    // A proxy that answers early may close before all was sent.
    let _ = line.say([head.as_bytes(), body].concat()).await;
    let head = line.head().await;
    if !head.ends_with("\r\n\r\n") {
        return (Told::BrokenOff, false);
    }
    let status = head.get(9..12).and_then(|code| code.parse().ok()).expect("a status");
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
        let name: http::HeaderName = name.parse().expect("a name");
        headers.append(name, value.parse().expect("a value"));
    }
    let length = headers.get("content-length").map(|value| value.to_str().expect("digits").parse::<usize>());
    let bodiless = method == "HEAD" || matches!(status, 204 | 304);
    let (body, kept) = match length {
        _ if bodiless => (Vec::new(), true),
        Some(length) => match line.whole(length.expect("a number")).await {
            Some(body) => (body, true),
            None => return (Told::BrokenOff, false),
        },
        None => match line.rest().await {
            (body, Ok(())) => (body, false),
            (_, Err(_)) => return (Told::BrokenOff, false),
        },
    };
    let says_close = headers.get("connection").is_none_or(|value| value != "keep-alive");
    (Told::whole(StatusCode::from_u16(status).expect("a status"), &headers, body.into()), kept && !says_close)
}
