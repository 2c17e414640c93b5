//! The body that goes to the caller, and what must last until its end.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::{record::Record, refusal::Kind};
use crate::{
    link::Busy,
    upload::Upload,
    upstream::{AnswerBody, Failure},
};

/// The answer broke off; the caller's connection is broken off too, so that no short body looks whole.
#[derive(Debug, thiserror::Error)]
#[error("the upstream broke off in the middle of its answer")]
pub struct Broken;

/// A body towards the caller.
pub struct ReplyBody {
    pieces: Pieces,
    record: Option<Record>,
    /// The connection is in use until the body has been handed over.
    busy: Option<Busy>,
}

enum Pieces {
    Whole(Bytes),
    Streamed(Box<Streamed>),
}

/// What is still on its way from the upstream.
struct Streamed {
    held: VecDeque<Bytes>,
    rest: AnswerBody,
    /// The upload may go on beside the answer.
    _upload: Option<Upload>,
    /// The request counts as in flight until here.
    _place: Option<OwnedSemaphorePermit>,
}

impl ReplyBody {
    /// A body that is all there.
    pub(super) fn whole(body: Bytes) -> Self {
        Self { pieces: Pieces::Whole(body), record: None, busy: None }
    }

    /// A body of which `held` is here and `rest` is to come.
    pub(super) fn streamed(
        mut held: VecDeque<Bytes>,
        rest: AnswerBody,
        upload: Option<Upload>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        if rest.is_ended() && held.len() <= 1 {
            return Self::whole(held.pop_front().unwrap_or_default());
        }
        let streamed = Streamed { held, rest, _upload: upload, _place: place };
        Self { pieces: Pieces::Streamed(Box::new(streamed)), record: None, busy: None }
    }

    /// Holds these until the body has ended.
    pub(super) fn until_end(self, mut record: Record, busy: Busy) -> Self {
        record.whole = self.has_ended();
        // The head comes first; what follows waits for the client to take it.
        busy.offer();
        Self { record: Some(record), busy: Some(busy), ..self }
    }

    /// The next piece, no longer than may be handed over at once.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let longest = self.busy.as_ref().map_or(usize::MAX, Busy::longest_piece);
        let streamed = match &mut self.pieces {
            Pieces::Whole(body) if body.is_empty() => return Poll::Ready(None),
            Pieces::Whole(body) => {
                return Poll::Ready(Some(Ok(body.split_to(longest.min(body.len())))));
            }
            Pieces::Streamed(streamed) => streamed,
        };
        let mut piece = match streamed.held.pop_front() {
            Some(piece) => piece,
            None => match ready!(streamed.rest.poll_data(cx)) {
                Some(Ok(piece)) => piece,
                other => return Poll::Ready(other),
            },
        };
        if piece.len() > longest {
            streamed.held.push_front(piece.split_off(longest));
        }
        Poll::Ready(Some(Ok(piece)))
    }

    fn has_ended(&self) -> bool {
        match &self.pieces {
            Pieces::Whole(body) => body.is_empty(),
            Pieces::Streamed(streamed) => streamed.held.is_empty() && streamed.rest.is_ended(),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let polled = self.poll_piece(cx);
        if let Some(busy) = &self.busy {
            if polled.is_ready() { busy.offer() } else { busy.owe() }
        }
        let piece = ready!(polled);
        let ended = self.has_ended();
        if let Some(record) = &mut self.record {
            match &piece {
                Some(Ok(piece)) => (record.bytes, record.whole) = (record.bytes + piece.len() as u64, ended),
                Some(Err(failure)) => record.error = Some((Kind::UpstreamBroke, failure.flaw.to_string())),
                None => record.whole = ended,
            }
        }
        Poll::Ready(piece.map(|piece| {
            piece.map(Frame::data).map_err(|_| {
                if let Some(busy) = &self.busy {
                    busy.sever();
                }
                Broken
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.pieces {
            Pieces::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Pieces::Streamed(_) => SizeHint::default(),
        }
    }
}
