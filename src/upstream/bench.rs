//! Entry points for the instruction counts in `benches/`.

use bytes::BytesMut;

use super::head;
use crate::http1::headers::{HeaderCache, Headers};

/// Parses a response head off the buffer; returns its headers.
pub fn response_head(buffer: &mut BytesMut, header_cache: &mut HeaderCache) -> Option<Headers> {
    head::parse_response_head(buffer, header_cache).ok().flatten().map(|head| head.headers)
}
