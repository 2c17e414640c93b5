//! A request's body on its way to the upstream: streamed as it comes, bounded, and kept so that it can be sent again.
//!
//! The first reader takes each piece from the client, keeps a copy and hands it on at once; a later reader gets the kept
//! pieces first and then goes on with what the client still sends. It knows nothing of HTTP towards the upstream.

mod budget;
pub(crate) mod fuzz;
mod keep;
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

use self::keep::{Kept, Place};
pub use self::{
    budget::{Owner, Shelf},
    keep::Full,
};
use crate::{
    deadline::Deadline,
    framing::{MIN_SLICE_BYTES, detached},
};

/// Why a request's body could not be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// More bytes than the bound allows.
    #[error("the body is larger than the bound")]
    TooLarge,
    /// Nothing came for longer than the bound allows.
    #[error("the body stalled")]
    Silent,
    /// The client went away, or sent a body that is not well formed.
    #[error("the body broke off")]
    Broken,
    /// It has far more chunk framing than data.
    #[error("the body is nearly all chunk framing")]
    Overhead,
    /// What was kept of it cannot be read back; this one is the machine's doing.
    #[error("the kept body cannot be read back")]
    Lost,
    /// A newer reader has taken over; whoever still holds this one need not go on.
    #[error("the body is sent by another attempt")]
    Superseded,
}

/// The bounds of a request's body.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most bytes that are taken.
    pub bytes: u64,
    /// Longest silence between two pieces.
    pub silence: Duration,
}

/// A request's body as the server found it, before anybody has decided to read it.
pub enum Body {
    /// There is none.
    None,
    /// It came together with the head.
    Whole(Bytes),
    /// It comes piece by piece.
    Streamed(Box<dyn Source>),
}

impl Body {
    /// How long it is, as far as its head says.
    pub fn declared(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Whole(whole) => Some(whole.len() as u64),
            Self::Streamed(source) => source.declared(),
        }
    }
}

/// Where the pieces of a body come from. What is not read of it when it is dropped is its own concern.
pub trait Source {
    /// How long the body is, as far as its head says.
    fn declared(&self) -> Option<u64>;
    /// The next piece; `None` at the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>>;
    /// Whether the last piece was handed out. It may say no where the end is not yet known.
    fn is_ended(&self) -> bool;
}

/// Why the pieces of a body end before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The client went away, or sent what is not well formed.
    Broken,
    /// The client sent far more chunk framing than data.
    Overhead,
}

impl From<Cut> for UploadError {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Broken => Self::Broken,
            Cut::Overhead => Self::Overhead,
        }
    }
}

/// A request's body that can be read more than once. Cloning gives another handle on the same body.
#[derive(Clone)]
pub struct Upload(Kind);

#[derive(Clone)]
enum Kind {
    Whole(Bytes),
    Streamed(Rc<RefCell<State>>),
}

struct State {
    source: Option<Box<dyn Source>>,
    /// What its head said of its length.
    declared: Option<u64>,
    received: u64,
    bounds: Bounds,
    silence: Deadline,
    kept: Option<Kept>,
    /// There will be no other attempt.
    settled: bool,
    /// The running attempt has read all that was kept.
    caught_up: bool,
    attempt: u32,
    /// The task of a reader that waits.
    waiting: Option<Waker>,
    failed: Option<UploadError>,
}

impl Upload {
    /// Takes a body to read it; `None` where there is none. With a shelf its pieces are kept for another attempt, and it
    /// is [`Full`] where that has no room now for the length that its head says.
    pub fn new(
        body: Body,
        bounds: Bounds,
        shelf: Option<(&Arc<Shelf>, Owner)>,
    ) -> Result<Option<Self>, Full> {
        let source = match body {
            Body::None => return Ok(None),
            Body::Whole(whole) => return Ok(Some(Self(Kind::Whole(whole)))),
            Body::Streamed(source) => source,
        };
        let declared = source.declared();
        let kept = shelf.map(|(shelf, owner)| Kept::new(shelf, owner, declared)).transpose()?;
        Ok(Some(Self(Kind::Streamed(Rc::new(RefCell::new(State {
            declared,
            source: Some(source),
            received: 0,
            bounds,
            silence: Deadline::idle(),
            kept,
            settled: false,
            caught_up: true,
            attempt: 0,
            waiting: None,
            failed: None,
        }))))))
    }

    /// Whether [`Upload::reader`] would give one.
    pub fn can_be_read_again(&self) -> bool {
        let Kind::Streamed(state) = &self.0 else { return true };
        let state = state.borrow();
        state.received == 0 || state.kept.as_ref().is_some_and(Kept::is_whole)
    }

    /// A reader from the body's first byte; `None` when that byte is no longer there. Readers given out before end
    /// with [`UploadError::Superseded`].
    pub fn reader(&self) -> Option<Reader> {
        if !self.can_be_read_again() {
            return None;
        }
        let attempt = match &self.0 {
            Kind::Whole(_) => 0,
            Kind::Streamed(state) => {
                let mut state = state.borrow_mut();
                state.attempt += 1;
                if let Some(kept) = &mut state.kept {
                    kept.rewind();
                }
                state.caught_up = state.received == 0;
                let attempt = state.attempt;
                // Over HTTP/2 another task holds the reader before this one, and with it all that is kept; from now on the
                // client calls the newer one's.
                let superseded = state.waiting.take();
                drop(state);
                superseded.into_iter().for_each(Waker::wake);
                attempt
            }
        };
        Some(Reader { upload: self.clone(), attempt, place: Place::default(), ended: false })
    }

