//! A request's body on its way to the upstream: streamed as it comes, bounded, and kept so that it can be sent again.
//!
//! The first reader takes each piece from the client, keeps a copy and hands it on at once; a later reader gets the kept
//! pieces first and then goes on with what the client still sends. It knows nothing of HTTP towards the upstream.

mod budget;
pub(crate) mod fuzz;
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

use bytes::{Bytes, BytesMut};

use self::replay_buffer::{Cursor, ReplayBuffer};
pub use self::{
    budget::{Owner, ReplayBudget},
    replay_buffer::ReplayBudgetExceeded,
};
use crate::{
    http1::framing::{MIN_SLICE_BYTES, copy_if_small},
    time::deadline::Deadline,
};

/// Why a request's body could not be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestBodyError {
    /// More bytes than the bound allows.
    #[error("the body is larger than the bound")]
    TooLarge,
    /// Nothing came for longer than the bound allows.
    #[error("the body stalled")]
    Stalled,
    /// The client went away, or sent a body that is not well formed.
    #[error("the body broke off")]
    Aborted,
    /// It has far more chunk framing than data.
    #[error("the body is nearly all chunk framing")]
    ChunkOverhead,
    /// What was kept of it cannot be read back; this one is the machine's doing.
    #[error("the kept body cannot be read back")]
    ReplayLost,
    /// A newer reader has taken over; whoever still holds this one need not go on.
    #[error("the body is sent by another attempt")]
    Superseded,
}

/// The bounds of a request's body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Most bytes that are taken.
    pub max_bytes: u64,
    /// Longest silence between two pieces.
    pub idle_timeout: Duration,
}

/// A request's body as the server found it, before anybody has decided to read it.
pub enum RequestBody {
    /// There is none.
    None,
    /// It came together with the head.
    Buffered(Bytes),
    /// It comes piece by piece.
    Streamed(Box<dyn BodySource>),
}

impl RequestBody {
    /// How long it is, as far as its head says.
    pub fn content_length(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Buffered(whole) => Some(whole.len() as u64),
            Self::Streamed(source) => source.content_length(),
        }
    }
}

/// Where the pieces of a body come from. What is not read of it when it is dropped is its own concern.
pub trait BodySource {
    /// How long the body is, as far as its head says.
    fn content_length(&self) -> Option<u64>;
    /// The next piece; `None` at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>>;
    /// Whether the last piece was handed out. It may say no where the end is not yet known.
    fn is_ended(&self) -> bool;
}

/// Why the pieces of a body end before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodySourceError {
    /// The client went away, or sent what is not well formed.
    Aborted,
    /// The client sent far more chunk framing than data.
    ChunkOverhead,
}

impl From<BodySourceError> for RequestBodyError {
    fn from(cut: BodySourceError) -> Self {
        match cut {
            BodySourceError::Aborted => Self::Aborted,
            BodySourceError::ChunkOverhead => Self::ChunkOverhead,
        }
    }
}

/// A request's body that can be read more than once. Cloning gives another handle on the same body.
#[derive(Clone)]
pub struct ReplayBody(Kind);

#[derive(Clone)]
enum Kind {
    Buffered(Bytes),
    Streamed(Rc<RefCell<State>>),
}

struct State {
    source: Option<Box<dyn BodySource>>,
    /// What its head said of its length.
    content_length: Option<u64>,
    received_bytes: u64,
    limits: BodyLimits,
    idle_deadline: Deadline,
    replay_buffer: Option<ReplayBuffer>,
    /// There will be no other attempt.
    committed: bool,
    /// The running attempt has read all that was kept.
    replay_done: bool,
    attempt: u32,
    /// The task of a reader that waits.
    reader_waker: Option<Waker>,
    error: Option<RequestBodyError>,
}

