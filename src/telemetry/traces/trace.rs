//! The data of a request's trace that its access log entry does not contain.

use std::{net::IpAddr, time::Duration};

use http::Version;
use tokio::time::Instant;

use super::context::TraceContext;
use crate::{secret::hex, telemetry::access_log::truncate};

/// Two attempts, a wait for a token before each, and one wait for a permit.
pub(super) const MAX_CHILD_SPANS: usize = 5;

/// What is kept of these headers.
const MAX_AUTHORITY_BYTES: usize = 128;
const MAX_USER_AGENT_BYTES: usize = 256;
/// Enough for the texts of most requests.
const TEXT_BYTES: usize = 160;

/// The trace of a running request.
#[cfg_attr(test, derive(Clone))]
pub struct Trace {
    pub(super) context: TraceContext,
    pub(super) version: Version,
    pub(super) started: Instant,
    /// The index of the agent's upstream.
    pub(super) upstream: usize,
    /// The TCP peer.
    pub(super) peer: Option<IpAddr>,
    /// The id of the request's span, if something refers to it before the export.
    pub(super) span_id: Option<[u8; 8]>,
    /// `Host`, `User-Agent`, and the API path once the request is authorized; together, for one allocation.
    text: String,
    authority_end: usize,
    user_agent_end: usize,
    child_spans: [ChildSpan; MAX_CHILD_SPANS],
    child_span_count: usize,
}

/// The operation of a child span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Waits for a permit of the concurrency limit.
    Queue,
    /// Waits for a token.
    Token,
    /// One attempt at WeCom.
    Attempt,
}

/// The outcome of a child span.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpanOutcome {
    /// WeCom's HTTP status; 0 if there was no response.
    pub status: u16,
    /// WeCom's errcode.
    pub errcode: Option<i64>,
    /// The kind of the proxy's own error.
    pub error: Option<&'static str>,
}

#[derive(Clone, Copy)]
pub(super) struct ChildSpan {
    pub(super) operation: Operation,
    pub(super) started: Instant,
    /// The duration; `None` if the request ended first.
    pub(super) duration: Option<Duration>,
    pub(super) outcome: SpanOutcome,
}

impl Trace {
    pub(super) fn new(
        context: TraceContext,
        version: Version,
        peer: Option<IpAddr>,
        started: Instant,
    ) -> Self {
        let empty = ChildSpan {
            operation: Operation::Queue,
            started,
            duration: None,
            outcome: SpanOutcome::default(),
        };
        Self {
            context,
            version,
            started,
            upstream: 0,
            peer,
            span_id: None,
            authority_end: 0,
            user_agent_end: 0,
            text: String::new(),
            child_spans: [empty; MAX_CHILD_SPANS],
            child_span_count: 0,
        }
    }

    /// Sets `Host` and `User-Agent`, without credentials.
    pub fn set_caller(&mut self, authority: &str, user_agent: &str) {
        let mut text = String::with_capacity(TEXT_BYTES);
        text.push_str(truncate(authority, MAX_AUTHORITY_BYTES));
        self.authority_end = text.len();
        text.push_str(truncate(user_agent, MAX_USER_AGENT_BYTES));
        (self.user_agent_end, self.text) = (text.len(), text);
    }

    /// Starts the next child span; ignored beyond [`MAX_CHILD_SPANS`].
    pub fn start_span(&mut self, operation: Operation, started: Instant) {
        if let Some(span) = self.child_spans.get_mut(self.child_span_count) {
            *span = ChildSpan { operation, started, duration: None, outcome: SpanOutcome::default() };
            self.child_span_count += 1;
        }
    }

    /// Ends the last child span.
    pub fn end_span(&mut self, duration: Duration, outcome: SpanOutcome) {
        if let Some(span) =
            self.child_span_count.checked_sub(1).and_then(|last| self.child_spans.get_mut(last))
        {
            (span.duration, span.outcome) = (Some(duration), outcome);
        }
    }

    /// Sets the index of the upstream and the API path.
    pub fn set_route(&mut self, upstream: usize, route: &str) {
        self.upstream = upstream;
        self.text.truncate(self.user_agent_end);
        self.text.push_str(route);
    }

    pub(super) fn authority(&self) -> &str {
        &self.text[..self.authority_end]
    }

    pub(super) fn user_agent(&self) -> &str {
        &self.text[self.authority_end..self.user_agent_end]
    }

    /// The API path; empty until the request is authorized.
    pub(super) fn route(&self) -> &str {
        &self.text[self.user_agent_end..]
    }

    pub(super) fn text_bytes(&self) -> usize {
        self.text.capacity()
    }

    pub(super) fn child_spans(&self) -> &[ChildSpan] {
        &self.child_spans[..self.child_span_count]
    }

    /// The number of spans: the request's and its children.
    pub(super) fn span_count(&self) -> u64 {
        1 + self.child_spans().len() as u64
    }

    /// The trace id in hexadecimal digits.
    pub fn trace_id(&self) -> [u8; 32] {
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.context.trace_id) {
            pair.copy_from_slice(&hex::digits(byte));
        }
        text
    }
}
