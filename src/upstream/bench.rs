//! The part of an exchange that `benches/` counts.

use bytes::BytesMut;

use super::head;
use crate::fields::{Familiar, Fields};

/// Takes an answer's head off what the upstream sent; its lines.
pub fn answer_head(buffer: &mut BytesMut, familiar: &mut Familiar) -> Option<Fields> {
    head::take(buffer, familiar).ok().flatten().map(|head| head.fields)
}
