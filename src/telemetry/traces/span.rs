//! The spans of a request: one for the request, with a child span for each wait and attempt. Names and attributes
//! follow OpenTelemetry's semantic conventions for HTTP. No span contains a query, header or credential.

use std::time::SystemTime;

use http::Version;

use super::{
    context::IdGenerator,
    protobuf::{
        bytes_field_len, write_bytes_field, write_fixed32_field, write_fixed64_field, write_int_attribute,
        write_length_prefix, write_string_attribute, write_varint_field,
    },
    trace::{ChildSpan, Operation, SpanOutcome, Trace},
};
use crate::telemetry::access_log::{AccessLogEntry, Level};

/// The field number of a span in `ScopeSpans`.
pub(super) const SPANS_FIELD: u32 = 2;
const ATTRIBUTES_FIELD: u32 = 9;

const KIND_INTERNAL: u64 = 1;
const KIND_SERVER: u64 = 2;
const KIND_CLIENT: u64 = 3;
/// `STATUS_CODE_ERROR`.
const STATUS_ERROR: u64 = 2;

/// Span flags: whether the parent is remote is known, and it is remote.
const FLAG_HAS_IS_REMOTE: u32 = 0x100;
const FLAG_IS_REMOTE: u32 = 0x200;
const FLAG_SAMPLED: u32 = 1;

/// Bounds of a path and of an error message.
const MAX_PATH_BYTES: usize = 1024;
const MAX_MESSAGE_BYTES: usize = 512;

/// Attributes with the same value for all requests.
pub struct CommonAttributes {
    /// The scheme of callers: `http` or `https`.
    pub scheme: &'static str,
    /// The upstream's URL, without a path.
    pub upstream_url: String,
    /// The upstream's host.
    pub upstream_host: String,
    /// The upstream's port.
    pub upstream_port: u16,
}

/// Appends encoded spans, each as a field of `ScopeSpans`.
pub(super) struct SpanWriter<'a> {
    pub(super) spans: &'a mut Vec<u8>,
    /// The buffer of the span that is being written.
    pub(super) scratch: &'a mut Vec<u8>,
}

/// The spans of one request.
pub(super) struct RequestSpans<'a> {
    pub(super) attributes: &'a CommonAttributes,
    pub(super) ids: &'a IdGenerator,
    pub(super) trace: &'a Trace,
    pub(super) entry: &'a AccessLogEntry<'a>,
}

struct SpanError<'a> {
    kind: &'a str,
    message: &'a str,
}

