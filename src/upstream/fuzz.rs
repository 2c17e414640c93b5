//! What an answer's head says.

use bytes::BytesMut;
use http::StatusCode;

use super::head;
use crate::http1::headers::{HeaderCache, Headers};

/// An answer's head.
pub struct UpstreamResponseHead {
    /// Its status.
    pub status: StatusCode,
    /// Its header lines.
    pub headers: Headers,
    /// Whether the connection outlives it.
    pub keep_alive: bool,
}

/// Takes an answer's head off what the upstream sent on a connection that brought `familiar` lines before. An error has the words for the log.
pub fn response_head(
    buffer: &mut BytesMut,
    familiar: &mut HeaderCache,
) -> Result<Option<UpstreamResponseHead>, String> {
    let Some(head) = head::parse_response_head(buffer, familiar).map_err(|flaw| flaw.to_string())? else {
        return Ok(None);
    };
    let head::ResponseHead { status, headers: fields, keep_alive: persistent } = head;
    Ok(Some(UpstreamResponseHead { status, headers: fields, keep_alive: persistent }))
}
