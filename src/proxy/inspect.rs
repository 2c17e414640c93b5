//! A first look at an answer: is it a refusal of the token? No more of the body is held back than it takes to tell.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::Instant;

use super::sign::{own_lines, passed_on};
use crate::{
    fields::{Block, Known},
    limits::places::Place,
    tokens::Token,
    upstream::{Answer, AnswerBody, Failure},
    wecom::reply::{ReplyScanner, Verdict, errcode_of, may_carry_errcode},
};

/// An answer whose errcode has not shown within this many bytes is taken for one without. A refusal is some hundred
/// bytes; 4096 requests in flight must not hold back 4096 large lists. The framing counts too, or an answer of single
/// bytes would be looked at many times as long.
const LONGEST_LOOK: u64 = 1024 * 1024;

/// An answer that was looked at.
pub(super) struct Inspected {
    pub(super) status: StatusCode,
    /// Its header lines, as they go on to the caller.
    pub(super) lines: Block,
    /// Whether there is a `Date` among them.
    pub(super) dated: bool,
    /// How long its head says that the body is, or would be.
    pub(super) length: Option<u64>,
    /// What was held back while looking.
    pub(super) held: Held,
    /// What is still to come.
    pub(super) rest: AnswerBody,
    /// The top-level errcode, where one showed.
    pub(super) errcode: Option<i64>,
    /// How long the head took.
    pub(super) took: Duration,
    /// The request's place among those in flight, until its answer has ended.
    pub(super) place: Option<Place>,
}

/// Pieces of a body that are here, in order. Nearly always there is one, or none. Those behind it are copied together:
/// each may be a slice of a read buffer of its own, which it would keep alive.
#[derive(Default)]
pub(super) struct Held {
    first: Option<Bytes>,
    more: BytesMut,
}

impl Held {
    fn push(&mut self, piece: Bytes) {
        match self.first {
            None if self.more.is_empty() => self.first = Some(piece),
            _ => self.more.extend_from_slice(&piece),
        }
    }

    /// Takes the next piece.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let more = || (!self.more.is_empty()).then(|| std::mem::take(&mut self.more).freeze());
        self.first.take().or_else(more)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_empty()
    }

    /// Takes the only piece, or nothing if there is none; `None` where there are several.
    pub(super) fn take_whole(&mut self) -> Option<Bytes> {
        self.more.is_empty().then(|| self.first.take().unwrap_or_default())
    }

    /// The pieces that are still here.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let more = (!self.more.is_empty()).then_some(&self.more[..]);
        self.first.as_deref().into_iter().chain(more)
    }
}

impl Inspected {
    /// An answer of the proxy's own, in WeCom's words.
    pub(super) fn local(body: Bytes) -> Box<Self> {
        let errcode = errcode_of(&body);
        Box::new(Self {
            status: StatusCode::OK,
            lines: own_lines(),
            dated: false,
            length: Some(body.len() as u64),
            held: Held { first: Some(body), more: BytesMut::new() },
            rest: AnswerBody::ended(),
            errcode,
            took: Duration::ZERO,
            place: None,
        })
    }

    /// The same, holding a place among the requests in flight.
    pub(super) fn at(mut self: Box<Self>, place: Place) -> Box<Self> {
        self.place = Some(place);
        self
    }

    /// Takes in the rest of the body, if it is no longer than `most` bytes.
    pub(super) async fn collect(mut self: Box<Self>, most: usize) -> Result<Box<Self>, Failure> {
        let mut length: usize = self.held.pieces().map(<[u8]>::len).sum();
        while length < most
            && let Some(piece) = self.rest.data().await.transpose()?
        {
            length += piece.len();
            self.held.push(piece);
        }
        Ok(self)
    }

    /// The whole body, if all of it is here.
    pub(super) fn whole(&self) -> Option<Bytes> {
        self.rest.is_ended().then(|| self.held.pieces().flatten().copied().collect())
    }
}

/// An answer that is being looked at.
pub(super) struct Inspection {
    seen: Box<Inspected>,
    /// Where it is not yet known whether there is an errcode.
    scanner: Option<Box<ReplyScanner>>,
    looked_at: u64,
}

impl Inspection {
    /// Looks at the head, and at the body if all of it came with the head. `token` is what the request was sent with, and
    /// `sent` when.
    pub(super) fn begin(answer: Answer, token: Option<&Token>, sent: Instant) -> Self {
        let Answer { status, fields, length, body, came } = answer;
        let mut seen = Box::new(Inspected {
            status,
            lines: passed_on(&fields, token),
            dated: fields.contains(Known::Date),
            length,
            held: Held::default(),
            rest: body,
            errcode: None,
            took: came.saturating_duration_since(sent),
            place: None,
        });
        if !may_carry_errcode(status, &fields) {
            return Self { seen, scanner: None, looked_at: 0 };
        }
        let mut scanner = ReplyScanner::new(&fields);
        let mut verdict = scanner.verdict();
        if verdict == Verdict::Undecided
            && let Some(whole) = seen.rest.take_whole()
        {
            verdict = scanner.feed(&whole);
            seen.held.push(whole);
            if verdict == Verdict::Undecided {
                verdict = scanner.finish();
            }
        }
        if let Verdict::Found(found) = verdict {
            seen.errcode = Some(found);
        }
        // Seldom, and it takes much room.
        let scanner = (verdict == Verdict::Undecided).then(|| Box::new(scanner));
        Self { seen, scanner, looked_at: 0 }
    }

    /// Reads on until the errcode has shown, or it is certain that there is none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let Some(scanner) = &mut self.scanner else { return Poll::Ready(Ok(())) };
        let mut verdict = scanner.verdict();
        while verdict == Verdict::Undecided && self.looked_at + self.seen.rest.overhead() < LONGEST_LOOK {
            let Some(piece) = ready!(self.seen.rest.poll_data(cx)).transpose()? else {
                verdict = scanner.finish();
                break;
            };
            verdict = scanner.feed(&piece);
            self.looked_at += piece.len() as u64;
            self.seen.held.push(piece);
        }
        if let Verdict::Found(found) = verdict {
            self.seen.errcode = Some(found);
        }
        Poll::Ready(Ok(()))
    }

    /// The answer, as far as it was looked at.
    pub(super) fn end(self) -> Box<Inspected> {
        self.seen
    }
}
