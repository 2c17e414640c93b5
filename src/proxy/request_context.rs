//! Context of one request, reported to the sinks when the response has ended.

use std::{borrow::Cow, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use http::Method;
use tokio::time::Instant;

use super::{
    capture::Capture,
    error::ErrorKind,
    loggable::{loggable_method, masked_path},
    message_body::MessageBody,
    path_credential,
    presented_key::loggable_header,
    request::Request,
    request_id::RequestId,
    target::RequestTarget,
};
use crate::{
    directory::{Agent, Client},
    http1::headers::HeaderKind,
    inspector::{ExchangeRecorder, RedactionJob},
    limits::wait_limit::WaitPermit,
    request_body::RequestBody,
    telemetry::{
        access_log::{AccessLog, AccessLogEntry, FirstAttempt, Level, QueryText},
        metrics::RequestCounter,
        traces::{Operation, SpanOutcome, Trace, Tracer},
    },
    time::{clock, deadline::Deadline},
    tokens::FetchCause,
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
        if self.access_log.is_logged(entry) {
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
    /// Address of the client, as far as it is known; see [`Request::peer`].
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
    /// The message that the request sends, if its recipients are counted.
    pub(super) message_body: Option<MessageBody>,
    /// Hint that WeCom drops the message for some of its recipients.
    pub(super) recipients_hint: Option<String>,
    /// Times of the first attempt, if there was a retry.
    pub(super) first_attempt: Option<FirstAttempt>,
    /// The proxy's own error: kind and log message.
    pub(super) error: Option<(ErrorKind, String)>,
    /// Whether that error has an errcode that WeCom sent.
    pub(super) error_has_wecom_errcode: bool,
    /// The address that WeCom does not trust, by its errcode 60020.
    pub(super) untrusted_address: Option<IpAddr>,
    /// Time spent waiting for a token.
    pub(super) token_time: Duration,
    /// Sum over the attempts, from the start to the response head or the failure: connecting and sending the body
    /// included.
    pub(super) upstream_time: Duration,
    /// The wait for a token or the attempt in progress, and when it began.
    operation: Option<(Operation, Instant)>,
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
    has_path_credential: bool,
    sinks: Rc<Sinks>,
}

impl RequestContext {
    /// The same body, of which the capture gets a copy, if there is one.
    #[inline]
    fn tap_request_body(&self, body: RequestBody) -> RequestBody {
        match &self.capture {
            Some(capture) => capture.tap_request_body(body),
            None => body,
        }
    }

    /// Notes the agent's upstream and the route for the trace. Returns the body as by [`Self::tap_request_body`].
    #[inline]
    pub(super) fn begin_forwarding(&mut self, body: RequestBody) -> RequestBody {
        if self.trace.is_some() {
            self.set_route();
        }
        self.tap_request_body(body)
    }

    /// Context of a request that starts now and is reported to `sinks`.
    pub(super) fn new(request: &Request, request_id: RequestId, sinks: Rc<Sinks>) -> Self {
        let started = Instant::now();
        let trace = sinks.tracer.as_ref().map(|tracer| {
            let (version, peer) = (request.version, request.socket_peer);
            let mut trace = tracer.start_trace(&request.headers, version, peer, started);
            trace.set_caller(
                loggable_header(request, HeaderKind::Host),
                loggable_header(request, HeaderKind::UserAgent),
            );
            trace
        });
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
            message_body: None,
            recipients_hint: None,
            first_attempt: None,
            error: None,
            error_has_wecom_errcode: false,
            untrusted_address: None,
            token_time: Duration::ZERO,
            upstream_time: Duration::ZERO,
            operation: None,
            request_bytes: None,
            response_bytes: 0,
            complete: false,
            wait_permit: None,
            deadline: Deadline::unset(),
            trace,
            capture: None,
            method: request.method.clone(),
            target: request.target.clone(),
            has_path_credential: request.path_credential.is_some(),
            sinks,
        }
    }
}

/// Times of the operations of a request, and their spans if there is a tracer.
impl RequestContext {
    /// The index of the agent's upstream, or of the default one.
    pub(super) fn upstream_index(&self) -> usize {
        self.agent.as_ref().map_or(0, |agent| agent.upstream.index())
    }

    /// What a token is fetched for, while this request waits for one.
    pub(super) fn fetch_cause(&mut self) -> FetchCause {
        match (&mut self.trace, &self.sinks.tracer) {
            (Some(trace), Some(tracer)) => tracer.fetch_cause(trace),
            _ => FetchCause::default(),
        }
    }

    /// Sets the span's upstream and route, masked.
    fn set_route(&mut self) {
        let upstream = self.upstream_index();
        if let Some(trace) = &mut self.trace {
            trace.set_route(upstream, &masked_path(self.target.normalized_path(), None));
        }
    }

    /// Begins an operation. Its time counts however it ends.
    pub(super) fn begin(&mut self, operation: Operation, at: Instant) {
        self.operation = Some((operation, at));
        if let Some(trace) = &mut self.trace {
            trace.start_span(operation, at);
        }
    }

    /// Ends the operation after `duration`, with an error kind if it failed.
    pub(super) fn end(&mut self, duration: Duration, error: Option<ErrorKind>) {
        self.end_with(duration, span_outcome(error));
    }

    /// Ends the operation now, with an error kind if it failed.
    pub(super) fn end_now(&mut self, error: Option<ErrorKind>) {
        if let Some((_, began)) = self.operation {
            self.end(began.elapsed(), error);
        }
    }

    /// Ends an attempt with the response's status and errcode.
    pub(super) fn end_with_response(&mut self, duration: Duration, status: u16, errcode: Option<i64>) {
        self.end_with(duration, SpanOutcome { status, errcode, error: None });
    }

    fn end_with(&mut self, duration: Duration, outcome: SpanOutcome) {
        self.add_time(duration);
        if let Some(trace) = &mut self.trace {
            trace.end_span(duration, outcome);
        }
    }

    /// Adds `duration` to the total of the operation in progress.
    fn add_time(&mut self, duration: Duration) {
        match self.operation.take() {
            Some((Operation::Attempt, _)) => self.upstream_time += duration,
            Some((Operation::Token, _)) => self.token_time += duration,
            Some((Operation::Queue, _)) | None => {}
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
        self.end(duration, failed.then_some(ErrorKind::TokenUnavailable));
        if let Some(capture) = &mut self.capture {
            capture.record_token_wait(since);
        }
    }

    /// The hint for the log: only for errcodes that an operator fixes in WeCom's admin console. Others are the
    /// client's own and may be frequent, and the proxy's own errors already say what to do.
    fn hint(&self) -> Option<&'static str> {
        let errcode = self.wecom_errcode()?;
        let is_for_operators = errcode::explain(errcode).is_some_and(|row| row.console_path_en.is_some());
        errcode::hint(errcode).filter(|_| is_for_operators)
    }

    /// The errcode other than 0 that WeCom sent, which the table explains. One of the proxy's own errors only stands
    /// for its kind, and their messages say what to do.
    pub(super) fn wecom_errcode(&self) -> Option<i64> {
        let is_wecoms = self.error.is_none() || self.error_has_wecom_errcode;
        self.errcode.filter(|errcode| is_wecoms && *errcode != errcode::OK)
    }

    /// The path without credentials, and up to what looks like a query without its question mark.
    fn loggable_path(&self) -> Cow<'_, str> {
        let masked = || masked_path(self.target.path(), self.agent.as_ref().map(|agent| agent.name.as_str()));
        let path = self.target.harmless_path().map_or_else(masked, Cow::Borrowed);
        if self.has_path_credential {
            Cow::Owned(format!("{}{path}", path_credential::SHOWN_PREFIX))
        } else {
            path
        }
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
        // The client has disconnected meanwhile.
        if let Some((_, began)) = self.operation {
            self.add_time(ended.saturating_duration_since(began));
        }
        let trace = self.trace.take();
        let trace_id = trace.as_ref().map(|trace| trace.trace_id());
        let capture = self.capture.take().map(|capture| capture.into_redaction_job());
        let path = self.loggable_path();
        let entry = AccessLogEntry {
            level,
            ended_at: clock::wall_clock_at(ended),
            request_id: self.request_id.as_str(),
            trace_id: trace_id.as_ref().and_then(|id| std::str::from_utf8(id).ok()),
            peer: self.peer,
            client: self.client.as_ref().map(|client| client.config.name.as_str()),
            agent: self.agent.as_ref().map(|agent| agent.name.as_str()),
            upstream: self.agent.as_ref().and_then(|agent| agent.upstream.name()),
            method: loggable_method(&self.method),
            path: &path,
            query: QueryText(self.target.query().unwrap_or_default()),
            status: self.status,
            errcode: self.errcode,
            is_wecom_errcode: self.wecom_errcode().is_some(),
            untrusted_address: self.untrusted_address,
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
        if let (Some(tracer), Some(trace)) = (&self.sinks.tracer, trace) {
            tracer.end_trace(trace, &entry);
        }
    }
}
