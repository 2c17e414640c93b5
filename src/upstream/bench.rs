//! The part of an exchange that `benches/` counts.

use bytes::BytesMut;

use super::head;
use crate::fields::Fields;

/// Takes an answer's head off what the upstream sent; its lines.
pub fn answer_head(buffer: &mut BytesMut) -> Option<Fields> {
    head::take(buffer).ok().flatten().map(|head| head.fields)
}