impl ReplayBody {
    /// Takes a body to read it; `None` where there is none. With a shelf its pieces are kept for another attempt, and it
    /// is [`Full`] where that has no room now for the length that its head says.
    pub fn new(
        body: RequestBody,
        bounds: BodyLimits,
        shelf: Option<(&Arc<ReplayBudget>, Owner)>,
    ) -> Result<Option<Self>, ReplayBudgetExceeded> {
        let source = match body {
            RequestBody::None => return Ok(None),
            RequestBody::Buffered(whole) => return Ok(Some(Self(Kind::Buffered(whole)))),
            RequestBody::Streamed(source) => source,
        };
        let declared = source.content_length();
        let kept = shelf.map(|(shelf, owner)| ReplayBuffer::new(shelf, owner, declared)).transpose()?;
        Ok(Some(Self(Kind::Streamed(Rc::new(RefCell::new(State {
            content_length: declared,
            source: Some(source),
            received_bytes: 0,
            limits: bounds,
            idle_deadline: Deadline::unset(),
            replay_buffer: kept,
            committed: false,
            replay_done: true,
            attempt: 0,
            reader_waker: None,
            error: None,
        }))))))
    }

    /// Whether [`Upload::reader`] would give one.
    pub fn is_replayable(&self) -> bool {
        let Kind::Streamed(state) = &self.0 else { return true };
        let state = state.borrow();
        state.received_bytes == 0 || state.replay_buffer.as_ref().is_some_and(ReplayBuffer::is_complete)
    }

    /// A reader from the body's first byte; `None` when that byte is no longer there. Readers given out before end
    /// with [`UploadError::Superseded`].
    pub fn reader(&self) -> Option<BodyReader> {
        if !self.is_replayable() {
            return None;
        }
        let attempt = match &self.0 {
            Kind::Buffered(_) => 0,
            Kind::Streamed(state) => {
                let mut state = state.borrow_mut();
                state.attempt += 1;
                if let Some(kept) = &mut state.replay_buffer {
                    kept.cancel_read();
                }
                state.replay_done = state.received_bytes == 0;
                let attempt = state.attempt;
                // Over HTTP/2 another task holds the reader before this one, and with it all that is kept; from now on the
                // client calls the newer one's.
                let superseded = state.reader_waker.take();
                drop(state);
                superseded.into_iter().for_each(Waker::wake);
                attempt
            }
        };
        Some(BodyReader { body: self.clone(), attempt, cursor: Cursor::default(), ended: false })
    }

    /// There will be no other attempt: what was kept goes as soon as the running reader has read it. It goes on with what
    /// still comes.
    pub fn commit(&self) {
        if let Kind::Streamed(state) = &self.0 {
            let mut state = state.borrow_mut();
            state.committed = true;
            state.release_buffer();
        }
    }

    /// Copies a small body that came whole out of the read buffer, which a request that waits must not keep.
    pub fn detach(&mut self) {
        if let Kind::Buffered(whole) = &mut self.0 {
            *whole = copy_if_small(std::mem::take(whole));
        }
    }

    /// How many bytes have come so far.
    pub fn received_bytes(&self) -> u64 {
        match &self.0 {
            Kind::Buffered(whole) => whole.len() as u64,
            Kind::Streamed(state) => state.borrow().received_bytes,
        }
    }

    /// Why the client's side failed, if it did.
    pub fn error(&self) -> Option<RequestBodyError> {
        match &self.0 {
            Kind::Buffered(_) => None,
            Kind::Streamed(state) => state.borrow().error,
        }
    }
}

impl fmt::Debug for ReplayBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl State {
    /// Lets go of what was kept, if nobody will read it any more.
    fn release_buffer(&mut self) {
        if self.committed && self.replay_done {
            self.replay_buffer = None;
        }
    }

