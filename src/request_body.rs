//! Request bodies on their way to the upstream: streamed, bounded, and buffered so that a retry can send them again.
//!
//! The first reader takes each chunk from the client, buffers a copy and passes it on at once; a later reader gets the
//! buffered chunks first and then continues with what the client still sends. This module knows nothing of HTTP towards
//! the upstream.

mod block_pool;
mod body_copy;
mod budget;
pub(crate) mod internals;
mod reader;
mod receive;
mod replay_buffer;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    fmt,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;

use self::replay_buffer::{Cursor, ReplayBuffer};
pub use self::{
    body_copy::BodyCopy,
    budget::{Owner, ReplayBudget},
    reader::BodyReader,
    receive::ReceiveLimit,
    replay_buffer::ReplayBudgetExceeded,
};
use crate::{http1::framing::copy_if_small, time::deadline::Deadline};

/// Why a request body could not be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestBodyError {
    /// More bytes than [`BodyLimits::max_bytes`].
    #[error("the body is larger than the bound")]
    TooLarge,
    /// No bytes for longer than [`BodyLimits::idle_timeout`].
    #[error("the body stalled")]
    Stalled,
    /// The client disconnected, or sent a malformed body or one of another length than it declared.
    #[error("body aborted")]
    Aborted,
    /// Far more chunk framing than data.
    #[error("excessive chunk framing")]
    ChunkOverhead,
    /// The replay buffer cannot be read back: a local fault.
    #[error("replay buffer unreadable")]
    ReplayLost,
    /// The declared length does not fit into the replay budget.
    #[error("replay budget exceeded")]
    ReplayBudgetExceeded,
    /// A newer reader replaces this one.
    #[error("superseded by a newer reader")]
    Superseded,
}

/// Limits of a request body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Maximum size.
    pub max_bytes: u64,
    /// Longest time between two chunks.
    pub idle_timeout: Duration,
}

/// A request body as the server received it, before it is read.
pub enum RequestBody {
    /// No body.
    None,
    /// A body that arrived complete with the head.
    Complete(Bytes),
    /// A body that arrives in chunks.
    Streamed(Box<dyn BodySource>),
}

impl RequestBody {
    /// The length that the head declares.
    pub fn content_length(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Complete(complete) => Some(complete.len() as u64),
            Self::Streamed(source) => source.content_length(),
        }
    }
}

/// Source of the chunks of a body. It decides itself what happens to the unread rest when it is dropped.
pub trait BodySource {
    /// The length that the head declares.
    fn content_length(&self) -> Option<u64>;
    /// The next chunk; `None` at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>>;
    /// Whether the last chunk was returned. May be false while the end is not known.
    fn is_ended(&self) -> bool;
    /// Frees what is allocated to read the next chunk, before a wait for something else than the client.
    fn release_buffer(&mut self) {}
}

/// Why a body ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodySourceError {
    /// The client disconnected, or sent a malformed body.
    Aborted,
    /// The client sent far more chunk framing than data.
    ChunkOverhead,
}

impl From<BodySourceError> for RequestBodyError {
    fn from(error: BodySourceError) -> Self {
        match error {
            BodySourceError::Aborted => Self::Aborted,
            BodySourceError::ChunkOverhead => Self::ChunkOverhead,
        }
    }
}

type SourceChunk = Result<Option<Bytes>, BodySourceError>;

/// A request body of which a reader can be made again while [`Self::is_replayable`]. Clones share it.
#[derive(Clone)]
pub struct ReplayBody(Kind);

#[derive(Clone)]
enum Kind {
    Complete(Bytes),
    Streamed(Rc<RefCell<State>>),
}

struct State {
    source: Option<Box<dyn BodySource>>,
    /// What the source returned before a reader asked for it.
    peeked: Option<SourceChunk>,
    /// The declared length.
    content_length: Option<u64>,
    received_bytes: u64,
    limits: BodyLimits,
    idle_deadline: Deadline,
    replay_buffer: Option<ReplayBuffer>,
    /// No further attempt will be made.
    committed: bool,
    /// The current reader has read everything that was buffered.
    reader_caught_up: bool,
    /// Number of readers made so far; identifies the current one.
    reader_generation: u32,
    /// The waker of a waiting reader.
    reader_waker: Option<Waker>,
    error: Option<RequestBodyError>,
}

