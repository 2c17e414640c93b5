//! Parsing of a request head, for `benches/`.

use std::cell::Cell;

use bytes::BytesMut;

use super::head;
pub use super::head::RequestHeadCache;
use crate::proxy::Request;

/// Takes a request head off `buffer`; `None` if it is incomplete or malformed.
pub fn request_head(buffer: &mut BytesMut, head_cache: &mut RequestHeadCache) -> Option<Request> {
    let head = head::parse(buffer, head_cache).ok().flatten()?;
    let head::RequestHead { method, version, target, headers, .. } = head;
    Some(Request {
        method,
        version,
        target,
        absolute_form: None,
        malformed: None,
        headers,
        peer: None,
        draining: false,
        authorized: Cell::default(),
        waiting: Cell::default(),
    })
}
