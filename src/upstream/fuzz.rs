//! What an answer's head says.

use bytes::BytesMut;
use http::StatusCode;

use super::head;
use crate::fields::{Familiar, Fields};

/// An answer's head.
pub struct AnswerHead {
    /// Its status.
    pub status: StatusCode,
    /// Its header lines.
    pub fields: Fields,
    /// Whether the connection outlives it.
    pub persistent: bool,
}

/// Takes an answer's head off what the upstream sent on a connection that brought `familiar` lines before. An error has the words for the log.
pub fn answer_head(buffer: &mut BytesMut, familiar: &mut Familiar) -> Result<Option<AnswerHead>, String> {
    let Some(head) = head::take(buffer, familiar).map_err(|flaw| flaw.to_string())? else { return Ok(None) };
    let head::Head { status, fields, persistent } = head;
    Ok(Some(AnswerHead { status, fields, persistent }))
}
