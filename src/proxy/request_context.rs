//! What becomes known of one request on its way, and where it is written down when its answer has ended.

use std::{borrow::Cow, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use http::Method;
use tokio::time::Instant;

use super::{
    capture::Capture,
    error::ErrorKind,
    request::{Request, RequestTarget},
    response_headers::RequestId,
};
use crate::inspector::redact::MASK;
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

/// Where one worker writes down what became of each request.
pub struct Sinks {
    /// The access log.
    pub access_log: AccessLog,
    /// The metrics, where somebody can ask for them.
    pub counter: Option<RequestCounter>,
    /// The recent exchanges, where somebody can ask for them.
    pub recorder: Option<ExchangeRecorder>,
    /// The traces, where somebody receives them.
    pub tracer: Option<Tracer>,
}

impl Sinks {
    fn write(
        &self,
        line: &AccessLogEntry<'_>,
        agent: Option<&Arc<Agent>>,
        client: Option<&Arc<Client>>,
        capture: Option<RedactionJob>,
    ) {
        if let Some(counter) = &self.counter {
            counter.record(line, agent, client);
        }
        if let Some(recorder) = &self.recorder {
            recorder.record(line, capture);
        }
        if self.access_log.is_enabled(line.level) {
            self.access_log.write(line);
        }
    }

    /// Whether anybody wants to know of a request.
    fn is_enabled(&self, level: Level) -> bool {
        self.counter.is_some()
            || self.recorder.is_some()
            || self.tracer.is_some()
            || self.access_log.is_enabled(level)
    }
}

/// One request. Dropped when its answer has been handed over, or when its caller has left.
pub(super) struct RequestContext {
    pub(super) started: Instant,
    /// What the clock said last: nothing has taken time since.
    pub(super) cached_now: Instant,
    /// When its answer had been handed over, where that is known.
    pub(super) ended: Option<Instant>,
    pub(super) request_id: RequestId,
    /// Where the caller is.
    pub(super) peer: Option<IpAddr>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) agent: Option<Arc<Agent>>,
    /// The answer's HTTP status; 0 where the caller left before there was one.
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    /// The errcode for which the request was sent once more.
    pub(super) retried: Option<i64>,
    /// How long until the renewal of a refused token may be tried, where it is held back.
    pub(super) retry_after: Option<Duration>,
    /// How the try went for which it was sent once more.
    pub(super) first_attempt: Option<FirstAttempt>,
    /// The proxy's own error: its kind, and its words.
    pub(super) error: Option<(ErrorKind, String)>,
    /// Time spent waiting for a token.
    pub(super) token_time: Duration,
    /// Time spent waiting for the heads of the upstream's answers.
    pub(super) upstream_time: Duration,
    /// Bytes of the request's body that had come when its answer began; `None` where it had none.
    pub(super) request_bytes: Option<u64>,
    /// Bytes of the answer's body that went to the caller.
    pub(super) response_bytes: u64,
    /// Whether the whole answer was handed over.
    pub(super) complete: bool,
    /// The right to wait for a token or a ticket, while it does.
    pub(super) wait_permit: Option<WaitPermit>,
    /// For what its caller waits for; the caller's own between two requests.
    pub(super) deadline: Deadline,
    trace: Option<Box<Trace>>,
    /// What an operator wants to see of it besides.
    pub(super) capture: Option<Box<Capture>>,
    method: Method,
    target: RequestTarget,
    sinks: Rc<Sinks>,
}

impl RequestContext {
    /// A request that begins now, and which will be entered in `books`.
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
            retried: None,
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

/// What a trace is told; nothing where nobody wants one.
impl RequestContext {
    /// The request will be sent to this endpoint.
    pub(super) fn set_route(&mut self, route: &str) {
        if let Some(trace) = &mut self.trace {
            trace.set_route(&masked_path(route, None));
        }
    }

    /// A step of the request begins.
    pub(super) fn begin_span(&mut self, doing: Operation, at: Instant) {
        if let Some(trace) = &mut self.trace {
            trace.start_span(doing, at);
        }
    }

    /// The same, now.
    pub(super) fn begin_span_now(&mut self, doing: Operation) {
        if self.trace.is_some() {
            self.begin_span(doing, Instant::now());
        }
    }

    /// The last step ends after so long, well or with an error of this kind.
    pub(super) fn end_span(&mut self, took: Duration, error: Option<ErrorKind>) {
        if let Some(trace) = &mut self.trace {
            trace.end_span(took, span_outcome(error));
        }
    }

