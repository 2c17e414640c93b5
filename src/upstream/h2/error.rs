//! Errors of HTTP/2: what they mean for a request, and their text with the error code.

use std::io;

use ::h2::Reason;

use crate::upstream::{Delivery, UpstreamError, UpstreamErrorKind};

/// Maps the error of a request without a response. A stream reset means nothing for its connection: the upstream may
/// have processed the request unless the error excludes it. `is_sent`: whether hyper had begun to send it.
pub(super) fn classify_error(error: &hyper::Error, is_sent: bool) -> UpstreamError {
    if !is_sent {
        return UpstreamError { kind: UpstreamErrorKind::ClosedBeforeResponse, delivery: Delivery::NotSent };
    }
    if let Some(body_error) = find_source(error) {
        return UpstreamError {
            kind: UpstreamErrorKind::RequestBody(*body_error),
            delivery: Delivery::MaybeSent,
        };
    }
    let (kind, delivery) = match find_source::<::h2::Error>(error) {
        Some(reset) if has_remote_reason(reset, Reason::HTTP_1_1_REQUIRED) => {
            (UpstreamErrorKind::Http11Required, Delivery::NotSent)
        }
        Some(reset) if reset.is_reset() && has_remote_reason(reset, Reason::REFUSED_STREAM) => {
            (UpstreamErrorKind::RefusedStream, Delivery::NotSent)
        }
        // A graceful GOAWAY names the last processed stream; this one is above it (RFC 9113 §6.8).
        Some(goaway) if goaway.is_go_away() && has_remote_reason(goaway, Reason::NO_ERROR) => {
            (UpstreamErrorKind::ClosedBeforeResponse, Delivery::NotSent)
        }
        Some(goaway) if goaway.is_go_away() && goaway.is_remote() => {
            (UpstreamErrorKind::GoAway(describe(error)), Delivery::MaybeSent)
        }
        Some(broken) if broken.is_io() => (UpstreamErrorKind::ClosedBeforeResponse, Delivery::MaybeSent),
        // Not a protocol error: the connection broke, timed out or was closed.
        None if find_source::<io::Error>(error).is_some()
            || error.is_timeout()
            || error.is_closed()
            || error.is_canceled() =>
        {
            (UpstreamErrorKind::ClosedBeforeResponse, Delivery::MaybeSent)
        }
        _ => (UpstreamErrorKind::Http2(describe(error)), Delivery::MaybeSent),
    };
    UpstreamError { kind, delivery }
}

/// Maps the error of a handshake.
pub(super) fn handshake_error(error: &hyper::Error) -> UpstreamErrorKind {
    match find_source::<::h2::Error>(error) {
        Some(goaway) if has_remote_reason(goaway, Reason::HTTP_1_1_REQUIRED) => {
            UpstreamErrorKind::Http11Required
        }
        _ => UpstreamErrorKind::Http2(describe(error)),
    }
}

/// The message for the log, with the error code (RFC 9113 §7).
pub(super) fn describe(error: &hyper::Error) -> String {
    let Some(cause) = find_source::<::h2::Error>(error) else { return format!("HTTP/2 failed: {error}") };
    let Some(reason) = cause.reason() else { return format!("HTTP/2 failed: {cause}") };
    let event = if cause.is_go_away() { "connection closed by GOAWAY" } else { "stream reset" };
    let peer = if cause.is_remote() { "the upstream" } else { "this proxy" };
    format!("HTTP/2 {event} of {peer}: {reason:?} ({:#x})", u32::from(reason))
}

fn has_remote_reason(error: &::h2::Error, reason: Reason) -> bool {
    error.is_remote() && error.reason() == Some(reason)
}

/// The first cause of type `E`.
fn find_source<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        source = cause.source();
    }
    None
}
