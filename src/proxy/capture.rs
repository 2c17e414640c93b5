//! Captures headers and body excerpts of one exchange for the inspector, for agents with the capture switched on.
//!
//! It copies the messages as they are forwarded and changes neither. Redaction runs on another thread after the exchange,
//! because it may take milliseconds.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use tokio::time::Instant;

use zeroize::Zeroizing;

use super::{body_tap::tap, errcode_probe::ProbedResponse, request::Request};
use crate::{
    directory::{Agent, Directory},
    http1::headers::{Header, HeaderKind, Headers},
    inspector::{
        AttemptDetail, BodyExcerpt, RawAttempts, RawExchange, RawHeaders, RawMessage, RedactionJob,
        redact::MASK,
    },
    request_body::RequestBody,
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
        let agent = agent.filter(|agent| agent.capture_switch.is_on())?;
        let raw = RawExchange {
            directory: directory.clone(),
            agent: agent.clone(),
            query: Zeroizing::new(request.target.query().unwrap_or_default().to_owned()),
            request: RawMessage { headers: request_headers(&request.headers), ..RawMessage::default() },
            response: RawMessage::default(),
            token_waits: Vec::new(),
            attempts: RawAttempts::default(),
            credentials: request_credentials(request),
            tokens: Vec::new(),
        };
        Some(Box::new(Self { started, request_body: Rc::default(), raw }))
    }

    /// Returns the same body, copying its start while it is read.
    pub(super) fn tap_request_body(&self, body: RequestBody) -> RequestBody {
        match body {
            RequestBody::None => {
                self.request_body.borrow_mut().set_ended();
                RequestBody::None
            }
            RequestBody::Complete(bytes) => {
                let mut excerpt = self.request_body.borrow_mut();
                excerpt.push(&bytes);
                excerpt.set_ended();
                RequestBody::Complete(bytes)
            }
            RequestBody::Streamed(source) => {
                let (excerpt, declared_bytes) = (self.request_body.clone(), source.content_length());
                let mut received_bytes = 0;
                tap(source, move |chunk, is_ended| {
                    let mut excerpt = excerpt.borrow_mut();
                    received_bytes += chunk.len() as u64;
                    excerpt.push(chunk);
                    if is_ended && declared_bytes.is_none_or(|declared| declared == received_bytes) {
                        excerpt.set_ended();
                    }
                })
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
        self.raw.attempts.push(AttemptDetail {
            started_after,
            time_to_header: None,
            status: 0,
            errcode: None,
            refused_response: None,
        });
    }

    /// Records the response of the last attempt.
    pub(super) fn record_attempt_response(&mut self, response: &ProbedResponse) {
        let Some((attempt, message)) = self.raw.attempts.last_mut() else { return };
        attempt.time_to_header = Some(response.time_to_header);
        (attempt.status, attempt.errcode) = (response.status.as_u16(), response.errcode);
        message.headers = block_headers(response.headers.as_bytes());
        response.buffered.chunks().for_each(|chunk| message.body.push(chunk));
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
        self.raw.response.headers = block_headers(block);
    }

    /// Records a chunk of the response body sent to the client.
    pub(super) fn record_response_chunk(&mut self, chunk: &[u8]) {
        self.raw.response.body.push(chunk);
    }

    /// Converts the capture into a job of the redaction queue.
    pub(super) fn into_redaction_job(self) -> RedactionJob {
        let Self { request_body, mut raw, .. } = self;
        raw.request.body = std::mem::take(&mut *request_body.borrow_mut());
        RedactionJob { bytes: raw.memory_bytes(), redact: Box::new(move || raw.redact()) }
    }
}

/// End-to-end headers of a request, with the values of credentials masked.
fn request_headers(headers: &Headers) -> RawHeaders {
    RawHeaders::new(headers.end_to_end().map(|Header { kind, name, value }| match kind {
        HeaderKind::Authorization | HeaderKind::ApiKey => (name, MASK.as_bytes()),
        _ => (name, value),
    }))
}

fn request_credentials(request: &Request) -> Vec<Masked> {
    request.presented_keys().map(|key| Masked::new(String::from_utf8_lossy(key).into_owned())).collect()
}

/// Parses the headers of an encoded block.
fn block_headers(block: &[u8]) -> RawHeaders {
    let lines = block.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    RawHeaders::new(lines.filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    }))
}
