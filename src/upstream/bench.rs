//! The part of an exchange that `benches/` counts.

use bytes::BytesMut;

use super::head;
use crate::http1::headers::{HeaderCache, Headers};

/// Takes an answer's head off what the upstream sent; its lines.
pub fn response_head(buffer: &mut BytesMut, familiar: &mut HeaderCache) -> Option<Headers> {
    head::parse_response_head(buffer, familiar).ok().flatten().map(|head| head.headers)
}