    /// The next piece behind what a reader has seen: a kept one, or what the client sends.
    fn poll_next_chunk(
        &mut self,
        place: &mut Cursor,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        if let Some(kept) = &mut self.replay_buffer {
            ready!(kept.poll_write_done(cx));
            match ready!(kept.poll_read(place, cx)) {
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) => {
                    self.replay_done = true;
                    self.release_buffer();
                }
                Err(error) => {
                    tracing::warn!(%error, "a kept request body could not be read back");
                    self.error = Some(RequestBodyError::ReplayLost);
                    return Poll::Ready(Err(RequestBodyError::ReplayLost));
                }
            }
        }
        let piece = ready!(self.poll_source(cx));
        if let (Ok(Some(piece)), Some(kept)) = (&piece, &mut self.replay_buffer) {
            kept.push(piece);
            place.seek_to_end(kept);
        }
        Poll::Ready(piece)
    }

    fn register_waker(&mut self, cx: &Context<'_>) {
        if !self.reader_waker.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            self.reader_waker = Some(cx.waker().clone());
        }
    }

    /// The next piece that the client sends.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        if let Some(failed) = self.error {
            return Poll::Ready(Err(failed));
        }
        let Some(source) = self.source.as_mut() else { return Poll::Ready(Ok(None)) };
        let Poll::Ready(piece) = source.poll_chunk(cx) else {
            self.idle_deadline.set_if_unset(self.limits.idle_timeout);
            ready!(self.idle_deadline.poll_elapsed(cx));
            return self.fail(RequestBodyError::Stalled);
        };
        self.idle_deadline.clear();
        let ended = source.is_ended();
        let piece = match piece {
            Ok(piece) => piece,
            Err(cut) => return self.fail(cut.into()),
        };
        self.received_bytes += piece.as_ref().map_or(0, Bytes::len) as u64;
        if self.received_bytes > self.limits.max_bytes {
            return self.fail(RequestBodyError::TooLarge);
        }
        let over = ended || piece.is_none();
        // The upstream was told this length: one byte less or more, and the next request would begin in the wrong place.
        let belied = self
            .content_length
            .is_some_and(|length| self.received_bytes > length || (over && self.received_bytes < length));
        if belied {
            return self.fail(RequestBodyError::Aborted);
        }
        if over {
            self.source = None;
        }
        Poll::Ready(Ok(piece))
    }

    fn fail(&mut self, error: RequestBodyError) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        self.error = Some(error);
        Poll::Ready(Err(error))
    }
}

/// One reading of an [`Upload`], from its first byte.
pub struct BodyReader {
    body: ReplayBody,
    attempt: u32,
    cursor: Cursor,
    ended: bool,
}

impl BodyReader {
    /// All that there is to be read, if it is there already; itself otherwise.
    pub fn into_buffered(self) -> Result<Bytes, Self> {
        match self.body.0 {
            Kind::Buffered(whole) if !self.ended => Ok(whole),
            _ => Err(self),
        }
    }

    /// The next piece; `None` at the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        let state = match &self.body.0 {
            Kind::Streamed(state) => state,
            Kind::Buffered(whole) => {
                let piece = (!std::mem::replace(&mut self.ended, true)).then(|| whole.clone());
                return Poll::Ready(Ok(piece));
            }
        };
        let mut state = state.borrow_mut();
        if state.attempt != self.attempt {
            return Poll::Ready(Err(RequestBodyError::Superseded));
        }
        let piece = state.poll_next_chunk(&mut self.cursor, cx);
        match &piece {
            Poll::Pending => state.register_waker(cx),
            Poll::Ready(piece) if state.replay_done => {
                self.ended = matches!(piece, Ok(None)) || state.source.is_none();
            }
            // More of what was kept may follow.
            Poll::Ready(_) => {}
        }
        piece
    }

    /// The next piece, with small ones that are here already behind it: for where each piece costs much more than its
    /// bytes. `None` at the end.
    pub fn poll_coalesced(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        let piece = ready!(self.poll_chunk(cx))?;
        let Some(first) = piece else { return Poll::Ready(Ok(None)) };
        let mut gathered = BytesMut::new();
        // What ends it, ends it again with the next call.
        while first.len() + gathered.len() < MIN_SLICE_BYTES
            && !self.ended
            && let Poll::Ready(Ok(Some(next))) = self.poll_chunk(cx)
        {
            gathered.extend_from_slice(&next);
        }
        let whole = if gathered.is_empty() { first } else { [&first[..], &gathered].concat().into() };
        Poll::Ready(Ok(Some(whole)))
    }

    /// Whether the last piece was handed out. It may say no where the end is not yet known.
    pub fn is_ended(&self) -> bool {
        self.ended
    }
}

impl fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}
