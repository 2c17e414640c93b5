//! Errors of an exchange with the upstream: the cause, and whether the request may have been processed.

use std::{borrow::Cow, io};

use super::connect_error::ConnectError;
use crate::{
    display_text, format_text, http1::framing::FramingError, request_body::RequestBodyError, text, text::Text,
};

/// Why there is no complete response, and whether the upstream may have processed the request.
#[derive(Debug)]
pub struct UpstreamError {
    /// Cause of the failure.
    pub kind: UpstreamErrorKind,
    /// Whether the request was sent.
    pub delivery: Delivery,
}

/// Whether the upstream may have received any part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// No byte was sent: the upstream cannot have processed it.
    NotSent,
    /// Some or all of it was sent.
    MaybeSent,
}

/// Cause of a failed exchange. The texts contain no URL, query or header of the request.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamErrorKind {
    /// Connecting failed.
    Unreachable(ConnectError),
    /// The connection closed before the first byte of the response.
    ClosedBeforeResponse,
    /// The connection closed within the response.
    Truncated,
    /// The connection failed within the response.
    Io(io::Error),
    /// No response head within `upstream.response_timeout`.
    ResponseTimeout,
    /// No body data for longer than `upstream.body_timeout`.
    BodyTimeout,
    /// The response head is malformed or unacceptable.
    InvalidHead(&'static Text),
    /// The response body has ambiguous or malformed framing.
    Framing(#[source] FramingError),
    /// The upstream closed the HTTP/2 connection with an error before the response.
    GoAway(String),
    /// The upstream requires HTTP/1.1 (HTTP_1_1_REQUIRED, RFC 9113 §7): it did not process the request.
    Http11Required,
    /// The upstream sent REFUSED_STREAM: it did not process the request (RFC 9113 §8.7).
    RefusedStream,
    /// An HTTP/2 protocol or stream error.
    Http2(String),
    /// Reading the request body from the client failed.
    RequestBody(RequestBodyError),
}

display_text!(UpstreamErrorKind);

impl UpstreamErrorKind {
    /// The cause for operators, which may contain addresses.
    pub fn text(&self) -> Text {
        match self {
            Self::Unreachable(error) => error.text().clone(),
            Self::ClosedBeforeResponse => {
                text!("connection closed before the response", "连接在响应之前关闭")
            }
            Self::Truncated => text!("response truncated", "响应不完整"),
            Self::Io(error) => format_text!("the connection failed: {}", "连接出错：{}", error),
            Self::ResponseTimeout => text!(
                "no response within upstream.response_timeout",
                "在 upstream.response_timeout 内没有响应"
            ),
            Self::BodyTimeout => text!(
                "response body stalled longer than upstream.body_timeout",
                "响应正文停顿超过 upstream.body_timeout"
            ),
            Self::InvalidHead(reason) => (*reason).clone(),
            Self::Framing(error) => error.text(),
            Self::GoAway(error) => format_text!("{error}", "HTTP/2 连接被关闭：{error}"),
            Self::Http11Required => text!(
                "the upstream requires HTTP/1.1 (HTTP_1_1_REQUIRED)",
                "上游要求 HTTP/1.1（HTTP_1_1_REQUIRED）"
            ),
            Self::RefusedStream => text!(
                "stream refused before processing (REFUSED_STREAM)",
                "请求在处理之前被拒绝（REFUSED_STREAM）"
            ),
            Self::Http2(error) => format_text!("{error}", "HTTP/2 出错：{error}"),
            Self::RequestBody(error) => format_text!("{error}", "无法读取请求正文：{error}"),
        }
    }

    /// The message for callers: unlike `Display`, it contains no address, port, host or file.
    pub fn public_message(&self) -> Cow<'_, str> {
        match self {
            Self::Unreachable(error) => error.public_message.as_ref().into(),
            Self::Io(_) => "the connection failed".into(),
            Self::Http2(_) | Self::Http11Required => "the HTTP/2 connection failed".into(),
            Self::GoAway(_) => "connection closed before the response".into(),
            Self::RefusedStream => "stream refused before processing".into(),
            other => other.to_string().into(),
        }
    }
}

impl From<&UpstreamErrorKind> for ConnectError {
    fn from(kind: &UpstreamErrorKind) -> Self {
        match kind {
            UpstreamErrorKind::Unreachable(error) => error.clone(),
            other => Self::with_details(other.public_message().into_owned(), other.text()),
        }
    }
}
