//! The spans of a request: one for the request, with a child span for each wait and attempt. Names and attributes
//! follow OpenTelemetry's semantic conventions for HTTP. No span contains a query, a credential, or a header other than
//! `Host` and `User-Agent`.

use std::time::Duration;

use http::Version;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, SpanFlags, Status, span::SpanKind, status::StatusCode},
};

use super::{
    context::IdGenerator,
    trace::{ChildSpan, Operation, SpanOutcome, Trace},
};
use crate::{
    telemetry::access_log::{AccessLogEntry, Level, truncate},
    time::clock,
};

/// The sampled flag of W3C Trace Context.
const FLAG_SAMPLED: u32 = 1;
/// Bounds of a route; path and message are bounded in the entry.
const MAX_ROUTE_BYTES: usize = 1024;

/// Attributes with the same value for all requests.
pub struct CommonAttributes {
    /// The scheme of callers: `http` or `https`.
    pub scheme: &'static str,
    /// By the index of each upstream.
    pub upstreams: Vec<UpstreamAttributes>,
}

/// Attributes of the attempts at one upstream.
pub struct UpstreamAttributes {
    /// The URL, up to the API path.
    pub url: String,
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What the spans of one request are made of.
pub(super) struct RequestSpans<'a> {
    pub(super) attributes: &'a CommonAttributes,
    pub(super) ids: &'a IdGenerator,
    pub(super) trace: &'a Trace,
    pub(super) entry: AccessLogEntry<'a>,
}

