//! Parsing of a request head, for `fuzz/`.

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use super::head;
pub use super::head::RequestHeadCache;
use crate::{
    http1::{
        framing::{Framing, FramingError},
        headers::Headers,
    },
    proxy::RequestTarget,
};

/// A parsed request head.
pub struct FuzzedRequestHead {
    /// Method.
    pub method: Method,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// Path and query.
    pub target: RequestTarget,
    /// Authority of a target in absolute form.
    pub authority: Option<Bytes>,
    /// Headers.
    pub headers: Headers,
    /// Framing of the body.
    pub framing: Result<Framing, FramingError>,
    /// Whether the connection may carry another request.
    pub persistent: bool,
}

/// Takes a request head off `buffer`; `None` while it is incomplete. An error is the status of the response.
pub fn request_head(
    buffer: &mut BytesMut,
    head_cache: &mut RequestHeadCache,
) -> Result<Option<FuzzedRequestHead>, StatusCode> {
    let Some(head) = head::parse(buffer, head_cache).map_err(|malformed| malformed.status)? else {
        return Ok(None);
    };
    let persistent = head.is_persistent();
    let head::RequestHead { method, version, target, authority, headers, framing } = head;
    Ok(Some(FuzzedRequestHead { method, version, target, authority, headers, framing, persistent }))
}
