//! The data of a request's trace that its access log entry does not contain.

use std::time::Duration;

use http::Version;
use tokio::time::Instant;

use super::context::TraceContext;
use crate::secret::hex;

/// Two attempts, a wait for a token before each, and one wait for a permit.
pub(super) const MAX_CHILD_SPANS: usize = 5;

/// The trace of a running request.
#[cfg_attr(test, derive(Clone))]
pub struct Trace {
    pub(super) context: TraceContext,
    pub(super) version: Version,
    pub(super) started: Instant,
    /// The index of the agent's upstream.
    pub(super) upstream: usize,
    /// The API path; empty until the request is sent upstream.
    pub(super) route: String,
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
    pub(super) fn new(context: TraceContext, version: Version, started: Instant) -> Self {
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
            route: String::new(),
            child_spans: [empty; MAX_CHILD_SPANS],
            child_span_count: 0,
        }
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
        self.route.clear();
        self.route.push_str(route);
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
