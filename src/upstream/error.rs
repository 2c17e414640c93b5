//! Errors of an exchange with the upstream: the cause, and whether the request may have been processed.

use std::{borrow::Cow, io};

use super::connect_error::ConnectError;
use crate::{http1::framing::FramingError, request_body::RequestBodyError};

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
    #[error("{0}")]
    Unreachable(ConnectError),
    /// The connection closed before the first byte of the response.
    #[error("connection closed before the response")]
    ClosedBeforeResponse,
    /// The connection closed within the response.
    #[error("response truncated")]
    Truncated,
    /// The connection failed within the response.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// No response head within `upstream.response_timeout`.
    #[error("no response within upstream.response_timeout")]
    ResponseTimeout,
    /// No body data for longer than `upstream.body_timeout`.
    #[error("response body stalled longer than upstream.body_timeout")]
    BodyTimeout,
    /// The response head is malformed or unacceptable.
    #[error("{0}")]
    InvalidHead(&'static str),
    /// The response body has ambiguous or malformed framing.
    #[error("{0}")]
    Framing(#[source] FramingError),
    /// The upstream closed the HTTP/2 connection with an error before the response.
    #[error("{0}")]
    GoAway(String),
    /// The upstream requires HTTP/1.1 (HTTP_1_1_REQUIRED, RFC 9113 §7): it did not process the request.
    #[error("the upstream requires HTTP/1.1 (HTTP_1_1_REQUIRED)")]
    Http11Required,
    /// The upstream sent REFUSED_STREAM: it did not process the request (RFC 9113 §8.7).
    #[error("stream refused before processing (REFUSED_STREAM)")]
    RefusedStream,
    /// An HTTP/2 protocol or stream error.
    #[error("{0}")]
    Http2(String),
    /// Reading the request body from the client failed.
    #[error("{0}")]
    RequestBody(RequestBodyError),
}

impl UpstreamErrorKind {
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
            other => Self::with_log_message(other.public_message().into_owned(), other.to_string()),
        }
    }
}