impl ReplayBody {
    /// Prepares a body for reading; `None` if there is no body. With a budget its chunks are buffered for a retry.
    /// Fails with [`ReplayBudgetExceeded`] if its declared length does not fit into the budget now.
    pub fn new(
        body: RequestBody,
        limits: BodyLimits,
        budget: Option<(&Arc<ReplayBudget>, Owner)>,
    ) -> Result<Option<Self>, ReplayBudgetExceeded> {
        let source = match body {
            RequestBody::None => return Ok(None),
            RequestBody::Complete(complete) => return Ok(Some(Self(Kind::Complete(complete)))),
            RequestBody::Streamed(source) => source,
        };
        let content_length = source.content_length();
        let replay_buffer =
            budget.map(|(budget, owner)| ReplayBuffer::new(budget, owner, content_length)).transpose()?;
        Ok(Some(Self(Kind::Streamed(Rc::new(RefCell::new(State {
            content_length,
            source: Some(source),
            peeked: None,
            received_bytes: 0,
            limits,
            idle_deadline: Deadline::unset(),
            replay_buffer,
            committed: false,
            reader_caught_up: true,
            reader_generation: 0,
            reader_waker: None,
            error: None,
        }))))))
    }

    /// Whether [`ReplayBody::poll_admitted`] is to be polled before the first reader is taken: the declared length is
    /// not reserved yet, because the client has declared too much of which nothing has arrived.
    pub fn needs_admission(&self) -> bool {
        let Kind::Streamed(state) = &self.0 else { return false };
        state.borrow().replay_buffer.as_ref().is_some_and(|buffer| !buffer.is_reserved())
    }

    /// Waits for the first chunk, and then reserves the declared length in full. So a client cannot take the disk from
    /// the others by declaring lengths without sending.
    pub fn poll_admitted(&self, cx: &mut Context<'_>) -> Poll<Result<(), RequestBodyError>> {
        let Kind::Streamed(state) = &self.0 else { return Poll::Ready(Ok(())) };
        let mut state = state.borrow_mut();
        ready!(state.poll_peek(cx))?;
        if let Some(Err(error)) = state.peeked {
            return state.fail(error.into());
        }
        let reserved = state.replay_buffer.as_ref().map_or(Ok(()), ReplayBuffer::reserve_declared);
        Poll::Ready(reserved.map_err(|ReplayBudgetExceeded| RequestBodyError::ReplayBudgetExceeded))
    }

    /// Whether [`ReplayBody::reader`] would return one.
    pub fn is_replayable(&self) -> bool {
        let Kind::Streamed(state) = &self.0 else { return true };
        let state = state.borrow();
        state.received_bytes == 0 || state.replay_buffer.as_ref().is_some_and(ReplayBuffer::is_complete)
    }

    /// A reader from the first byte; `None` if that byte is no longer available. Earlier readers fail with
    /// [`RequestBodyError::Superseded`].
    pub fn reader(&self) -> Option<BodyReader> {
        if !self.is_replayable() {
            return None;
        }
        let generation = self.supersede_reader();
        Some(BodyReader { body: self.clone(), generation, cursor: Cursor::default(), ended: false })
    }

    /// Ends the current reader; returns the generation of the next one.
    fn supersede_reader(&self) -> u32 {
        let Kind::Streamed(state) = &self.0 else { return 0 };
        let mut state = state.borrow_mut();
        state.reader_generation += 1;
        if let Some(replay_buffer) = &mut state.replay_buffer {
            replay_buffer.cancel_read();
        }
        state.reader_caught_up = state.received_bytes == 0;
        let generation = state.reader_generation;
        // Over HTTP/2 another task owns the previous reader. It is woken once, to fail with `Superseded` and to drop its
        // clone of the body; from now on the client's chunks wake the new reader.
        let superseded_waker = state.reader_waker.take();
        drop(state);
        superseded_waker.into_iter().for_each(Waker::wake);
        generation
    }

    /// Declares that no further attempt will be made: the buffer is freed as soon as the current reader has read it.
    /// The reader continues with what the client still sends.
    pub fn commit(&self) {
        if let Kind::Streamed(state) = &self.0 {
            let mut state = state.borrow_mut();
            state.committed = true;
            state.release_buffer();
        }
    }

    /// Copies a small body that arrived with the head, or a small first chunk, out of the read buffer, which a waiting
    /// request must not keep.
    pub fn detach(&mut self) {
        match &mut self.0 {
            Kind::Complete(complete) => *complete = copy_if_small(std::mem::take(complete)),
            Kind::Streamed(state) => {
                if let Some(Ok(Some(chunk))) = &mut state.borrow_mut().peeked {
                    *chunk = copy_if_small(std::mem::take(chunk));
                }
            }
        }
    }

