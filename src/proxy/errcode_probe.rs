//! A first look at an answer: is it a refusal of the token? No more of the body is held back than it takes to tell.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::Instant;

use super::response_headers::{forwarded_headers, local_headers};
use crate::{
    http1::headers::{HeaderBlock, KnownHeader},
    limits::concurrency_limit::Permit,
    tokens::Token,
    upstream::{UpstreamBody, UpstreamError, UpstreamResponse},
    wecom::response::{ResponseScanner, Verdict, may_carry_errcode, parse_errcode},
};

/// An answer whose errcode has not shown within this many bytes is taken for one without. A refusal is some hundred
/// bytes; 4096 requests in flight must not hold back 4096 large lists. The framing counts too, or an answer of single
/// bytes would be looked at many times as long.
const MAX_PROBE_BYTES: u64 = 1024 * 1024;

/// An answer that was looked at.
pub(super) struct ProbedResponse {
    pub(super) status: StatusCode,
    /// Its header lines, as they go on to the caller.
    pub(super) headers: HeaderBlock,
    /// Whether there is a `Date` among them.
    pub(super) has_date: bool,
    /// How long its head says that the body is, or would be.
    pub(super) content_length: Option<u64>,
    /// What was held back while looking.
    pub(super) buffered: Buffered,
    /// What is still to come.
    pub(super) remaining: UpstreamBody,
    /// The top-level errcode, where one showed.
    pub(super) errcode: Option<i64>,
    /// How long the head took.
    pub(super) time_to_header: Duration,
    /// The request's place among those in flight, until its answer has ended.
    pub(super) permit: Option<Permit>,
}

/// Pieces of a body that are here, in order. Nearly always there is one, or none. Those behind it are copied together:
/// each may be a slice of a read buffer of its own, which it would keep alive.
#[derive(Default)]
pub(super) struct Buffered {
    first: Option<Bytes>,
    more: BytesMut,
}

impl Buffered {
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
    pub(super) fn take_single(&mut self) -> Option<Bytes> {
        self.more.is_empty().then(|| self.first.take().unwrap_or_default())
    }

    /// The pieces that are still here.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let more = (!self.more.is_empty()).then_some(&self.more[..]);
        self.first.as_deref().into_iter().chain(more)
    }
}

impl ProbedResponse {
    /// An answer of the proxy's own, in WeCom's words.
    pub(super) fn local(body: Bytes) -> Box<Self> {
        let errcode = parse_errcode(&body);
        Box::new(Self {
            status: StatusCode::OK,
            headers: local_headers(),
            has_date: false,
            content_length: Some(body.len() as u64),
            buffered: Buffered { first: Some(body), more: BytesMut::new() },
            remaining: UpstreamBody::empty(),
            errcode,
            time_to_header: Duration::ZERO,
            permit: None,
        })
    }

    /// The same, holding a place among the requests in flight.
    pub(super) fn with_permit(mut self: Box<Self>, place: Permit) -> Box<Self> {
        self.permit = Some(place);
        self
    }

    /// Takes in the rest of the body, if it is no longer than `most` bytes.
    pub(super) async fn buffer_remaining(
        mut self: Box<Self>,
        most: usize,
    ) -> Result<Box<Self>, UpstreamError> {
        let mut length: usize = self.buffered.chunks().map(<[u8]>::len).sum();
        while length < most
            && let Some(piece) = self.remaining.data().await.transpose()?
        {
            length += piece.len();
            self.buffered.push(piece);
        }
        Ok(self)
    }

    /// The whole body, if all of it is here.
    pub(super) fn complete_body(&self) -> Option<Bytes> {
        self.remaining.is_ended().then(|| self.buffered.chunks().flatten().copied().collect())
    }
}

/// An answer that is being looked at.
pub(super) struct ErrcodeProbe {
    response: Box<ProbedResponse>,
    /// Where it is not yet known whether there is an errcode.
    scanner: Option<Box<ResponseScanner>>,
    probed_bytes: u64,
}

impl ErrcodeProbe {
    /// Looks at the head, and at the body if all of it came with the head. `token` is what the request was sent with, and
    /// `sent` when.
    pub(super) fn start(answer: UpstreamResponse, token: Option<&Token>, sent: Instant) -> Self {
        let UpstreamResponse { status, headers: fields, content_length: length, body, received_at: came } =
            answer;
        let mut response = Box::new(ProbedResponse {
            status,
            headers: forwarded_headers(&fields, token),
            has_date: fields.contains(KnownHeader::Date),
            content_length: length,
            buffered: Buffered::default(),
            remaining: body,
            errcode: None,
            time_to_header: came.saturating_duration_since(sent),
            permit: None,
        });
        if !may_carry_errcode(status, &fields) {
            return Self { response, scanner: None, probed_bytes: 0 };
        }
        let mut scanner = ResponseScanner::new(&fields);
        let mut verdict = scanner.verdict();
        if verdict == Verdict::Undecided
            && let Some(whole) = response.remaining.take_buffered()
        {
            verdict = scanner.feed(&whole);
            response.buffered.push(whole);
            if verdict == Verdict::Undecided {
                verdict = scanner.finish();
            }
        }
        if let Verdict::Found(found) = verdict {
            response.errcode = Some(found);
        }
        // Seldom, and it takes much room.
        let scanner = (verdict == Verdict::Undecided).then(|| Box::new(scanner));
        Self { response, scanner, probed_bytes: 0 }
    }

    /// Reads on until the errcode has shown, or it is certain that there is none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        let Some(scanner) = &mut self.scanner else { return Poll::Ready(Ok(())) };
        let mut verdict = scanner.verdict();
        while verdict == Verdict::Undecided
            && self.probed_bytes + self.response.remaining.framing_overhead() < MAX_PROBE_BYTES
        {
            let Some(piece) = ready!(self.response.remaining.poll_data(cx)).transpose()? else {
                verdict = scanner.finish();
                break;
            };
            verdict = scanner.feed(&piece);
            self.probed_bytes += piece.len() as u64;
            self.response.buffered.push(piece);
        }
        if let Verdict::Found(found) = verdict {
            self.response.errcode = Some(found);
        }
        Poll::Ready(Ok(()))
    }

    /// The answer, as far as it was looked at.
    pub(super) fn finish(self) -> Box<ProbedResponse> {
        self.response
    }
}