    /// The same, now.
    pub(super) fn end_span_now(&mut self, error: Option<ErrorKind>) {
        if let Some(trace) = &mut self.trace {
            trace.end_span_now(span_outcome(error));
        }
    }

    /// WeCom has answered after so long.
    pub(super) fn end_span_with_response(&mut self, took: Duration, status: u16, errcode: Option<i64>) {
        if let Some(trace) = &mut self.trace {
            trace.end_span(took, SpanOutcome { status, errcode, error: None });
        }
    }
}

fn span_outcome(error: Option<ErrorKind>) -> SpanOutcome {
    SpanOutcome { error: error.map(|kind| kind.attributes().0), ..SpanOutcome::default() }
}

impl RequestContext {
    /// It has waited for a token since then, perhaps in vain.
    pub(super) fn record_token_wait(&mut self, since: Instant, in_vain: bool) {
        self.cached_now = Instant::now();
        let waited = self.cached_now.saturating_duration_since(since);
        self.token_time += waited;
        self.end_span(waited, in_vain.then_some(ErrorKind::TokenUnavailable));
        if let Some(look) = &mut self.capture {
            look.record_token_wait(since);
        }
    }

    /// What the errcode means and what to do, where somebody has to put something right in WeCom's admin console: the other
    /// errcodes are the callers' affair, and may be frequent. The proxy's own errors say themselves what to do.
    fn hint(&self) -> Option<&'static str> {
        let errcode = self.errcode.filter(|errcode| *errcode != errcode::OK)?;
        let wecoms = self.error.as_ref().is_none_or(|(kind, _)| *kind == ErrorKind::TokenUnavailable);
        let is_for_operators = errcode::explain(errcode).is_some_and(|row| row.console_path_en.is_some());
        errcode::hint(errcode).filter(|_| wecoms && is_for_operators)
    }

    /// The path without its query, and without what a mistyped query or a credential that lost its place left in it.
    fn loggable_path(&self) -> Cow<'_, str> {
        let masked = || masked_path(self.target.path(), self.agent.as_ref().map(|agent| agent.name.as_str()));
        self.target.safe_path().map_or_else(masked, Cow::Borrowed)
    }
}

impl Drop for RequestContext {
    fn drop(&mut self) {
        let failed = self.error.as_ref().is_some_and(|(kind, _)| kind.attributes().1.is_server_error());
        let level = if failed { Level::Warn } else { Level::Info };
        if !self.sinks.is_enabled(level) {
            return;
        }
        // What takes time here is none of the request's.
        let ended = self.ended.unwrap_or_else(Instant::now);
        let trace_id = self.trace.as_ref().map(|trace| trace.trace_id());
        let capture = self.capture.take().map(|look| look.into_redaction_job());
        let path = self.loggable_path();
        let line = AccessLogEntry {
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
            retried: self.retried,
            error: self.error.as_ref().map(|(kind, _)| kind.attributes().0),
            reason: self.error.as_ref().map(|(_, words)| words.as_str()),
            first_attempt: self.first_attempt,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            complete: self.complete,
            token_time: self.token_time,
            upstream_time: self.upstream_time,
            total_time: ended.saturating_duration_since(self.started),
            hint: self.hint(),
        };
        self.sinks.write(&line, self.agent.as_ref(), self.client.as_ref(), capture);
        if let (Some(tracer), Some(trace)) = (&self.sinks.tracer, &self.trace) {
            tracer.write_spans(trace, &line);
        }
    }
}

/// The name of a registered method. Any other is a word of the caller's own, and may be a key that lost its place.
fn loggable_method(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST => method.as_str(),
        _ if REGISTERED_METHODS.binary_search(&method.as_str()).is_ok() => method.as_str(),
        _ => "-",
    }
}

/// IANA's registry of HTTP methods.
#[rustfmt::skip]
const REGISTERED_METHODS: [&str; 40] = [
    "ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "CONNECT", "COPY", "DELETE", "GET", "HEAD", "LABEL",
    "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "OPTIONS",
    "ORDERPATCH", "PATCH", "POST", "PRI", "PROPFIND", "PROPPATCH", "PUT", "QUERY", "REBIND", "REPORT", "SEARCH",
    "TRACE", "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL",
];

