//! The body that goes to the caller, and what must last until its end.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::record::Record;
use crate::{server::Busy, upload::Upload, upstream::AnswerBody};

/// The answer broke off; the caller's connection is broken off too, so that no short body looks whole.
#[derive(Debug, thiserror::Error)]
#[error("the upstream broke off in the middle of its answer")]
pub struct Broken;

/// A body towards the caller.
pub struct ReplyBody {
    pieces: Pieces,
    record: Option<Record>,
    /// The connection is in use until the body has been handed over.
    _busy: Option<Busy>,
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
    _permit: Option<OwnedSemaphorePermit>,
}

impl ReplyBody {
    /// A body that is all there.
    pub(super) fn whole(body: Bytes) -> Self {
        Self { pieces: Pieces::Whole(body), record: None, _busy: None }
    }

    /// A body of which `held` is here and `rest` is to come.
    pub(super) fn streamed(
        mut held: VecDeque<Bytes>,
        rest: AnswerBody,
        upload: Option<Upload>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        if rest.is_ended() && held.len() <= 1 {
            return Self::whole(held.pop_front().unwrap_or_default());
        }
        let streamed = Streamed { held, rest, _upload: upload, _permit: Some(permit) };
        Self { pieces: Pieces::Streamed(Box::new(streamed)), record: None, _busy: None }
    }

    /// Holds these until the body has ended.
    pub(super) fn until_end(self, mut record: Record, busy: Busy) -> Self {
        record.whole = self.has_ended();
        Self { record: Some(record), _busy: Some(busy), ..self }
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
        let piece = match &mut self.pieces {
            Pieces::Whole(body) if body.is_empty() => None,
            Pieces::Whole(body) => Some(Ok(std::mem::take(body))),
            Pieces::Streamed(streamed) => match streamed.held.pop_front() {
                Some(piece) => Some(Ok(piece)),
                None => ready!(streamed.rest.poll_data(cx)),
            },
        };
        let ended = self.has_ended();
        if let Some(record) = &mut self.record {
            record.bytes +=
                piece.as_ref().map_or(0, |piece| piece.as_ref().map_or(0, |piece| piece.len() as u64));
            record.whole = ended && !matches!(piece, Some(Err(_)));
        }
        Poll::Ready(piece.map(|piece| {
            piece.map(Frame::data).map_err(|failure| {
                tracing::warn!(failure = %failure.flaw, "the upstream broke off in the middle of an answer");
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
