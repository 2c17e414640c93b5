//! Entry points for fuzzing the response head parser.

use bytes::BytesMut;
use http::StatusCode;

use super::head;
use crate::http1::headers::{HeaderCache, Headers};

/// A parsed response head.
pub struct UpstreamResponseHead {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: Headers,
    /// Whether the connection can be reused afterwards.
    pub keep_alive: bool,
}

/// Parses a response head off the buffer with the connection's header cache; `None` if it is incomplete. The error is
/// the log message.
pub fn response_head(
    buffer: &mut BytesMut,
    header_cache: &mut HeaderCache,
) -> Result<Option<UpstreamResponseHead>, String> {
    let Some(head) = head::parse_response_head(buffer, header_cache).map_err(|error| error.to_string())?
    else {
        return Ok(None);
    };
    let head::ResponseHead { status, headers, keep_alive } = head;
    Ok(Some(UpstreamResponseHead { status, headers, keep_alive }))
}
