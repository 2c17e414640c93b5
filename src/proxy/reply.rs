//! An answer as the server takes it: its head, and a body with what must last until its end.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use super::{
    inspect::{Held, Inspected},
    record::Record,
    refusal::Kind,
    sign::own_lines,
};
use crate::{
    fields::Block,
    limits::places::Place,
    upload::Upload,
    upstream::{AnswerBody, Failure},
};

/// The answer broke off; the caller's connection is broken off too, so that no short body looks whole.
#[derive(Debug, thiserror::Error)]
#[error("the upstream broke off in the middle of its answer")]
pub struct Broken;

/// An answer to a caller. It has no `Debug`: it may hold a pass.
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The header lines, but for those that frame the body.
    pub lines: Block,
    /// Whether there is a `Date` among them.
    pub dated: bool,
    /// How long the body is; to a HEAD, how long it would be.
    pub length: Option<u64>,
    /// The body.
    pub body: ReplyBody,
    /// It refuses a key that is none: the server may hold it back.
    pub wrong_key: bool,
}

impl Reply {
    /// An answer of the proxy's own.
    pub(super) fn own(status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            lines: own_lines(),
            dated: false,
            length: Some(body.len() as u64),
            body: ReplyBody::whole(body),
            wrong_key: false,
        }
    }

    /// The upstream's answer.
    pub(super) fn passed_on(answer: Box<Inspected>, upload: Option<Upload>) -> Self {
        let Inspected { status, lines, dated, length, mut held, rest, place, .. } = *answer;
        let whole = if rest.is_ended() { held.take_whole() } else { None };
        let (length, body) = match whole {
            // What is said of a body that is not there goes through as it was said: to a HEAD, and with a 304.
            Some(whole) if whole.is_empty() => (length, ReplyBody::whole(whole)),
            Some(whole) => (Some(whole.len() as u64), ReplyBody::whole(whole)),
            None => (length, ReplyBody::streamed(Streamed { held, rest, _upload: upload, _place: place })),
        };
        Self { status, lines, dated, length, body, wrong_key: false }
    }

    /// Ends the record of a response that is whole, as if its client had taken it: of a request that was refused, nothing
    /// is kept for as long as its client leaves the response lying. `is_head`: the body will not be sent.
    pub fn end_record(&mut self, is_head: bool) {
        self.body.end_record(is_head);
    }
}

/// A body towards the caller.
pub struct ReplyBody {
    pieces: Pieces,
    record: Option<Box<Record>>,
}

enum Pieces {
    Whole(Bytes),
    Streamed(Box<Streamed>),
}

/// What is still on its way from the upstream.
struct Streamed {
    held: Held,
    rest: AnswerBody,
    /// The upload may go on beside the answer.
    _upload: Option<Upload>,
    /// The request counts as in flight until here.
    _place: Option<Place>,
}

impl ReplyBody {
    fn whole(body: Bytes) -> Self {
        Self { pieces: Pieces::Whole(body), record: None }
    }

    fn streamed(streamed: Streamed) -> Self {
        Self { pieces: Pieces::Streamed(Box::new(streamed)), record: None }
    }

    /// Holds the record until the body has ended.
    pub(super) fn until_end(&mut self, mut record: Box<Record>) {
        record.whole = self.is_ended();
        self.record = Some(record);
    }

    fn end_record(&mut self, is_head: bool) {
        if let Pieces::Whole(body) = &self.pieces
            && let Some(mut record) = self.record.take()
            && !is_head
        {
            (record.bytes, record.whole) = (body.len() as u64, true);
        }
    }

    /// All of it was handed over, or never will be, by this moment.
    pub fn end(&mut self, now: Instant) {
        if let Some(record) = &mut self.record {
            record.ended = Some(now);
        }
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let piece = ready!(self.poll_pieces(cx));
        let ended = self.is_ended();
        let Some(record) = &mut self.record else {
            return Poll::Ready(piece.map(|piece| piece.map_err(|_| Broken)));
        };
        match &piece {
            Some(Ok(piece)) => {
                (record.bytes, record.whole) = (record.bytes + piece.len() as u64, ended);
                if let Some(look) = &mut record.look {
                    look.passes(piece);
                }
            }
            Some(Err(failure)) => record.error = Some((Kind::UpstreamBroke, failure.flaw.to_string())),
            None => record.whole = ended,
        }
        Poll::Ready(piece.map(|piece| piece.map_err(|_| Broken)))
    }

    fn poll_pieces(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        match &mut self.pieces {
            Pieces::Whole(body) if body.is_empty() => Poll::Ready(None),
            Pieces::Whole(body) => Poll::Ready(Some(Ok(std::mem::take(body)))),
            Pieces::Streamed(streamed) => match streamed.held.pop() {
                Some(piece) => Poll::Ready(Some(Ok(piece))),
                None => streamed.rest.poll_data(cx),
            },
        }
    }

    /// Goes on with the request's body, where it still comes, though nobody takes the answer's. A failure shows with the
    /// next piece.
    pub fn drive_upload(&mut self, cx: &mut Context<'_>) {
        if let Pieces::Streamed(streamed) = &mut self.pieces {
            streamed.rest.drive_upload(cx);
        }
    }

    /// Whether all of it was taken. It may say no where the end is not yet known.
    pub fn is_ended(&self) -> bool {
        match &self.pieces {
            Pieces::Whole(body) => body.is_empty(),
            Pieces::Streamed(streamed) => streamed.held.is_empty() && streamed.rest.is_ended(),
        }
    }
}
