//! Receives a body before any of it is sent, so that its length is known.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use super::{Kind, ReplayBody, RequestBodyError, State};
use crate::time::deadline::Deadline;

/// How much of a body is received before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveLimit {
    /// At most this many bytes, and only into memory.
    InMemory(u64),
    /// All of it, to the disk too.
    Whole,
}

impl ReplayBody {
    /// Buffers the body until it ends, exceeds `limit`, or `deadline` (may be unset) elapses. Returns the length only if it
    /// ended. Earlier readers fail with [`RequestBodyError::Superseded`]; a new one begins with
    /// what was received.
    ///
    /// Errors: the client's, or [`RequestBodyError::ReplayBudgetExceeded`] if a part could not be buffered.
    pub async fn receive(
        &self,
        limit: ReceiveLimit,
        deadline: &mut Deadline,
    ) -> Result<Option<u64>, RequestBodyError> {
        self.supersede_reader();
        let state = match &self.0 {
            Kind::Complete(complete) => return Ok(Some(complete.len() as u64)),
            Kind::Streamed(state) => state,
        };
        poll_fn(|cx| match state.borrow_mut().poll_receive(limit, cx) {
            Poll::Pending => deadline.poll_elapsed(cx).map(|()| Ok(None)),
            received => received,
        })
        .await
    }
}

impl State {
    fn poll_receive(
        &mut self,
        limit: ReceiveLimit,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<u64>, RequestBodyError>> {
        while self.source.is_some() {
            if self.replay_buffer.is_none() {
                return Poll::Ready(Ok(None));
            }
            ready!(self.poll_write_done(cx));
            ready!(self.poll_peek(cx))?;
            if self.exceeds(limit) {
                return Poll::Ready(Ok(None));
            }
            let chunk = ready!(self.poll_source(cx))?;
            if let (Some(chunk), Some(replay_buffer)) = (&chunk, &mut self.replay_buffer) {
                replay_buffer.push(chunk);
                self.reader_caught_up = false;
                if !replay_buffer.is_complete() {
                    return self.fail(RequestBodyError::ReplayBudgetExceeded);
                }
            }
        }
        Poll::Ready(Ok(Some(self.received_bytes)))
    }

    /// Whether the peeked chunk exceeds the limit. If not, its memory is reserved: were it taken by another body before the
    /// chunk is buffered, and the disk full, the request would fail.
    fn exceeds(&self, limit: ReceiveLimit) -> bool {
        match (limit, &self.peeked, &self.replay_buffer) {
            (ReceiveLimit::InMemory(max_bytes), Some(Ok(Some(chunk))), Some(replay_buffer)) => {
                self.received_bytes + chunk.len() as u64 > max_bytes
                    || !replay_buffer.reserve_memory(chunk.len())
            }
            _ => false,
        }
    }
}