    /// Number of bytes received so far.
    pub fn received_bytes(&self) -> u64 {
        match &self.0 {
            Kind::Complete(complete) => complete.len() as u64,
            Kind::Streamed(state) => state.borrow().received_bytes,
        }
    }

    /// Why reading the body failed, if it did: a fault of the client or, with `ReplayLost`, of this machine.
    pub fn error(&self) -> Option<RequestBodyError> {
        match &self.0 {
            Kind::Complete(_) => None,
            Kind::Streamed(state) => state.borrow().error,
        }
    }
}

impl fmt::Debug for ReplayBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplayBody")
    }
}

impl State {
    /// Frees the replay buffer if it will not be read again.
    fn release_buffer(&mut self) {
        if self.committed && self.reader_caught_up {
            self.replay_buffer = None;
        }
    }

    /// The next chunk after the cursor: a buffered one, or what the client sends.
    fn poll_next_chunk(
        &mut self,
        cursor: &mut Cursor,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        ready!(self.poll_write_done(cx));
        if let Some(replay_buffer) = &mut self.replay_buffer {
            match ready!(replay_buffer.poll_read(cursor, cx)) {
                Ok(Some(chunk)) => return Poll::Ready(Ok(Some(chunk))),
                Ok(None) => {
                    self.reader_caught_up = true;
                    self.release_buffer();
                }
                Err(error) => {
                    tracing::warn!(%error, "replay buffer read failed");
                    self.error = Some(RequestBodyError::ReplayLost);
                    return Poll::Ready(Err(RequestBodyError::ReplayLost));
                }
            }
        }
        let chunk = ready!(self.poll_source(cx));
        if let (Ok(Some(chunk)), Some(replay_buffer)) = (&chunk, &mut self.replay_buffer) {
            replay_buffer.push(chunk);
            cursor.seek_to_end(replay_buffer);
        }
        Poll::Ready(chunk)
    }

    /// Ready when no write to the replay buffer's file is in progress. The client's next chunk is read only then.
    fn poll_write_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(replay_buffer) = &mut self.replay_buffer else { return Poll::Ready(()) };
        let written = replay_buffer.poll_write_done(cx);
        if let (Poll::Pending, Some(source)) = (written, &mut self.source) {
            source.release_buffer();
        }
        written
    }

    fn register_waker(&mut self, cx: &Context<'_>) {
        if !self.reader_waker.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            self.reader_waker = Some(cx.waker().clone());
        }
    }

    /// Ready once the source has returned its next chunk, which is kept for [`State::poll_source`].
    fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RequestBodyError>> {
        let (Some(source), None) = (self.source.as_mut(), &self.peeked) else { return Poll::Ready(Ok(())) };
        match source.poll_chunk(cx) {
            Poll::Ready(chunk) => {
                self.idle_deadline.clear();
                self.peeked = Some(chunk);
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                ready!(self.idle_deadline.poll_stalled(cx, self.limits.idle_timeout));
                self.fail(RequestBodyError::Stalled)
            }
        }
    }

    /// The next chunk from the client.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        if let Some(error) = self.error {
            return Poll::Ready(Err(error));
        }
        ready!(self.poll_peek(cx))?;
        let (Some(source), Some(chunk)) = (&self.source, self.peeked.take()) else {
            return Poll::Ready(Ok(None));
        };
        let ended = source.is_ended();
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return self.fail(error.into()),
        };
        self.received_bytes += chunk.as_ref().map_or(0, Bytes::len) as u64;
        if self.received_bytes > self.limits.max_bytes {
            return self.fail(RequestBodyError::TooLarge);
        }
        let is_end = ended || chunk.is_none();
        // The upstream was sent this length: one byte more or less would shift the beginning of the next request.
        let length_mismatch = self
            .content_length
            .is_some_and(|length| self.received_bytes > length || (is_end && self.received_bytes < length));
        if length_mismatch {
            return self.fail(RequestBodyError::Aborted);
        }
        if is_end {
            self.source = None;
        }
        Poll::Ready(Ok(chunk))
    }

    fn fail<T>(&mut self, error: RequestBodyError) -> Poll<Result<T, RequestBodyError>> {
        self.error = Some(error);
        Poll::Ready(Err(error))
    }
}