/// A path up to where a mistyped query begins, encoded or not, and without segments that may be credentials. `agent` is
/// the name of a known one.
fn masked_path<'a>(path: &'a str, agent: Option<&str>) -> Cow<'a, str> {
    if let Some(plain) = safe_path(path) {
        return Cow::Borrowed(plain);
    }
    let path = strip_mistyped_query(path);
    let is_odd = |segment: &&str| may_be_credential(segment) && Some(*segment) != agent;
    let segments = path.split('/').map(|segment| if is_odd(&segment) { MASK } else { segment });
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

/// The same of a path in which nothing can be a credential, as it is with most; that is soon seen.
pub(super) fn safe_path(path: &str) -> Option<&str> {
    Some(strip_mistyped_query(path)).filter(|path| !may_be_credential(path))
}

fn strip_mistyped_query(path: &str) -> &str {
    let encoded = |at: usize| {
        let code = path.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        [b"3f", b"3d", b"26"].iter().any(|mark| code.eq_ignore_ascii_case(*mark))
    };
    let mut marks = memchr::memchr3_iter(b'&', b'=', b'%', path.as_bytes());
    let end = marks.find(|at| path.as_bytes()[*at] != b'%' || encoded(*at));
    &path[..end.unwrap_or(path.len())]
}

/// Whether a segment, or one of a path's, is as long as a credential and made of what one is made of. WeCom's own are small letters and
/// underscores, with a digit at most.
fn may_be_credential(segment: &str) -> bool {
    // Without a way out in the middle, for that is what lets it be done many bytes at a time.
    let is_odd = |byte: &u8| byte.is_ascii_digit() | byte.is_ascii_uppercase() | (*byte == b'%');
    segment.len() >= 16 && segment.as_bytes().iter().map(|byte| usize::from(is_odd(byte))).sum::<usize>() > 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unregistered_method_is_not_logged() {
        assert!(REGISTERED_METHODS.is_sorted());
        for name in REGISTERED_METHODS {
            assert_eq!(loggable_method(&Method::from_bytes(name.as_bytes()).expect("a method")), name);
        }
        for other in ["get", "GE", "key-of-crm", "-"] {
            assert_eq!(loggable_method(&Method::from_bytes(other.as_bytes()).expect("a method")), "-");
        }
    }

    #[test]
    fn mistyped_query_is_not_logged() {
        for (path, expected) in [
            ("/cgi-bin/user/%67et", "/cgi-bin/user/%67et"),
            ("/cgi-bin/a&access_token=x", "/cgi-bin/a"),
            ("/cgi-bin/a=x", "/cgi-bin/a"),
            ("/cgi-bin/a%3Faccess_token%3Dx", "/cgi-bin/a"),
            ("/cgi-bin/a%3daccess", "/cgi-bin/a"),
            ("/cgi-bin/a%26b", "/cgi-bin/a"),
            ("/cgi-bin/a%2", "/cgi-bin/a%2"),
            ("/cgi-bin/a%", "/cgi-bin/a%"),
        ] {
            assert_eq!(masked_path(path, None), expected);
        }
    }

    #[test]
    fn credential_in_path_is_masked() {
        let (secret, pass) = ("Z9x-yW8v_0123456789abcdefABCDEF-_0123456789a", "wp1-AAAAAGqxO4ABbgFu");
        for (path, expected) in [
            (format!("/{secret}/cgi-bin/user/get"), "/[masked]/cgi-bin/user/get"),
            (format!("/hr/cgi-bin/user/get/{pass}"), "/hr/cgi-bin/user/get/[masked]"),
            (format!("/cgi-bin/{secret}/{secret}&a=b"), "/cgi-bin/[masked]/[masked]"),
            ("/cgi-bin/%61ccess%5Ftoken%2Fx%2Fy".to_owned(), "/cgi-bin/[masked]"),
        ] {
            assert_eq!(masked_path(&path, Some("hr")), expected);
        }
        for path in [
            "/cgi-bin/idconvert/unionid_to_external_userid_3rd",
            "/cgi-bin/externalcontact/get_user_behavior_data",
            "/contacts-sync-of-everybody/cgi-bin/user/get",
            "/Agent-Number-2026/cgi-bin/user/get",
        ] {
            assert_eq!(masked_path(path, Some("Agent-Number-2026")), path);
        }
        assert_eq!(masked_path("/Agent-Number-2026/cgi-bin/user/get", None), "/[masked]/cgi-bin/user/get");
    }
}
