//! Context of one request, reported to the sinks when the response has ended.

use std::{borrow::Cow, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use http::Method;
use tokio::time::Instant;

use super::{
    capture::Capture,
    error::ErrorKind,
    loggable::{loggable_method, masked_path},
    request::{Request, RequestTarget},
    request_id::RequestId,
};
use crate::{
    directory::{Agent, Client},
    inspector::{ExchangeRecorder, RedactionJob},
    limits::wait_limit::WaitPermit,
    telemetry::{
        access_log::{AccessLog, AccessLogEntry, FirstAttempt, Level},
        metrics::RequestCounter,
        traces::{Operation, SpanOutcome, Trace, Tracer},
    },
    time::{clock, deadline::Deadline},
    wecom::errcode,
};

/// Telemetry sinks of one worker.
pub struct Sinks {
    /// Access log.
    pub access_log: AccessLog,
    /// Metrics, if enabled.
    pub counter: Option<RequestCounter>,
    /// Recent exchanges, if enabled.
    pub recorder: Option<ExchangeRecorder>,
    /// Traces, if enabled.
    pub tracer: Option<Tracer>,
}

impl Sinks {
    fn write(
        &self,
        entry: &AccessLogEntry<'_>,
        agent: Option<&Arc<Agent>>,
        client: Option<&Arc<Client>>,
        capture: Option<RedactionJob>,
    ) {
        if let Some(counter) = &self.counter {
            counter.record(entry, agent, client);
        }
        if let Some(recorder) = &self.recorder {
            recorder.record(entry, capture);
        }
        if self.access_log.is_enabled(entry.level) {
            self.access_log.write(entry);
        }
    }

    /// Whether any sink takes a request of this level.
    fn is_enabled(&self, level: Level) -> bool {
        self.counter.is_some()
            || self.recorder.is_some()
            || self.tracer.is_some()
            || self.access_log.is_enabled(level)
    }
}

/// Context of one request. Dropped after the response was sent or the client disconnected, or earlier by
/// `Response::finish_context`; the drop reports it to the sinks.
pub(super) struct RequestContext {
    pub(super) started: Instant,
    /// Last clock reading; valid while nothing was awaited since.
    pub(super) cached_now: Instant,
    /// When the response ended, if known.
    pub(super) ended: Option<Instant>,
    pub(super) request_id: RequestId,
    /// Address of the TCP peer, which may be a load balancer.
    pub(super) peer: Option<IpAddr>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) agent: Option<Arc<Agent>>,
    /// HTTP status of the response; 0 if the client disconnected before it.
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    /// The errcode that caused the retry.
    pub(super) retried_after_errcode: Option<i64>,
    /// Time until a throttled refresh of the refused token is allowed.
    pub(super) retry_after: Option<Duration>,
    /// Times of the first attempt, if there was a retry.
    pub(super) first_attempt: Option<FirstAttempt>,
    /// The proxy's own error: kind and log message.
    pub(super) error: Option<(ErrorKind, String)>,
    /// Time spent waiting for a token.
    pub(super) token_time: Duration,
    /// Sum over the attempts that got a response, from the start to the response head: connecting and sending the
    /// body included.
    pub(super) upstream_time: Duration,
    /// Bytes of the request body received when the response began; `None` without a body.
    pub(super) request_bytes: Option<u64>,
    /// Bytes of the response body sent to the client.
    pub(super) response_bytes: u64,
    /// Whether the response body was handed to the server to its end.
    pub(super) complete: bool,
    /// Permit to wait for a token or a ticket, while waiting.
    pub(super) wait_permit: Option<WaitPermit>,
    /// Timer of upstream exchanges; swapped with the connection's around each request.
    pub(super) deadline: Deadline,
    trace: Option<Box<Trace>>,
    /// Capture for the inspector, if switched on.
    pub(super) capture: Option<Box<Capture>>,
    method: Method,
    target: RequestTarget,
    sinks: Rc<Sinks>,
}

impl RequestContext {
    /// Context of a request that starts now and is reported to `sinks`.
    pub(super) fn new(request: &Request, request_id: RequestId, sinks: Rc<Sinks>) -> Self {
        let started = Instant::now();
        let trace = sinks
            .tracer
            .as_ref()
            .map(|tracer| tracer.start_trace(&request.headers, request.version, started));
        Self {
            started,
            cached_now: started,
            ended: None,
            request_id,
            peer: request.peer,
            client: None,
            agent: None,
            status: 0,
            errcode: None,
            retried_after_errcode: None,
            retry_after: None,
            first_attempt: None,
            error: None,
            token_time: Duration::ZERO,
            upstream_time: Duration::ZERO,
            request_bytes: None,
            response_bytes: 0,
            complete: false,
            wait_permit: None,
            deadline: Deadline::unset(),
            trace,
            capture: None,
            method: request.method.clone(),
            target: request.target.clone(),
            sinks,
        }
    }
}

