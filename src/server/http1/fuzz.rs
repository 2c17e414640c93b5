//! What a request's head says.

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use super::head;
pub use super::head::Habits;
use crate::{
    fields::Fields,
    framing::{Framing, FramingError},
    proxy::RequestTarget,
};

/// A request's head.
pub struct RequestHead {
    /// Its method.
    pub method: Method,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// Path and query.
    pub target: RequestTarget,
    /// The authority of a target in absolute form.
    pub authority: Option<Bytes>,
    /// Its header lines.
    pub fields: Fields,
    /// How its body ends.
    pub framing: Result<Framing, FramingError>,
    /// Whether another request may follow.
    pub persistent: bool,
}

/// Takes a request's head off what a client sent with these habits. An error has the status that answers it.
pub fn request_head(buffer: &mut BytesMut, habits: &mut Habits) -> Result<Option<RequestHead>, StatusCode> {
    let Some(head) = head::take(buffer, habits).map_err(|malformed| malformed.status)? else {
        return Ok(None);
    };
    let persistent = head.is_persistent();
    let head::Head { method, version, target, authority, fields, framing } = head;
    Ok(Some(RequestHead { method, version, target, authority, fields, framing, persistent }))
}
