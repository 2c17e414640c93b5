//! The part of a connection's work that `benches/` counts.

use std::cell::Cell;

use bytes::BytesMut;

use super::head;
pub use super::head::RequestHeadCache;
use crate::proxy::Request;

/// Takes a request's head off what a client sent.
pub fn request_head(buffer: &mut BytesMut, habits: &mut RequestHeadCache) -> Option<Request> {
    let head = head::parse(buffer, habits).ok().flatten()?;
    let head::RequestHead { method, version, target, headers: fields, .. } = head;
    Some(Request {
        method,
        version,
        target,
        absolute_form: None,
        malformed: None,
        headers: fields,
        peer: None,
        draining: false,
        authorized: Cell::default(),
        waiting: Cell::default(),
    })
}
