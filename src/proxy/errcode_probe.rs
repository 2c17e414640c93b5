//! Probes a response for an errcode, buffering no more of the body than that takes.

use std::{
    net::IpAddr,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{BufMut, Bytes};
use http::StatusCode;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::initial_response_headers::{headers_for_client, local_headers};
use crate::{
    http1::headers::{HeaderBlock, HeaderKind},
    limits::concurrency_limit::Permit,
    tokens::Token,
    upstream::{UpstreamBody, UpstreamError, UpstreamResponse},
    wecom::{
        errcode,
        response::{ResponseScanner, Verdict, may_carry_errcode, parse_errcode},
    },
};

/// The probe ends after this many bytes of body and framing, and forwards the response as one without an errcode. A
/// refusal has a few hundred bytes; the bound keeps requests in flight from buffering as many large lists, or endless
/// one-byte chunks.
const MAX_PROBE_BYTES: u64 = 1024 * 1024;

/// What one response may buffer without a share of [`BUFFER_BUDGET`].
const MAX_FREE_BYTES: usize = 64 * 1024;
/// The unit of the budget, in bytes.
const BUDGET_UNIT: usize = 64 * 1024;
/// Memory for what probes have buffered and clients have not taken, in all workers together: 128 MiB. Without a share, the
/// probe ends; the responses that matter have a few hundred bytes.
static BUFFER_BUDGET: Semaphore = Semaphore::const_new(128 * 1024 * 1024 / BUDGET_UNIT);

/// A probed response.
pub(super) struct ProbedResponse {
    pub(super) status: StatusCode,
    /// Headers as forwarded to the client.
    pub(super) headers: HeaderBlock,
    /// Whether the headers contain `Date`.
    pub(super) has_date: bool,
    /// `content-length` of the head; for HEAD and 304 the length that the body would have.
    pub(super) content_length: Option<u64>,
    /// Chunks buffered during the probe.
    pub(super) buffered: BufferedChunks,
    /// The body after the buffered chunks.
    pub(super) remaining: UpstreamBody,
    /// The top-level errcode, if found.
    pub(super) errcode: Option<i64>,
    /// Time from sending the request to the response head.
    pub(super) time_to_header: Duration,
    /// The in-flight permit, held until the upstream's response has ended or is dropped.
    pub(super) permit: Option<Permit>,
}

/// Buffered chunks of a body, in order; usually one or none. Later chunks are copied into one buffer, because each
/// could keep a read buffer alive.
#[derive(Default)]
pub(super) struct BufferedChunks {
    first: Option<Bytes>,
    more: Option<Box<CopiedChunks>>,
}

/// Chunks in one buffer, and its share of the budget.
#[derive(Default)]
struct CopiedChunks {
    bytes: Vec<u8>,
    share: Option<SemaphorePermit<'static>>,
}

impl AsRef<[u8]> for CopiedChunks {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl CopiedChunks {
    /// Appends a chunk; false if there is no share of the budget for it.
    fn push(&mut self, chunk: &[u8]) -> bool {
        self.bytes.extend_from_slice(chunk);
        let units = self.bytes.capacity().saturating_sub(MAX_FREE_BYTES).div_ceil(BUDGET_UNIT);
        let held = self.share.as_ref().map_or(0, SemaphorePermit::num_permits);
        let Some(missing) = units.checked_sub(held).filter(|missing| *missing > 0) else { return true };
        let Ok(share) = BUFFER_BUDGET.try_acquire_many(missing as u32) else { return false };
        match &mut self.share {
            Some(held) => held.merge(share),
            none => *none = Some(share),
        }
        true
    }
}

impl BufferedChunks {
    /// Appends a chunk; false if no more may be buffered.
    fn push(&mut self, chunk: Bytes) -> bool {
        match (&self.first, &mut self.more) {
            (None, None) => {
                self.first = Some(chunk);
                true
            }
            (_, more) => more.get_or_insert_default().push(&chunk),
        }
    }

    /// Takes the next chunk.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        self.first.take().or_else(|| self.more.take().map(|more| Bytes::from_owner(*more)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_none()
    }

    /// Takes the only chunk, empty if there is none; `None` if there are several.
    pub(super) fn take_single(&mut self) -> Option<Bytes> {
        self.more.is_none().then(|| self.first.take().unwrap_or_default())
    }

    /// The buffered chunks.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.first.as_deref().into_iter().chain(self.more.as_deref().map(CopiedChunks::as_ref))
    }
}

