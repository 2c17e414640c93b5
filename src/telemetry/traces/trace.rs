//! What becomes known of a request beside its line in the access log, while somebody wants its trace.

use std::time::Duration;

use http::Version;
use tokio::time::Instant;

use super::context::TraceContext;

/// Two tries, a wait for a token before each, and one wait for a place.
pub(super) const MAX_CHILD_SPANS: usize = 5;

/// A request's trace, as far as it has come.
pub struct Trace {
    pub(super) context: TraceContext,
    pub(super) version: Version,
    pub(super) started: Instant,
    /// The endpoint, where the request has been sent to one.
    pub(super) route: String,
    child_spans: [ChildSpan; MAX_CHILD_SPANS],
    child_span_count: usize,
}

/// What a request does beside being looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It waits for a place among those in flight.
    Queue,
    /// It waits for a token.
    Token,
    /// It is with WeCom.
    Attempt,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpanOutcome {
    /// WeCom's HTTP status; 0 where there was none.
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
    /// How long it took; `None` where the request ended before it did.
    pub(super) duration: Option<Duration>,
    pub(super) outcome: SpanOutcome,
}

impl Trace {
    pub(super) fn new(context: TraceContext, version: Version, started: Instant) -> Self {
        let none = ChildSpan {
            operation: Operation::Queue,
            started,
            duration: None,
            outcome: SpanOutcome::default(),
        };
        Self {
            context,
            version,
            started,
            route: String::new(),
            child_spans: [none; MAX_CHILD_SPANS],
            child_span_count: 0,
        }
    }

    /// Takes the next step.
    pub fn start_span(&mut self, doing: Operation, at: Instant) {
        if let Some(step) = self.child_spans.get_mut(self.child_span_count) {
            *step =
                ChildSpan { operation: doing, started: at, duration: None, outcome: SpanOutcome::default() };
            self.child_span_count += 1;
        }
    }

    /// Ends the step that was taken last.
    pub fn end_span(&mut self, took: Duration, outcome: SpanOutcome) {
        if let Some(step) =
            self.child_span_count.checked_sub(1).and_then(|last| self.child_spans.get_mut(last))
        {
            (step.duration, step.outcome) = (Some(took), outcome);
        }
    }

    /// The same, now.
    pub fn end_span_now(&mut self, outcome: SpanOutcome) {
        if let Some(last) = self.child_spans().last() {
            self.end_span(last.started.elapsed(), outcome);
        }
    }

    /// Says where the request goes.
    pub fn set_route(&mut self, route: &str) {
        self.route.clear();
        self.route.push_str(route);
    }

    pub(super) fn child_spans(&self) -> &[ChildSpan] {
        &self.child_spans[..self.child_span_count]
    }

    /// Its id, in hexadecimal digits.
    pub fn trace_id(&self) -> [u8; 32] {
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.context.trace_id) {
            (pair[0], pair[1]) = (digit(byte >> 4), digit(byte & 15));
        }
        text
    }
}
