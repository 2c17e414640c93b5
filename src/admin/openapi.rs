//! `/api/openapi.json`: the description of this listener. A test compares it with what the listener does.

use bytes::Bytes;
use http::Response;

use super::response::{AdminBody, with_content_type};

const DOCUMENT: &str = include_str!("openapi.json");

/// The document.
pub(super) fn document() -> Response<AdminBody> {
    with_content_type("application/json", AdminBody::Full(Bytes::from_static(DOCUMENT.as_bytes())))
}