    /// There will be no other attempt: what was kept goes as soon as the running reader has read it. It goes on with what
    /// still comes.
    pub fn settle(&self) {
        if let Kind::Streamed(state) = &self.0 {
            let mut state = state.borrow_mut();
            state.settled = true;
            state.let_go();
        }
    }

    /// Copies a small body that came whole out of the read buffer, which a request that waits must not keep.
    pub fn detach(&mut self) {
        if let Kind::Whole(whole) = &mut self.0 {
            *whole = detached(std::mem::take(whole));
        }
    }

    /// How many bytes have come so far.
    pub fn received(&self) -> u64 {
        match &self.0 {
            Kind::Whole(whole) => whole.len() as u64,
            Kind::Streamed(state) => state.borrow().received,
        }
    }

    /// Why the client's side failed, if it did.
    pub fn failure(&self) -> Option<UploadError> {
        match &self.0 {
            Kind::Whole(_) => None,
            Kind::Streamed(state) => state.borrow().failed,
        }
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl State {
    /// Lets go of what was kept, if nobody will read it any more.
    fn let_go(&mut self) {
        if self.settled && self.caught_up {
            self.kept = None;
        }
    }

    /// The next piece behind what a reader has seen: a kept one, or what the client sends.
    fn poll_next(
        &mut self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, UploadError>> {
        if let Some(kept) = &mut self.kept {
            ready!(kept.poll_idle(cx));
            match ready!(kept.poll_read(place, cx)) {
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) => {
                    self.caught_up = true;
                    self.let_go();
                }
                Err(error) => {
                    tracing::warn!(%error, "a kept request body could not be read back");
                    self.failed = Some(UploadError::Lost);
                    return Poll::Ready(Err(UploadError::Lost));
                }
            }
        }
        let piece = ready!(self.poll_source(cx));
        if let (Ok(Some(piece)), Some(kept)) = (&piece, &mut self.kept) {
            kept.push(piece);
            place.skip(kept);
        }
        Poll::Ready(piece)
    }

    fn note_who_waits(&mut self, cx: &Context<'_>) {
        if !self.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            self.waiting = Some(cx.waker().clone());
        }
    }

    /// The next piece that the client sends.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, UploadError>> {
        if let Some(failed) = self.failed {
            return Poll::Ready(Err(failed));
        }
        let Some(source) = self.source.as_mut() else { return Poll::Ready(Ok(None)) };
        let Poll::Ready(piece) = source.poll_piece(cx) else {
            self.silence.set_if_idle(self.bounds.silence);
            ready!(self.silence.poll_passed(cx));
            return self.fail(UploadError::Silent);
        };
        self.silence.clear();
        let ended = source.is_ended();
        let piece = match piece {
            Ok(piece) => piece,
            Err(cut) => return self.fail(cut.into()),
        };
        self.received += piece.as_ref().map_or(0, Bytes::len) as u64;
        if self.received > self.bounds.bytes {
            return self.fail(UploadError::TooLarge);
        }
        let over = ended || piece.is_none();
        // The upstream was told this length: one byte less or more, and the next request would begin in the wrong place.
        let belied =
            self.declared.is_some_and(|length| self.received > length || (over && self.received < length));
        if belied {
            return self.fail(UploadError::Broken);
        }
        if over {
            self.source = None;
        }
        Poll::Ready(Ok(piece))
    }

    fn fail(&mut self, error: UploadError) -> Poll<Result<Option<Bytes>, UploadError>> {
        self.failed = Some(error);
        Poll::Ready(Err(error))
    }
}

/// One reading of an [`Upload`], from its first byte.
pub struct Reader {
    upload: Upload,
    attempt: u32,
    place: Place,
    ended: bool,
}

impl Reader {
    /// All that there is to be read, if it is there already; itself otherwise.
    pub fn into_whole(self) -> Result<Bytes, Self> {
        match self.upload.0 {
            Kind::Whole(whole) if !self.ended => Ok(whole),
            _ => Err(self),
        }
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, UploadError>> {
        let state = match &self.upload.0 {
            Kind::Streamed(state) => state,
            Kind::Whole(whole) => {
                let piece = (!std::mem::replace(&mut self.ended, true)).then(|| whole.clone());
                return Poll::Ready(Ok(piece));
            }
        };
        let mut state = state.borrow_mut();
        if state.attempt != self.attempt {
            return Poll::Ready(Err(UploadError::Superseded));
        }
        let piece = state.poll_next(&mut self.place, cx);
        match &piece {
            Poll::Pending => state.note_who_waits(cx),
            Poll::Ready(piece) if state.caught_up => {
                self.ended = matches!(piece, Ok(None)) || state.source.is_none();
            }
            // More of what was kept may follow.
            Poll::Ready(_) => {}
        }
        piece
    }

    /// The next piece, with small ones that are here already behind it: for where each piece costs much more than its
    /// bytes. `None` at the end.
    pub fn poll_gathered(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, UploadError>> {
        let piece = ready!(self.poll_piece(cx))?;
        let Some(first) = piece else { return Poll::Ready(Ok(None)) };
        let mut gathered = BytesMut::new();
        // What ends it, ends it again with the next call.
        while first.len() + gathered.len() < MIN_SLICE_BYTES
            && !self.ended
            && let Poll::Ready(Ok(Some(next))) = self.poll_piece(cx)
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

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}
