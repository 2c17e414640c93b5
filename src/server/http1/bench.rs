//! The part of a connection's work that `benches/` counts.

use std::cell::Cell;

use bytes::BytesMut;

use super::head;
pub use super::head::Habits;
use crate::proxy::Request;

/// Takes a request's head off what a client sent.
pub fn request_head(buffer: &mut BytesMut, habits: &mut Habits) -> Option<Request> {
    let head = head::take(buffer, habits).ok().flatten()?;
    let head::Head { method, version, target, fields, .. } = head;
    Some(Request {
        method,
        version,
        target,
        absolute: None,
        flaw: None,
        fields,
        peer: None,
        late: false,
        authorized: Cell::default(),
        waits: Cell::default(),
    })
}
