//! The spans of one request: one for the request itself, and under it one for each of its steps. Names and attributes are
//! those of OpenTelemetry's semantic conventions for HTTP. No query, no header and no credential is in any of them.

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

/// Where a span stands among those of its scope.
pub(super) const SPANS_FIELD: u32 = 2;
const ATTRIBUTES_FIELD: u32 = 9;

const KIND_INTERNAL: u64 = 1;
const KIND_SERVER: u64 = 2;
const KIND_CLIENT: u64 = 3;
/// In a status: an error.
const STATUS_ERROR: u64 = 2;

/// In the flags: it is said whether the parent is elsewhere, and it is.
const FLAG_HAS_IS_REMOTE: u32 = 0x100;
const FLAG_IS_REMOTE: u32 = 0x200;
const FLAG_SAMPLED: u32 = 1;

/// Most bytes of a path, and of an error's words.
const MAX_PATH_BYTES: usize = 1024;
const MAX_MESSAGE_BYTES: usize = 512;

/// What is the same for all requests.
pub struct CommonAttributes {
    /// `http` or `https`: how callers come.
    pub scheme: &'static str,
    /// The upstream's URL, without a path.
    pub upstream_url: String,
    /// Its host.
    pub upstream_host: String,
    /// Its port.
    pub upstream_port: u16,
}

/// Where spans are written: one after the other, each as a field of the scope that they share.
pub(super) struct SpanWriter<'a> {
    pub(super) spans: &'a mut Vec<u8>,
    /// Room for one that is being written.
    pub(super) scratch: &'a mut Vec<u8>,
}

