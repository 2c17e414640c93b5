//! A closer look at one exchange, where an operator has asked for it: header lines, and the beginnings of both bodies.
//!
//! It is copied from what passes by and changes nothing. When the exchange has ended, what was seen is redacted on another
//! thread: that may take long, and a worker has other callers.

mod raw_exchange;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::time::Instant;

use self::raw_exchange::{BodyExcerpt, RawAttempt, RawExchange, RawHeaders};
use super::{errcode_probe::ProbedResponse, request::Request};
use crate::inspector::redact::MASK;
use crate::{
    directory::{Agent, Directory},
    http1::headers::{Header, Headers, KnownHeader},
    inspector::{AttemptDetail, RedactionJob},
    request_body::{BodySource, BodySourceError, RequestBody},
    secret::Masked,
    tokens::Token,
};

/// What was seen of one exchange so far. It has no `Debug`: it holds credentials.
pub(super) struct Capture {
    started: Instant,
    request_body: Rc<RefCell<BodyExcerpt>>,
    raw: RawExchange,
}

impl Capture {
    /// Looks at a request of this agent, if somebody wants to.
    pub(super) fn start(
        directory: &Arc<Directory>,
        agent: Option<&Arc<Agent>>,
        request: &Request,
        began: Instant,
    ) -> Option<Box<Self>> {
        agent.filter(|agent| agent.capture_switch.is_on())?;
        let seen = RawExchange {
            directory: directory.clone(),
            query: request.target.query().unwrap_or_default().to_owned(),
            request_headers: request_headers(&request.headers),
            request_body: BodyExcerpt::default(),
            response_headers: RawHeaders::default(),
            response_body: BodyExcerpt::default(),
            token_waits: Vec::new(),
            attempts: Vec::new(),
            credentials: request_credentials(&request.headers),
            tokens: Vec::new(),
        };
        Some(Box::new(Self { started: began, request_body: Rc::default(), raw: seen }))
    }

    /// The same body, whose beginning is seen while it is read.
    pub(super) fn tap_request_body(&self, body: RequestBody) -> RequestBody {
        match body {
            RequestBody::None => RequestBody::None,
            RequestBody::Buffered(whole) => {
                self.request_body.borrow_mut().push(&whole);
                RequestBody::Buffered(whole)
            }
            RequestBody::Streamed(source) => {
                RequestBody::Streamed(Box::new(TappedBody { source, excerpt: self.request_body.clone() }))
            }
        }
    }

    /// The request has waited for a token since then.
    pub(super) fn record_token_wait(&mut self, since: Instant) {
        self.raw.token_waits.push((since.saturating_duration_since(self.started), since.elapsed()));
    }

    /// The request is being sent, with this token.
    pub(super) fn record_attempt(&mut self, at: Instant, token: Option<&Token>) {
        let began = at.saturating_duration_since(self.started);
        self.raw.tokens.extend(token.map(|token| token.value.clone()));
        let facts = AttemptDetail {
            started_after: began,
            time_to_header: None,
            status: 0,
            errcode: None,
            refused_response: None,
        };
        self.raw.attempts.push(RawAttempt {
            summary: facts,
            headers: RawHeaders::default(),
            body: BodyExcerpt::default(),
        });
    }

    /// An answer has come.
    pub(super) fn record_attempt_response(&mut self, answer: &ProbedResponse) {
        let Some(sent) = self.raw.attempts.last_mut() else { return };
        sent.summary.time_to_header = Some(answer.time_to_header);
        (sent.summary.status, sent.summary.errcode) = (answer.status.as_u16(), answer.errcode);
        sent.headers = block_headers(answer.headers.as_bytes());
        answer.buffered.chunks().for_each(|piece| sent.body.push(piece));
    }

    /// The header lines that go to the caller.
    pub(super) fn record_response_headers(&mut self, lines: &[u8]) {
        self.raw.response_headers = block_headers(lines);
    }

    /// A piece of the body that goes to the caller.
    pub(super) fn record_response_chunk(&mut self, piece: &[u8]) {
        self.raw.response_body.push(piece);
    }

    /// What was seen, to be redacted.
    pub(super) fn into_redaction_job(self) -> RedactionJob {
        let Self { request_body, raw: mut seen, .. } = self;
        seen.request_body = std::mem::take(&mut *request_body.borrow_mut());
        RedactionJob { bytes: seen.memory_bytes(), redact: Box::new(move || seen.redact()) }
    }
}

/// A body that is seen while it is read.
struct TappedBody {
    source: Box<dyn BodySource>,
    excerpt: Rc<RefCell<BodyExcerpt>>,
}

impl BodySource for TappedBody {
    fn content_length(&self) -> Option<u64> {
        self.source.content_length()
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        let piece = ready!(self.source.poll_chunk(cx));
        if let Ok(Some(piece)) = &piece {
            self.excerpt.borrow_mut().push(piece);
        }
        Poll::Ready(piece)
    }

    fn is_ended(&self) -> bool {
        self.source.is_ended()
    }
}

/// What a caller's lines say, but for those that belong to its connection. Of its credentials only the names are taken.
fn request_headers(fields: &Headers) -> RawHeaders {
    RawHeaders::new(fields.end_to_end().map(|Header { known, name, value }| match known {
        KnownHeader::Authorization | KnownHeader::ApiKey => (name, MASK.as_bytes()),
        _ => (name, value),
    }))
}

/// What a caller's lines say that show credentials.
fn request_credentials(fields: &Headers) -> Vec<Masked> {
    let values = fields.values(KnownHeader::Authorization).chain(fields.values(KnownHeader::ApiKey));
    values.map(|value| Masked::new(String::from_utf8_lossy(value).into_owned())).collect()
}

/// The lines of a block.
fn block_headers(block: &[u8]) -> RawHeaders {
    let lines = block.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    RawHeaders::new(lines.filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    }))
}
