//! Errors of HTTP/2: what they mean for a request, and their text with the error code.

use ::h2::{Error, Reason};

use crate::{
    request_body::RequestBodyError,
    upstream::{Delivery, UpstreamError, UpstreamErrorKind},
};

/// Maps the error of a connection that has not accepted a request.
pub(super) fn not_sent(error: &Error) -> UpstreamError {
    let is_closed = error.is_io() || error.is_go_away() || error.reason().is_some();
    let kind = if is_closed {
        UpstreamErrorKind::ClosedBeforeResponse
    } else {
        UpstreamErrorKind::Http2(describe(error))
    };
    UpstreamError { kind, delivery: Delivery::NotSent }
}

/// Maps the error of a request without a response. A stream reset means nothing for its connection: the upstream may
/// have processed the request unless the error excludes it. `body_error`: why the request body could not be read.
pub(super) fn classify_error(error: &Error, body_error: Option<RequestBodyError>) -> UpstreamError {
    if let Some(body_error) = body_error {
        return UpstreamError {
            kind: UpstreamErrorKind::RequestBody(body_error),
            delivery: Delivery::MaybeSent,
        };
    }
    let (kind, delivery) = match error {
        reset if has_remote_reason(reset, Reason::HTTP_1_1_REQUIRED) => {
            (UpstreamErrorKind::Http11Required, Delivery::NotSent)
        }
        reset if reset.is_reset() && has_remote_reason(reset, Reason::REFUSED_STREAM) => {
            (UpstreamErrorKind::RefusedStream, Delivery::NotSent)
        }
        // A graceful GOAWAY names the last processed stream; this one is above it (RFC 9113 §6.8).
        goaway if goaway.is_go_away() && has_remote_reason(goaway, Reason::NO_ERROR) => {
            (UpstreamErrorKind::ClosedBeforeResponse, Delivery::NotSent)
        }
        goaway if goaway.is_go_away() && goaway.is_remote() => {
            (UpstreamErrorKind::GoAway(describe(error)), Delivery::MaybeSent)
        }
        // Not a protocol error: the connection broke, timed out or was closed.
        broken if broken.is_io() => (UpstreamErrorKind::ClosedBeforeResponse, Delivery::MaybeSent),
        _ => (UpstreamErrorKind::Http2(describe(error)), Delivery::MaybeSent),
    };
    UpstreamError { kind, delivery }
}

/// Maps the error of a handshake.
pub(super) fn handshake_error(error: &Error) -> UpstreamErrorKind {
    match has_remote_reason(error, Reason::HTTP_1_1_REQUIRED) {
        true => UpstreamErrorKind::Http11Required,
        false => UpstreamErrorKind::Http2(describe(error)),
    }
}

/// The message for the log, with the error code (RFC 9113 §7).
pub(super) fn describe(error: &Error) -> String {
    let Some(reason) = error.reason() else { return format!("HTTP/2 failed: {error}") };
    let event = if error.is_go_away() { "connection closed by GOAWAY" } else { "stream reset" };
    let peer = if error.is_remote() { "the upstream" } else { "this proxy" };
    format!("HTTP/2 {event} of {peer}: {reason:?} ({:#x})", u32::from(reason))
}

fn has_remote_reason(error: &Error, reason: Reason) -> bool {
    error.is_remote() && error.reason() == Some(reason)
}