impl RequestSpans<'_> {
    /// Appends all spans.
    pub(super) fn push_to(&self, spans: &mut Vec<Span>) {
        let request_id = self.trace.span_id.unwrap_or_else(|| self.ids.next_span_id());
        spans.push(self.request_span(request_id));
        let mut attempts = 0;
        for span in self.trace.child_spans() {
            spans.push(self.child_span(request_id, span, attempts));
            attempts += i64::from(span.operation == Operation::Attempt);
        }
    }

    fn request_span(&self, id: [u8; 8]) -> Span {
        let Self { trace, entry, attributes: common, .. } = self;
        let mut attributes = vec![
            self.method(),
            text("url.scheme", common.scheme),
            text("url.path", entry.path),
            text("network.protocol.version", protocol_version(trace.version)),
            number("http.response.body.size", saturating(entry.response_bytes)),
            text("wecom.request_id", entry.request_id),
        ];
        attributes.extend((!trace.route().is_empty()).then(|| text("http.route", self.route())));
        attributes.extend(trace.peer.map(|peer| text("network.peer.address", peer.to_string())));
        attributes.extend(
            (!trace.user_agent().is_empty()).then(|| text("user_agent.original", trace.user_agent())),
        );
        let (host, port) = split_authority(trace.authority());
        attributes.extend((!host.is_empty()).then(|| text("server.address", host)));
        attributes.extend(port.map(|port| number("server.port", port)));
        attributes.extend(entry.peer.map(|peer| text("client.address", peer.to_string())));
        attributes.extend((entry.status > 0).then(|| number("http.response.status_code", entry.status)));
        attributes
            .extend(entry.request_bytes.map(|bytes| number("http.request.body.size", saturating(bytes))));
        attributes.extend(entry.errcode.map(|errcode| number("wecom.errcode", errcode)));
        attributes.extend(entry.retried.map(|errcode| number("wecom.retried", errcode)));
        let remote =
            if trace.context.parent_id.is_some() { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
        let span = Span {
            name: self.name(),
            kind: SpanKind::Server.into(),
            parent_span_id: trace.context.parent_id.map(Vec::from).unwrap_or_default(),
            flags: remote,
            ..self.span(id, Duration::ZERO, entry.total_time, attributes)
        };
        let is_failure = entry.level == Level::Warn || entry.status >= 500;
        with_error(span, self.request_error(), entry.reason.unwrap_or_default(), is_failure)
    }

    /// The error of the request as a whole, also if it is the caller's.
    fn request_error(&self) -> Option<String> {
        let AccessLogEntry { error, complete, status, .. } = self.entry;
        match error {
            Some(kind) => Some(kind.to_owned()),
            None if status >= 500 => Some(status.to_string()),
            None => (!complete).then(|| "caller-left".to_owned()),
        }
    }

    fn child_span(&self, parent: [u8; 8], span: &ChildSpan, attempts: i64) -> Span {
        let (name, kind, attributes) = match span.operation {
            Operation::Queue => ("queue".to_owned(), SpanKind::Internal, Vec::new()),
            Operation::Token => ("token".to_owned(), SpanKind::Internal, Vec::new()),
            Operation::Attempt => (self.name(), SpanKind::Client, self.attempt_attributes(span, attempts)),
        };
        let offset = span.started.saturating_duration_since(self.trace.started);
        // A span without an end ended with the request.
        let end = span.duration.map_or(self.entry.total_time, |duration| offset + duration);
        let error = match span.outcome {
            _ if span.duration.is_none() => Some("caller-left".to_owned()),
            SpanOutcome { error: Some(kind), .. } => Some(kind.to_owned()),
            SpanOutcome { status: code @ 400.., .. } => Some(code.to_string()),
            SpanOutcome { errcode: Some(code), .. } if code != 0 => Some(code.to_string()),
            _ => None,
        };
        let id = self.ids.next_span_id();
        let base = self.span(id, offset, end, attributes);
        let span_of_parent = Span { name, kind: kind.into(), parent_span_id: parent.into(), ..base };
        with_error(span_of_parent, error, "", span.duration.is_some())
    }

    fn attempt_attributes(&self, span: &ChildSpan, attempts: i64) -> Vec<KeyValue> {
        let route = self.route();
        let mut attributes = vec![self.method()];
        if let Some(UpstreamAttributes { url, host, port }) =
            self.attributes.upstreams.get(self.trace.upstream)
        {
            attributes.extend([
                text("url.full", format!("{url}{route}")),
                text("url.template", route),
                text("server.address", &**host),
                number("server.port", *port),
            ]);
        }
        let status = span.outcome.status;
        attributes.extend((status > 0).then(|| number("http.response.status_code", status)));
        if attempts > 0 {
            attributes.push(number("http.request.resend_count", attempts));
            attributes.extend(self.entry.retried.map(|errcode| number("wecom.retried", errcode)));
        }
        attributes.extend(span.outcome.errcode.map(|errcode| number("wecom.errcode", errcode)));
        attributes
    }

    /// A span with what all spans of the request have; the times are offsets from the request's start.
    fn span(&self, id: [u8; 8], start: Duration, end: Duration, mut attributes: Vec<KeyValue>) -> Span {
        let Self { trace, entry, .. } = self;
        attributes.extend(entry.agent.map(|agent| text("wecom.agent", agent)));
        attributes.extend(entry.client.map(|client| text("wecom.client", client)));
        // The wall clock is read only at the end of the request.
        let ended_at = clock::since_epoch(entry.ended_at);
        let started_at = ended_at.saturating_sub(entry.total_time);
        let nanos = |offset: Duration| u64::try_from((started_at + offset).as_nanos()).unwrap_or(u64::MAX);
        Span {
            trace_id: trace.context.trace_id.into(),
            span_id: id.into(),
            start_time_unix_nano: nanos(start),
            end_time_unix_nano: nanos(end),
            attributes,
            ..Span::default()
        }
    }

    /// The name of a span: the method, and the route if there is one.
    fn name(&self) -> String {
        let method = known_method(self.entry.method).unwrap_or("HTTP");
        format!("{method} {}", self.route()).trim_end().to_owned()
    }

    fn route(&self) -> &str {
        truncate(self.trace.route(), MAX_ROUTE_BYTES)
    }

    fn method(&self) -> KeyValue {
        text("http.request.method", known_method(self.entry.method).unwrap_or("_OTHER"))
    }
}

/// Adds the error and the flags of a span.
pub(super) fn with_error(mut span: Span, error: Option<String>, message: &str, is_failure: bool) -> Span {
    span.flags |= FLAG_SAMPLED | SpanFlags::ContextHasIsRemoteMask as u32;
    if let Some(error) = error {
        span.attributes.push(text("error.type", error));
        span.status =
            is_failure.then(|| Status { message: message.to_owned(), code: StatusCode::Error.into() });
    }
    span
}

pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

pub(super) fn number(key: &str, value: impl Into<i64>) -> KeyValue {
    attribute(key, Value::IntValue(value.into()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn saturating(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The host of an authority without brackets, and its port; nothing of one with a user.
fn split_authority(authority: &str) -> (&str, Option<u16>) {
    let authority = if authority.contains('@') { "" } else { authority };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

/// The method, if the conventions know it: others are not used in names, because their number is unbounded.
fn known_method(method: &str) -> Option<&str> {
    let known = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    known.contains(&method).then_some(method)
}

fn protocol_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}
