//! One reader of a request body.

use std::{
    fmt,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{Kind, ReplayBody, RequestBodyError, replay_buffer::Cursor};
use crate::http1::framing::coalesce;

/// One reader of a [`ReplayBody`], from its first byte.
pub struct BodyReader {
    pub(super) body: ReplayBody,
    pub(super) generation: u32,
    pub(super) cursor: Cursor,
    pub(super) ended: bool,
}

impl BodyReader {
    /// The body if it arrived complete and is unread; the reader itself otherwise.
    pub fn into_complete(self) -> Result<Bytes, Self> {
        match self.body.0 {
            Kind::Complete(complete) if !self.ended => Ok(complete),
            _ => Err(self),
        }
    }

    /// The next chunk; `None` at the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        let state = match &self.body.0 {
            Kind::Streamed(state) => state,
            Kind::Complete(complete) => {
                let chunk = (!std::mem::replace(&mut self.ended, true)).then(|| complete.clone());
                return Poll::Ready(Ok(chunk));
            }
        };
        let mut state = state.borrow_mut();
        if state.reader_generation != self.generation {
            return Poll::Ready(Err(RequestBodyError::Superseded));
        }
        let chunk = state.poll_next_chunk(&mut self.cursor, cx);
        match &chunk {
            Poll::Pending => state.register_waker(cx),
            Poll::Ready(chunk) if state.reader_caught_up => {
                self.ended = matches!(chunk, Ok(None)) || state.source.is_none();
            }
            // More buffered chunks may follow.
            Poll::Ready(_) => {}
        }
        chunk
    }

    /// The next chunk, with further available ones appended to a small one, for a consumer whose cost is per chunk.
    /// `None` at the end.
    pub fn poll_coalesced(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        let chunk = ready!(self.poll_chunk(cx))?;
        let Some(first) = chunk else { return Poll::Ready(Ok(None)) };
        // An error or the end is reported again by the next call.
        let chunk = coalesce(first, || match self.ended {
            true => None,
            false => match self.poll_chunk(cx) {
                Poll::Ready(Ok(next)) => next,
                _ => None,
            },
        });
        Poll::Ready(Ok(Some(chunk)))
    }

    /// Whether the last chunk was returned. May be false while the end is not known.
    pub fn is_ended(&self) -> bool {
        self.ended
    }
}

impl fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyReader")
    }
}