/// One request's spans.
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
    /// How many there are.
    pub(super) fn span_count(&self) -> usize {
        1 + self.trace.child_spans().len()
    }

    /// Writes all of them.
    pub(super) fn write(&self, page: &mut SpanWriter<'_>) {
        let request = self.ids.next_span_id();
        self.write_request_span(page, request);
        let mut tries = 0;
        for step in self.trace.child_spans() {
            self.write_child_span(page, request, step, tries);
            tries += i64::from(step.operation == Operation::Attempt);
        }
    }

    fn write_request_span(&self, page: &mut SpanWriter<'_>, id: [u8; 8]) {
        let Self { trace, entry: line, attributes: facts, .. } = self;
        let out = &mut *page.scratch;
        self.begin_span(out, id, trace.context.parent_id, KIND_SERVER);
        self.write_name(out, &trace.route);
        let began = self.start_nanos();
        write_fixed64_field(out, 7, began);
        write_fixed64_field(out, 8, began + saturating_nanos(line.total_time.as_nanos()));
        self.write_method(out);
        write_string_attribute(out, ATTRIBUTES_FIELD, "url.scheme", facts.scheme);
        write_string_attribute(out, ATTRIBUTES_FIELD, "url.path", truncate(line.path, MAX_PATH_BYTES));
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
        if let Some(peer) = line.peer {
            write_string_attribute(out, ATTRIBUTES_FIELD, "client.address", &peer.to_string());
        }
        if line.status > 0 {
            write_int_attribute(out, ATTRIBUTES_FIELD, "http.response.status_code", i64::from(line.status));
        }
        if let Some(bytes) = line.request_bytes {
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
            i64::try_from(line.response_bytes).unwrap_or(i64::MAX),
        );
        self.write_agent_and_client(out);
        write_optional_int(out, "wecom.errcode", line.errcode);
        write_optional_int(out, "wecom.retried", line.retried);
        write_string_attribute(out, ATTRIBUTES_FIELD, "wecom.request_id", line.request_id);
        let mut digits = itoa::Buffer::new();
        let error = self.request_error(digits.format(line.status));
        let is_ours = line.level == Level::Warn || line.status >= 500;
        finish_span(page, error, is_ours, self.flags(trace.context.parent_id.is_some()));
    }

    /// What was wrong with the request as a whole. A caller's own mistake has a kind too.
    fn request_error<'b>(&'b self, status: &'b str) -> Option<SpanError<'b>> {
        let AccessLogEntry { error, reason, complete: whole, status: code, .. } = *self.entry;
        match error {
            Some(kind) => Some(SpanError { kind, message: reason.unwrap_or_default() }),
            None if code >= 500 => Some(SpanError { kind: status, message: "" }),
            None if !whole => Some(SpanError { kind: "caller-left", message: "" }),
            None => None,
        }
    }

    fn write_child_span(&self, page: &mut SpanWriter<'_>, request: [u8; 8], step: &ChildSpan, tries: i64) {
        let out = &mut *page.scratch;
        let kind = if step.operation == Operation::Attempt { KIND_CLIENT } else { KIND_INTERNAL };
        self.begin_span(out, self.ids.next_span_id(), Some(request), kind);
        match step.operation {
            Operation::Queue => write_bytes_field(out, 5, b"queue"),
            Operation::Token => write_bytes_field(out, 5, b"token"),
            Operation::Attempt => self.write_name(out, &self.trace.route),
        }
        let since = saturating_nanos(step.started.saturating_duration_since(self.trace.started).as_nanos());
        let (began, end) = (
            self.start_nanos() + since,
            self.start_nanos() + saturating_nanos(self.entry.total_time.as_nanos()),
        );
        write_fixed64_field(out, 7, began);
        write_fixed64_field(
            out,
            8,
            step.duration.map_or(end, |took| began + saturating_nanos(took.as_nanos())),
        );
        if step.operation == Operation::Attempt {
            self.write_attempt_attributes(out, step, tries);
        }
        self.write_agent_and_client(out);
        let (mut status, mut errcode) = (itoa::Buffer::new(), itoa::Buffer::new());
        let kind = match step.outcome {
            _ if step.duration.is_none() => Some("caller-left"),
            SpanOutcome { error: Some(kind), .. } => Some(kind),
            SpanOutcome { status: code @ 400.., .. } => Some(status.format(code)),
            SpanOutcome { errcode: Some(code), .. } if code != 0 => Some(errcode.format(code)),
            _ => None,
        };
        let error = kind.map(|kind| SpanError { kind, message: "" });
        finish_span(page, error, step.duration.is_some(), self.flags(false));
    }

    fn write_attempt_attributes(&self, out: &mut Vec<u8>, step: &ChildSpan, tries: i64) {
        let Self { attributes: facts, trace, .. } = self;
        self.write_method(out);
        let route = truncate(&trace.route, MAX_PATH_BYTES);
        write_string_attribute(out, ATTRIBUTES_FIELD, "url.full", &format!("{}{route}", facts.upstream_url));
        write_string_attribute(out, ATTRIBUTES_FIELD, "url.template", route);
        write_string_attribute(out, ATTRIBUTES_FIELD, "server.address", &facts.upstream_host);
        write_int_attribute(out, ATTRIBUTES_FIELD, "server.port", i64::from(facts.upstream_port));
        if step.outcome.status > 0 {
            write_int_attribute(
                out,
                ATTRIBUTES_FIELD,
                "http.response.status_code",
                i64::from(step.outcome.status),
            );
        }
        if tries > 0 {
            write_int_attribute(out, ATTRIBUTES_FIELD, "http.request.resend_count", tries);
            write_optional_int(out, "wecom.retried", self.entry.retried);
        }
        write_optional_int(out, "wecom.errcode", step.outcome.errcode);
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

    /// The method, and the endpoint where there is one.
    fn write_name(&self, out: &mut Vec<u8>, route: &str) {
        let (method, route) =
            (known_method(self.entry.method).unwrap_or("HTTP"), truncate(route, MAX_PATH_BYTES));
        let gap = usize::from(!route.is_empty());
        write_length_prefix(out, 5, method.len() + gap + route.len());
        for part in [method, &" "[..gap], route] {
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

    fn flags(&self, parent_is_elsewhere: bool) -> u32 {
        FLAG_SAMPLED | FLAG_HAS_IS_REMOTE | if parent_is_elsewhere { FLAG_IS_REMOTE } else { 0 }
    }

    /// When the request came, in nanoseconds since 1970: the clock was asked when it ended.
    fn start_nanos(&self) -> u64 {
        let end = self.entry.ended_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        saturating_nanos(end.saturating_sub(self.entry.total_time).as_nanos())
    }
}

/// Adds what ends a span, and puts it onto the page.
fn finish_span(page: &mut SpanWriter<'_>, error: Option<SpanError<'_>>, is_ours: bool, flags: u32) {
    let SpanWriter { spans, scratch: draft } = page;
    if let Some(error) = error {
        write_string_attribute(draft, ATTRIBUTES_FIELD, "error.type", error.kind);
        if is_ours {
            let words = truncate(error.message, MAX_MESSAGE_BYTES);
            // The code takes two bytes.
            write_length_prefix(draft, 15, bytes_field_len(words.len()) + 2);
            write_bytes_field(draft, 2, words.as_bytes());
            write_varint_field(draft, 3, STATUS_ERROR);
        }
    }
    write_fixed32_field(draft, 16, flags);
    write_bytes_field(spans, SPANS_FIELD, draft);
}

fn write_optional_int(out: &mut Vec<u8>, key: &str, value: Option<i64>) {
    if let Some(value) = value {
        write_int_attribute(out, ATTRIBUTES_FIELD, key, value);
    }
}

/// The method, if it is one that the conventions know: a caller may invent any number of others.
fn known_method(method: &str) -> Option<&str> {
    let all = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    all.contains(&method).then_some(method)
}

fn protocol_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// As much of a text as fits.
fn truncate(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn saturating_nanos(nanos: u128) -> u64 {
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
