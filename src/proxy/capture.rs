//! Captures headers and body excerpts of one exchange for the inspector, for agents with the capture switched on.
//!
//! It copies the messages as they are forwarded and changes neither. Redaction runs on another thread after the exchange,
//! because it may take milliseconds.

mod raw_exchange;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::time::Instant;

use self::raw_exchange::{BodyExcerpt, RawAttempt, RawAttempts, RawExchange, RawHeaders};
use super::{errcode_probe::ProbedResponse, request::Request};
use crate::inspector::redact::MASK;
use crate::{
    directory::{Agent, Directory},
    http1::headers::{Header, HeaderKind, Headers},
    inspector::{AttemptDetail, RedactionJob},
    request_body::{BodySource, BodySourceError, RequestBody},
    secret::Masked,
    tokens::Token,
};

/// The capture of one exchange so far. No `Debug`: it contains credentials.
pub(super) struct Capture {
    started: Instant,
    request_body: Rc<RefCell<BodyExcerpt>>,
    raw: RawExchange,
}

impl Capture {
    /// Starts a capture if the agent's capture switch is on.
    pub(super) fn start(
        directory: &Arc<Directory>,
        agent: Option<&Arc<Agent>>,
        request: &Request,
        started: Instant,
    ) -> Option<Box<Self>> {
        agent.filter(|agent| agent.capture_switch.is_on())?;
        let raw = RawExchange {
            directory: directory.clone(),
            query: request.target.query().unwrap_or_default().to_owned(),
            request_headers: request_headers(&request.headers),
            request_body: BodyExcerpt::default(),
            response_headers: RawHeaders::default(),
            response_body: BodyExcerpt::default(),
            token_waits: Vec::new(),
            attempts: RawAttempts::default(),
            credentials: request_credentials(&request.headers),
            tokens: Vec::new(),
        };
        Some(Box::new(Self { started, request_body: Rc::default(), raw }))
    }

    /// Returns the same body, copying its start while it is read.
    pub(super) fn tap_request_body(&self, body: RequestBody) -> RequestBody {
        match body {
            RequestBody::None => RequestBody::None,
            RequestBody::Buffered(bytes) => {
                self.request_body.borrow_mut().push(&bytes);
                RequestBody::Buffered(bytes)
            }
            RequestBody::Streamed(source) => {
                RequestBody::Streamed(Box::new(TappedBody { source, excerpt: self.request_body.clone() }))
            }
        }
    }

    /// Records a wait for a token that began at `since`.
    pub(super) fn record_token_wait(&mut self, since: Instant) {
        self.raw.token_waits.push((since.saturating_duration_since(self.started), since.elapsed()));
    }

    /// Records the start of an attempt with this token.
    pub(super) fn record_attempt(&mut self, sent_at: Instant, token: Option<&Token>) {
        let started_after = sent_at.saturating_duration_since(self.started);
        self.raw.tokens.extend(token.map(|token| token.value.clone()));
        let detail = AttemptDetail {
            started_after,
            time_to_header: None,
            status: 0,
            errcode: None,
            refused_response: None,
        };
        self.raw.attempts.push(RawAttempt {
            detail,
            headers: RawHeaders::default(),
            body: BodyExcerpt::default(),
        });
    }

    /// Records the response of the last attempt.
    pub(super) fn record_attempt_response(&mut self, response: &ProbedResponse) {
        let Some(attempt) = self.raw.attempts.last_mut() else { return };
        attempt.detail.time_to_header = Some(response.time_to_header);
        (attempt.detail.status, attempt.detail.errcode) = (response.status.as_u16(), response.errcode);
        attempt.headers = block_headers(response.headers.as_bytes());
        response.buffered.chunks().for_each(|chunk| attempt.body.push(chunk));
    }

    /// Records that the response of the first attempt is forwarded although a second one was made.
    pub(super) fn record_first_forwarded(&mut self) {
        self.raw.attempts.set_first_forwarded();
    }

    /// Records that no attempt's response is forwarded, because the proxy responds with an error.
    pub(super) fn record_own_error(&mut self) {
        self.raw.attempts.set_none_forwarded();
    }

    /// Records the response headers sent to the client.
    pub(super) fn record_response_headers(&mut self, block: &[u8]) {
        self.raw.response_headers = block_headers(block);
    }

    /// Records a chunk of the response body sent to the client.
    pub(super) fn record_response_chunk(&mut self, chunk: &[u8]) {
        self.raw.response_body.push(chunk);
    }

    /// Converts the capture into a job of the redaction queue.
    pub(super) fn into_redaction_job(self) -> RedactionJob {
        let Self { request_body, mut raw, .. } = self;
        raw.request_body = std::mem::take(&mut *request_body.borrow_mut());
        RedactionJob { bytes: raw.memory_bytes(), redact: Box::new(move || raw.redact()) }
    }
}

/// A request body that is copied while it is read.
struct TappedBody {
    source: Box<dyn BodySource>,
    excerpt: Rc<RefCell<BodyExcerpt>>,
}

impl BodySource for TappedBody {
    fn content_length(&self) -> Option<u64> {
        self.source.content_length()
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        let chunk = ready!(self.source.poll_chunk(cx));
        if let Ok(Some(chunk)) = &chunk {
            self.excerpt.borrow_mut().push(chunk);
        }
        Poll::Ready(chunk)
    }

    fn is_ended(&self) -> bool {
        self.source.is_ended()
    }
}

/// End-to-end headers of a request, with the values of credentials masked.
fn request_headers(headers: &Headers) -> RawHeaders {
    RawHeaders::new(headers.end_to_end().map(|Header { kind, name, value }| match kind {
        HeaderKind::Authorization | HeaderKind::ApiKey => (name, MASK.as_bytes()),
        _ => (name, value),
    }))
}

/// Values of the headers that contain credentials.
fn request_credentials(headers: &Headers) -> Vec<Masked> {
    let values = headers.values(HeaderKind::Authorization).chain(headers.values(HeaderKind::ApiKey));
    values.map(|value| Masked::new(String::from_utf8_lossy(value).into_owned())).collect()
}

/// Parses the headers of an encoded block.
fn block_headers(block: &[u8]) -> RawHeaders {
    let lines = block.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    RawHeaders::new(lines.filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    }))
}