impl ProbedResponse {
    /// A response of the proxy with a body in WeCom's format.
    pub(super) fn local(body: Bytes) -> Box<Self> {
        let errcode = parse_errcode(&body);
        Box::new(Self {
            status: StatusCode::OK,
            headers: local_headers("application/json; charset=UTF-8"),
            has_date: false,
            content_length: Some(body.len() as u64),
            buffered: BufferedChunks { first: Some(body), more: None },
            remaining: UpstreamBody::empty(),
            errcode,
            time_to_header: Duration::ZERO,
            permit: None,
        })
    }

    /// A response that was kept, with headers as sent to a client.
    pub(super) fn stored(status: u16, headers: &[u8], body: Bytes, errcode: Option<i64>) -> Box<Self> {
        let mut response = Self::local(body);
        response.status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        response.headers = HeaderBlock::default();
        response.headers.buffer_mut().put_slice(headers);
        response.errcode = errcode;
        response
    }

    /// Attaches the in-flight permit.
    pub(super) fn with_permit(mut self: Box<Self>, permit: Permit) -> Box<Self> {
        self.permit = Some(permit);
        self
    }

    /// Buffers the rest of the body, up to about `max_bytes`.
    pub(super) async fn buffer_remaining(
        mut self: Box<Self>,
        max_bytes: usize,
    ) -> Result<Box<Self>, UpstreamError> {
        let mut length: usize = self.buffered.chunks().map(<[u8]>::len).sum();
        while length < max_bytes
            && let Some(chunk) = self.remaining.data().await.transpose()?
        {
            length += chunk.len();
            if !self.buffered.push(chunk) {
                break;
            }
        }
        Ok(self)
    }

    /// The address that WeCom does not trust, if the buffered part of the body names it.
    pub(super) fn untrusted_address(&self) -> Option<IpAddr> {
        self.buffered.chunks().find_map(errcode::untrusted_address)
    }

    /// Copies the body if it is completely buffered.
    pub(super) fn complete_body(&self) -> Option<Bytes> {
        self.remaining.is_ended().then(|| self.buffered.chunks().flatten().copied().collect())
    }
}

/// The probe of a response in progress.
pub(super) struct ErrcodeProbe {
    response: Box<ProbedResponse>,
    /// Present if the head, with the body that came with it, left the errcode undecided.
    scanner: Option<Box<ResponseScanner>>,
    probed_bytes: u64,
}

impl ErrcodeProbe {
    /// Probes the head, and the body if it arrived completely with the head. `token` is the token that the request
    /// was sent with at `sent_at`.
    pub(super) fn start(
        upstream_response: UpstreamResponse,
        token: Option<&Token>,
        sent_at: Instant,
    ) -> Self {
        let UpstreamResponse { status, headers: upstream_headers, content_length, body, received_at } =
            upstream_response;
        let mut response = Box::new(ProbedResponse {
            status,
            headers: headers_for_client(&upstream_headers, token),
            has_date: upstream_headers.contains(HeaderKind::Date),
            content_length,
            buffered: BufferedChunks::default(),
            remaining: body,
            errcode: None,
            time_to_header: received_at.saturating_duration_since(sent_at),
            permit: None,
        });
        if !may_carry_errcode(status, &upstream_headers) {
            return Self { response, scanner: None, probed_bytes: 0 };
        }
        let mut scanner = ResponseScanner::new(&upstream_headers);
        let mut verdict = scanner.verdict();
        if verdict == Verdict::Undecided
            && let Some(bytes) = response.remaining.take_buffered()
        {
            verdict = scanner.feed(&bytes);
            response.buffered.push(bytes);
            if verdict == Verdict::Undecided {
                verdict = scanner.finish();
            }
        }
        if let Verdict::Found(errcode) = verdict {
            response.errcode = Some(errcode);
        }
        // Boxed: rare, and the scanner is large.
        let scanner = (verdict == Verdict::Undecided).then(|| Box::new(scanner));
        Self { response, scanner, probed_bytes: 0 }
    }

    /// Reads the body until the errcode is found or excluded.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        let Some(scanner) = &mut self.scanner else { return Poll::Ready(Ok(())) };
        let mut verdict = scanner.verdict();
        while verdict == Verdict::Undecided
            && self.probed_bytes + self.response.remaining.framing_overhead() < MAX_PROBE_BYTES
        {
            let Some(chunk) = ready!(self.response.remaining.poll_data(cx)).transpose()? else {
                verdict = scanner.finish();
                break;
            };
            verdict = scanner.feed(&chunk);
            self.probed_bytes += chunk.len() as u64;
            if !self.response.buffered.push(chunk) {
                break;
            }
        }
        if let Verdict::Found(errcode) = verdict {
            self.response.errcode = Some(errcode);
        }
        Poll::Ready(Ok(()))
    }

    /// The response with what the probe found.
    pub(super) fn finish(self) -> Box<ProbedResponse> {
        self.response
    }
}
