//! A request's body on its way to the upstream: streamed as it comes, bounded, and kept so that it can be sent again.
//!
//! The first reader takes each piece from the client, keeps a copy and hands it on at once; a later reader gets the kept
//! pieces first and then goes on with what the client still sends. It knows nothing of HTTP towards the upstream.

mod keep;

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;

pub use self::keep::Shelf;
use self::keep::{Kept, Place};
use crate::deadline::Deadline;

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

/// A request's body that can be read more than once. Cloning gives another handle on the same body.
#[derive(Clone)]
pub struct Upload(Arc<Mutex<State>>);

struct State {
    source: Option<Incoming>,
    declared: Option<u64>,
    received: u64,
    bounds: Bounds,
    silence: Deadline,
    kept: Option<Kept>,
    attempt: u32,
    failed: Option<UploadError>,
    unread: Option<Box<dyn FnOnce(Incoming) + Send>>,
}

impl Upload {
    /// Wraps a body of `declared` bytes, if known. With a shelf the pieces are kept for another attempt.
    pub fn new(source: Incoming, declared: Option<u64>, bounds: Bounds, shelf: Option<&Arc<Shelf>>) -> Self {
        Self(Arc::new(Mutex::new(State {
            source: Some(source),
            declared,
            received: 0,
            bounds,
            silence: Deadline::idle(),
            kept: shelf.map(|shelf| Kept::new(shelf.clone())),
            attempt: 0,
            failed: None,
            unread: None,
        })))
    }

    /// Hands what is left of this body to `leave` when it is dropped before its end was read.
    pub fn on_unread(&self, leave: impl FnOnce(Incoming) + Send + 'static) {
        self.state().unread = Some(Box::new(leave));
    }

    /// The length that the client declared; `None` for a body of unknown length.
    pub fn declared(&self) -> Option<u64> {
        self.state().declared
    }

    /// Bytes that came from the client so far.
    pub fn received(&self) -> u64 {
        self.state().received
    }

    /// Whether [`Upload::reader`] would give one.
    pub fn can_be_read_again(&self) -> bool {
        let state = self.state();
        state.received == 0 || state.kept.as_ref().is_some_and(Kept::is_whole)
    }

    /// A reader from the body's first byte; `None` when that byte is no longer there. Readers given out before end
    /// with [`UploadError::Superseded`].
    pub fn reader(&self) -> Option<Reader> {
        if !self.can_be_read_again() {
            return None;
        }
        let mut state = self.state();
        state.attempt += 1;
        if let Some(kept) = &mut state.kept {
            kept.rewind();
        }
        Some(Reader { upload: self.clone(), attempt: state.attempt, place: Place::default(), ended: false })
    }

    /// Lets go of what was kept: there will be no other attempt. A running reader goes on with what still comes.
    pub fn settle(&self) {
        self.state().kept = None;
    }

    /// Why the client's side failed, if it did.
    pub fn failure(&self) -> Option<UploadError> {
        self.state().failed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl State {
    /// The next piece that the client sends.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, UploadError>> {
        if let Some(failed) = self.failed {
            return Poll::Ready(Err(failed));
        }
        loop {
            let Some(source) = self.source.as_mut() else { return Poll::Ready(Ok(None)) };
            let Poll::Ready(frame) = Pin::new(&mut *source).poll_frame(cx) else {
                self.silence.set_if_idle(self.bounds.silence);
                ready!(self.silence.poll_passed(cx));
                return self.fail(UploadError::Silent);
            };
            self.silence.clear();
            match frame {
                Some(Ok(frame)) => {
                    // Trailers are hop-by-hop here: nobody sends them to WeCom.
                    let Ok(data) = frame.into_data() else { continue };
                    if data.is_empty() {
                        continue;
                    }
                    self.received += data.len() as u64;
                    if self.received > self.bounds.bytes {
                        return self.fail(UploadError::TooLarge);
                    }
                    if source.is_end_stream() {
                        self.source = None;
                    }
                    return Poll::Ready(Ok(Some(data)));
                }
                Some(Err(_)) => return self.fail(UploadError::Broken),
                None => self.source = None,
            }
        }
    }

    fn fail(&mut self, error: UploadError) -> Poll<Result<Option<Bytes>, UploadError>> {
        self.failed = Some(error);
        Poll::Ready(Err(error))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let unread = self.source.take().filter(|source| !source.is_end_stream());
        if let (Some(source), Some(leave)) = (unread, self.unread.take()) {
            leave(source);
        }
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
    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, UploadError>> {
        let mut state = self.upload.state();
        if state.attempt != self.attempt {
            return Poll::Ready(Err(UploadError::Superseded));
        }
        if let Some(kept) = &mut state.kept {
            ready!(kept.poll_idle(cx));
            match ready!(kept.poll_read(&mut self.place, cx)) {
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "a kept request body could not be read back");
                    state.failed = Some(UploadError::Lost);
                    return Poll::Ready(Err(UploadError::Lost));
                }
            }
        }
        let piece = ready!(state.poll_source(cx));
        if let (Ok(Some(piece)), Some(kept)) = (&piece, &mut state.kept) {
            kept.push(piece);
            self.place.skip(kept);
        }
        self.ended = matches!(piece, Ok(None)) || state.source.is_none();
        Poll::Ready(piece)
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