/// Spans of the trace; no-ops without a tracer.
impl RequestContext {
    /// Sets the span's route, masked.
    pub(super) fn set_route(&mut self, route: &str) {
        if let Some(trace) = &mut self.trace {
            trace.set_route(&masked_path(route, None));
        }
    }

    /// Begins a span.
    pub(super) fn begin_span(&mut self, operation: Operation, at: Instant) {
        if let Some(trace) = &mut self.trace {
            trace.start_span(operation, at);
        }
    }

    /// Begins a span now.
    pub(super) fn begin_span_now(&mut self, operation: Operation) {
        if self.trace.is_some() {
            self.begin_span(operation, Instant::now());
        }
    }

    /// Ends the current span after `duration`, with an error kind if it failed.
    pub(super) fn end_span(&mut self, duration: Duration, error: Option<ErrorKind>) {
        if let Some(trace) = &mut self.trace {
            trace.end_span(duration, span_outcome(error));
        }
    }

    /// Ends the current span now.
    pub(super) fn end_span_now(&mut self, error: Option<ErrorKind>) {
        if let Some(trace) = &mut self.trace {
            trace.end_span_now(span_outcome(error));
        }
    }

    /// Ends the span of an attempt with the response's status and errcode.
    pub(super) fn end_span_with_response(&mut self, duration: Duration, status: u16, errcode: Option<i64>) {
        if let Some(trace) = &mut self.trace {
            trace.end_span(duration, SpanOutcome { status, errcode, error: None });
        }
    }
}

fn span_outcome(error: Option<ErrorKind>) -> SpanOutcome {
    SpanOutcome { error: error.map(ErrorKind::name), ..SpanOutcome::default() }
}

impl RequestContext {
    /// Records a wait for a token that began at `since`, and whether it failed.
    pub(super) fn record_token_wait(&mut self, since: Instant, failed: bool) {
        self.cached_now = Instant::now();
        let duration = self.cached_now.saturating_duration_since(since);
        self.token_time += duration;
        self.end_span(duration, failed.then_some(ErrorKind::TokenUnavailable));
        if let Some(capture) = &mut self.capture {
            capture.record_token_wait(since);
        }
    }

    /// The hint for the log: only for errcodes that an operator fixes in WeCom's admin console. Others are the
    /// client's own and may be frequent, and the proxy's own errors already say what to do.
    fn hint(&self) -> Option<&'static str> {
        let errcode = self.errcode.filter(|errcode| *errcode != errcode::OK)?;
        let is_wecom_error = self.error.as_ref().is_none_or(|(kind, _)| *kind == ErrorKind::TokenUnavailable);
        let is_for_operators = errcode::explain(errcode).is_some_and(|row| row.console_path_en.is_some());
        errcode::hint(errcode).filter(|_| is_wecom_error && is_for_operators)
    }

    /// The path without credentials, and up to what looks like a query without its question mark.
    fn loggable_path(&self) -> Cow<'_, str> {
        let masked = || masked_path(self.target.path(), self.agent.as_ref().map(|agent| agent.name.as_str()));
        self.target.unmasked_path().map_or_else(masked, Cow::Borrowed)
    }
}

impl Drop for RequestContext {
    fn drop(&mut self) {
        let failed = self.error.as_ref().is_some_and(|(kind, _)| kind.status().is_server_error());
        let level = if failed { Level::Warn } else { Level::Info };
        if !self.sinks.is_enabled(level) {
            return;
        }
        // Excludes the time spent in this drop from the request.
        let ended = self.ended.unwrap_or_else(Instant::now);
        let trace_id = self.trace.as_ref().map(|trace| trace.trace_id());
        let capture = self.capture.take().map(|capture| capture.into_redaction_job());
        let path = self.loggable_path();
        let entry = AccessLogEntry {
            level,
            ended_at: clock::wall_clock_at(ended),
            request_id: self.request_id.as_str(),
            trace_id: trace_id.as_ref().and_then(|id| std::str::from_utf8(id).ok()),
            peer: self.peer,
            client: self.client.as_ref().map(|client| client.name.as_str()),
            agent: self.agent.as_ref().map(|agent| agent.name.as_str()),
            method: loggable_method(&self.method),
            path: &path,
            status: self.status,
            errcode: self.errcode,
            retried: self.retried_after_errcode,
            error: self.error.as_ref().map(|(kind, _)| kind.name()),
            reason: self.error.as_ref().map(|(_, message)| message.as_str()),
            first_attempt: self.first_attempt,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            complete: self.complete,
            token_time: self.token_time,
            upstream_time: self.upstream_time,
            total_time: ended.saturating_duration_since(self.started),
            hint: self.hint(),
        };
        self.sinks.write(&entry, self.agent.as_ref(), self.client.as_ref(), capture);
        if let (Some(tracer), Some(trace)) = (&self.sinks.tracer, &self.trace) {
            tracer.write_spans(trace, &entry);
        }
    }
}
