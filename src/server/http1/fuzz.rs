//! What a request's head says.

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

/// A request's head.
pub struct FuzzedRequestHead {
    /// Its method.
    pub method: Method,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// Path and query.
    pub target: RequestTarget,
    /// The authority of a target in absolute form.
    pub authority: Option<Bytes>,
    /// Its header lines.
    pub headers: Headers,
    /// How its body ends.
    pub framing: Result<Framing, FramingError>,
    /// Whether another request may follow.
    pub persistent: bool,
}

/// Takes a request's head off what a client sent with these habits. An error has the status that answers it.
pub fn request_head(
    buffer: &mut BytesMut,
    habits: &mut RequestHeadCache,
) -> Result<Option<FuzzedRequestHead>, StatusCode> {
    let Some(head) = head::parse(buffer, habits).map_err(|malformed| malformed.status)? else {
        return Ok(None);
    };
    let persistent = head.is_persistent();
    let head::RequestHead { method, version, target, authority, headers: fields, framing } = head;
    Ok(Some(FuzzedRequestHead { method, version, target, authority, headers: fields, framing, persistent }))
}