impl RequestSpans<'_> {
    /// The number of spans.
    pub(super) fn span_count(&self) -> usize {
        1 + self.trace.child_spans().len()
    }

    /// Writes all spans.
    pub(super) fn write(&self, writer: &mut SpanWriter<'_>) {
        let request_id = self.ids.next_span_id();
        self.write_request_span(writer, request_id);
        let mut attempts = 0;
        for span in self.trace.child_spans() {
            self.write_child_span(writer, request_id, span, attempts);
            attempts += i64::from(span.operation == Operation::Attempt);
        }
    }

    fn write_request_span(&self, writer: &mut SpanWriter<'_>, id: [u8; 8]) {
        let Self { trace, entry, attributes, .. } = self;
        let out = &mut *writer.scratch;
        self.begin_span(out, id, trace.context.parent_id, KIND_SERVER);
        self.write_name(out, &trace.route);
        let start = self.start_nanos();
        write_fixed64_field(out, 7, start);
        write_fixed64_field(out, 8, start + saturating_nanos(entry.total_time.as_nanos()));
        self.write_method(out);
        write_string_attribute(out, ATTRIBUTES_FIELD, "url.scheme", attributes.scheme);
        write_string_attribute(out, ATTRIBUTES_FIELD, "url.path", truncate(entry.path, MAX_PATH_BYTES));
        if !trace.route.is_empty() {
            write_string_attribute(
                out,
                ATTRIBUTES_FIELD,
                "http.route",
                truncate(&trace.route, MAX_PATH_BYTES),
            );
        }
        write_string_attribute(
            out,
            ATTRIBUTES_FIELD,
            "network.protocol.version",
            protocol_version(trace.version),
        );
        if let Some(peer) = entry.peer {
            write_string_attribute(out, ATTRIBUTES_FIELD, "client.address", &peer.to_string());
        }
        if entry.status > 0 {
            write_int_attribute(out, ATTRIBUTES_FIELD, "http.response.status_code", i64::from(entry.status));
        }
        if let Some(bytes) = entry.request_bytes {
            write_int_attribute(
                out,
                ATTRIBUTES_FIELD,
                "http.request.body.size",
                i64::try_from(bytes).unwrap_or(i64::MAX),
            );
        }
        write_int_attribute(
            out,
            ATTRIBUTES_FIELD,
            "http.response.body.size",
            i64::try_from(entry.response_bytes).unwrap_or(i64::MAX),
        );
        self.write_agent_and_client(out);
        write_optional_int(out, "wecom.errcode", entry.errcode);
        write_optional_int(out, "wecom.retried", entry.retried);
        write_string_attribute(out, ATTRIBUTES_FIELD, "wecom.request_id", entry.request_id);
        let mut digits = itoa::Buffer::new();
        let error = self.request_error(digits.format(entry.status));
        let sets_error_status = entry.level == Level::Warn || entry.status >= 500;
        finish_span(writer, error, sets_error_status, self.flags(trace.context.parent_id.is_some()));
    }

    /// The error of the request as a whole, also if it is the caller's.
    fn request_error<'b>(&'b self, status: &'b str) -> Option<SpanError<'b>> {
        let AccessLogEntry { error, reason, complete, status: code, .. } = *self.entry;
        match error {
            Some(kind) => Some(SpanError { kind, message: reason.unwrap_or_default() }),
            None if code >= 500 => Some(SpanError { kind: status, message: "" }),
            None if !complete => Some(SpanError { kind: "caller-left", message: "" }),
            None => None,
        }
    }

    fn write_child_span(
        &self,
        writer: &mut SpanWriter<'_>,
        request_id: [u8; 8],
        span: &ChildSpan,
        attempts: i64,
    ) {
        let out = &mut *writer.scratch;
        let kind = if span.operation == Operation::Attempt { KIND_CLIENT } else { KIND_INTERNAL };
        self.begin_span(out, self.ids.next_span_id(), Some(request_id), kind);
        match span.operation {
            Operation::Queue => write_bytes_field(out, 5, b"queue"),
            Operation::Token => write_bytes_field(out, 5, b"token"),
            Operation::Attempt => self.write_name(out, &self.trace.route),
        }
        let offset = saturating_nanos(span.started.saturating_duration_since(self.trace.started).as_nanos());
        let (start, end) = (
            self.start_nanos() + offset,
            self.start_nanos() + saturating_nanos(self.entry.total_time.as_nanos()),
        );
        write_fixed64_field(out, 7, start);
        write_fixed64_field(
            out,
            8,
            span.duration.map_or(end, |duration| start + saturating_nanos(duration.as_nanos())),
        );
        if span.operation == Operation::Attempt {
            self.write_attempt_attributes(out, span, attempts);
        }
        self.write_agent_and_client(out);
        let (mut status, mut errcode) = (itoa::Buffer::new(), itoa::Buffer::new());
        let kind = match span.outcome {
            _ if span.duration.is_none() => Some("caller-left"),
            SpanOutcome { error: Some(kind), .. } => Some(kind),
            SpanOutcome { status: code @ 400.., .. } => Some(status.format(code)),
            SpanOutcome { errcode: Some(code), .. } if code != 0 => Some(errcode.format(code)),
            _ => None,
        };
        let error = kind.map(|kind| SpanError { kind, message: "" });
        finish_span(writer, error, span.duration.is_some(), self.flags(false));
    }

    fn write_attempt_attributes(&self, out: &mut Vec<u8>, span: &ChildSpan, attempts: i64) {
        let Self { attributes, trace, .. } = self;
        self.write_method(out);
        let route = truncate(&trace.route, MAX_PATH_BYTES);
        write_string_attribute(
            out,
            ATTRIBUTES_FIELD,
            "url.full",
            &format!("{}{route}", attributes.upstream_url),
        );
        write_string_attribute(out, ATTRIBUTES_FIELD, "url.template", route);
        write_string_attribute(out, ATTRIBUTES_FIELD, "server.address", &attributes.upstream_host);
        write_int_attribute(out, ATTRIBUTES_FIELD, "server.port", i64::from(attributes.upstream_port));
        if span.outcome.status > 0 {
            write_int_attribute(
                out,
                ATTRIBUTES_FIELD,
                "http.response.status_code",
                i64::from(span.outcome.status),
            );
        }
        if attempts > 0 {
            write_int_attribute(out, ATTRIBUTES_FIELD, "http.request.resend_count", attempts);
            write_optional_int(out, "wecom.retried", self.entry.retried);
        }
        write_optional_int(out, "wecom.errcode", span.outcome.errcode);
    }

    fn begin_span(&self, out: &mut Vec<u8>, id: [u8; 8], parent: Option<[u8; 8]>, kind: u64) {
        out.clear();
        write_bytes_field(out, 1, &self.trace.context.trace_id);
        write_bytes_field(out, 2, &id);
        if let Some(parent) = parent {
            write_bytes_field(out, 4, &parent);
        }
        write_varint_field(out, 6, kind);
    }

    /// The name of a span: the method, and the route if there is one.
    fn write_name(&self, out: &mut Vec<u8>, route: &str) {
        let (method, route) =
            (known_method(self.entry.method).unwrap_or("HTTP"), truncate(route, MAX_PATH_BYTES));
        let separator = usize::from(!route.is_empty());
        write_length_prefix(out, 5, method.len() + separator + route.len());
        for part in [method, &" "[..separator], route] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    fn write_method(&self, out: &mut Vec<u8>) {
        write_string_attribute(
            out,
            ATTRIBUTES_FIELD,
            "http.request.method",
            known_method(self.entry.method).unwrap_or("_OTHER"),
        );
    }

    fn write_agent_and_client(&self, out: &mut Vec<u8>) {
        for (key, name) in [("wecom.agent", self.entry.agent), ("wecom.client", self.entry.client)] {
            if let Some(name) = name {
                write_string_attribute(out, ATTRIBUTES_FIELD, key, name);
            }
        }
    }

    fn flags(&self, parent_is_remote: bool) -> u32 {
        FLAG_SAMPLED | FLAG_HAS_IS_REMOTE | if parent_is_remote { FLAG_IS_REMOTE } else { 0 }
    }

    /// The request's start in nanoseconds since 1970, computed from its end: the wall clock is read only there.
    fn start_nanos(&self) -> u64 {
        let end = self.entry.ended_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        saturating_nanos(end.saturating_sub(self.entry.total_time).as_nanos())
    }
}

/// Adds the error and the flags of a span, and appends it.
fn finish_span(
    writer: &mut SpanWriter<'_>,
    error: Option<SpanError<'_>>,
    sets_error_status: bool,
    flags: u32,
) {
    let SpanWriter { spans, scratch } = writer;
    if let Some(error) = error {
        write_string_attribute(scratch, ATTRIBUTES_FIELD, "error.type", error.kind);
        if sets_error_status {
            let message = truncate(error.message, MAX_MESSAGE_BYTES);
            // The status code's field takes 2 bytes.
            write_length_prefix(scratch, 15, bytes_field_len(message.len()) + 2);
            write_bytes_field(scratch, 2, message.as_bytes());
            write_varint_field(scratch, 3, STATUS_ERROR);
        }
    }
    write_fixed32_field(scratch, 16, flags);
    write_bytes_field(spans, SPANS_FIELD, scratch);
}

fn write_optional_int(out: &mut Vec<u8>, key: &str, value: Option<i64>) {
    if let Some(value) = value {
        write_int_attribute(out, ATTRIBUTES_FIELD, key, value);
    }
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

/// Truncates to at most `max_bytes`, at a character boundary.
fn truncate(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

fn saturating_nanos(nanos: u128) -> u64 {
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
