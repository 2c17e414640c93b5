//! The spans of one request: one for the request itself, and under it one for each of its steps. Names and attributes are
//! those of OpenTelemetry's semantic conventions for HTTP. No query, no header and no credential is in any of them.

use std::time::SystemTime;

use http::Version;

use super::{
    context::Ids,
    protobuf::{bytes, fixed32, fixed64, head, integer, number, text, width_of},
    trace::{Doing, Outcome, Step, Trace},
};
use crate::access::{Level, Line};

/// Where a span stands among those of its scope.
pub(super) const SPAN: u32 = 2;
const ATTRIBUTE: u32 = 9;

const INTERNAL: u64 = 1;
const SERVER: u64 = 2;
const CLIENT: u64 = 3;
/// In a status: an error.
const ERROR: u64 = 2;

/// In the flags: it is said whether the parent is elsewhere, and it is.
const PARENT_KNOWN: u32 = 0x100;
const PARENT_ELSEWHERE: u32 = 0x200;
const SAMPLED: u32 = 1;

/// Most bytes of a path, and of an error's words.
const MOST_PATH: usize = 1024;
const MOST_WORDS: usize = 512;

/// What is the same for all requests.
pub struct Facts {
    /// `http` or `https`: how callers come.
    pub scheme: &'static str,
    /// The upstream's URL, without a path.
    pub upstream: String,
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Where spans are written: one after the other, each as a field of the scope that they share.
pub(super) struct Page<'a> {
    pub(super) spans: &'a mut Vec<u8>,
    /// Room for one that is being written.
    pub(super) draft: &'a mut Vec<u8>,
}

/// One request's spans.
pub(super) struct Tree<'a> {
    pub(super) facts: &'a Facts,
    pub(super) ids: &'a Ids,
    pub(super) trace: &'a Trace,
    pub(super) line: &'a Line<'a>,
}

struct Error<'a> {
    kind: &'a str,
    words: &'a str,
}

impl Tree<'_> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        1 + self.trace.steps().len()
    }

    /// Writes all of them.
    pub(super) fn write(&self, page: &mut Page<'_>) {
        let request = self.ids.span();
        self.write_request(page, request);
        let mut tries = 0;
        for step in self.trace.steps() {
            self.write_step(page, request, step, tries);
            tries += i64::from(step.doing == Doing::Try);
        }
    }

    fn write_request(&self, page: &mut Page<'_>, id: [u8; 8]) {
        let Self { trace, line, facts, .. } = self;
        let out = &mut *page.draft;
        self.begin(out, id, trace.context.parent, SERVER);
        self.name(out, &trace.route);
        let began = self.began();
        fixed64(out, 7, began);
        fixed64(out, 8, began + nanos(line.total.as_nanos()));
        self.method(out);
        text(out, ATTRIBUTE, "url.scheme", facts.scheme);
        text(out, ATTRIBUTE, "url.path", beginning(line.path, MOST_PATH));
        if !trace.route.is_empty() {
            text(out, ATTRIBUTE, "http.route", beginning(&trace.route, MOST_PATH));
        }
        text(out, ATTRIBUTE, "network.protocol.version", version(trace.version));
        if let Some(peer) = line.peer {
            text(out, ATTRIBUTE, "client.address", &peer.to_string());
        }
        if line.status > 0 {
            integer(out, ATTRIBUTE, "http.response.status_code", i64::from(line.status));
        }
        if let Some(bytes) = line.request_bytes {
            integer(out, ATTRIBUTE, "http.request.body.size", i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        integer(out, ATTRIBUTE, "http.response.body.size", i64::try_from(line.bytes).unwrap_or(i64::MAX));
        self.whose(out);
        maybe_integer(out, "wecom.errcode", line.errcode);
        maybe_integer(out, "wecom.retried", line.retried);
        text(out, ATTRIBUTE, "wecom.request_id", line.request_id);
        let mut digits = itoa::Buffer::new();
        let error = self.error(digits.format(line.status));
        let is_ours = line.level == Level::Warn || line.status >= 500;
        finish(page, error, is_ours, self.flags(trace.context.parent.is_some()));
    }

    /// What was wrong with the request as a whole. A caller's own mistake has a kind too.
    fn error<'b>(&'b self, status: &'b str) -> Option<Error<'b>> {
        let Line { error, reason, whole, status: code, .. } = *self.line;
        match error {
            Some(kind) => Some(Error { kind, words: reason.unwrap_or_default() }),
            None if code >= 500 => Some(Error { kind: status, words: "" }),
            None if !whole => Some(Error { kind: "caller-left", words: "" }),
            None => None,
        }
    }

    fn write_step(&self, page: &mut Page<'_>, request: [u8; 8], step: &Step, tries: i64) {
        let out = &mut *page.draft;
        let kind = if step.doing == Doing::Try { CLIENT } else { INTERNAL };
        self.begin(out, self.ids.span(), Some(request), kind);
        match step.doing {
            Doing::Queue => bytes(out, 5, b"queue"),
            Doing::Token => bytes(out, 5, b"token"),
            Doing::Try => self.name(out, &self.trace.route),
        }
        let since = nanos(step.began.saturating_duration_since(self.trace.began).as_nanos());
        let (began, end) = (self.began() + since, self.began() + nanos(self.line.total.as_nanos()));
        fixed64(out, 7, began);
        fixed64(out, 8, step.took.map_or(end, |took| began + nanos(took.as_nanos())));
        if step.doing == Doing::Try {
            self.write_try(out, step, tries);
        }
        self.whose(out);
        let (mut status, mut errcode) = (itoa::Buffer::new(), itoa::Buffer::new());
        let kind = match step.outcome {
            _ if step.took.is_none() => Some("caller-left"),
            Outcome { error: Some(kind), .. } => Some(kind),
            Outcome { status: code @ 400.., .. } => Some(status.format(code)),
            Outcome { errcode: Some(code), .. } if code != 0 => Some(errcode.format(code)),
            _ => None,
        };
        let error = kind.map(|kind| Error { kind, words: "" });
        finish(page, error, step.took.is_some(), self.flags(false));
    }

    fn write_try(&self, out: &mut Vec<u8>, step: &Step, tries: i64) {
        let Self { facts, trace, .. } = self;
        self.method(out);
        let route = beginning(&trace.route, MOST_PATH);
        text(out, ATTRIBUTE, "url.full", &format!("{}{route}", facts.upstream));
        text(out, ATTRIBUTE, "url.template", route);
        text(out, ATTRIBUTE, "server.address", &facts.host);
        integer(out, ATTRIBUTE, "server.port", i64::from(facts.port));
        if step.outcome.status > 0 {
            integer(out, ATTRIBUTE, "http.response.status_code", i64::from(step.outcome.status));
        }
        if tries > 0 {
            integer(out, ATTRIBUTE, "http.request.resend_count", tries);
            maybe_integer(out, "wecom.retried", self.line.retried);
        }
        maybe_integer(out, "wecom.errcode", step.outcome.errcode);
    }

    fn begin(&self, out: &mut Vec<u8>, id: [u8; 8], parent: Option<[u8; 8]>, kind: u64) {
        out.clear();
        bytes(out, 1, &self.trace.context.trace_id);
        bytes(out, 2, &id);
        if let Some(parent) = parent {
            bytes(out, 4, &parent);
        }
        number(out, 6, kind);
    }

    /// The method, and the endpoint where there is one.
    fn name(&self, out: &mut Vec<u8>, route: &str) {
        let (method, route) = (known(self.line.method).unwrap_or("HTTP"), beginning(route, MOST_PATH));
        let gap = usize::from(!route.is_empty());
        head(out, 5, method.len() + gap + route.len());
        for part in [method, &" "[..gap], route] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    fn method(&self, out: &mut Vec<u8>) {
        text(out, ATTRIBUTE, "http.request.method", known(self.line.method).unwrap_or("_OTHER"));
    }

    fn whose(&self, out: &mut Vec<u8>) {
        for (key, name) in [("wecom.agent", self.line.agent), ("wecom.client", self.line.client)] {
            if let Some(name) = name {
                text(out, ATTRIBUTE, key, name);
            }
        }
    }

    fn flags(&self, parent_is_elsewhere: bool) -> u32 {
        SAMPLED | PARENT_KNOWN | if parent_is_elsewhere { PARENT_ELSEWHERE } else { 0 }
    }

    /// When the request came, in nanoseconds since 1970: the clock was asked when it ended.
    fn began(&self) -> u64 {
        let end = self.line.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        nanos(end.saturating_sub(self.line.total).as_nanos())
    }
}

/// Adds what ends a span, and puts it onto the page.
fn finish(page: &mut Page<'_>, error: Option<Error<'_>>, is_ours: bool, flags: u32) {
    let Page { spans, draft } = page;
    if let Some(error) = error {
        text(draft, ATTRIBUTE, "error.type", error.kind);
        if is_ours {
            let words = beginning(error.words, MOST_WORDS);
            // The code takes two bytes.
            head(draft, 15, width_of(words.len()) + 2);
            bytes(draft, 2, words.as_bytes());
            number(draft, 3, ERROR);
        }
    }
    fixed32(draft, 16, flags);
    bytes(spans, SPAN, draft);
}

fn maybe_integer(out: &mut Vec<u8>, key: &str, value: Option<i64>) {
    if let Some(value) = value {
        integer(out, ATTRIBUTE, key, value);
    }
}

/// The method, if it is one that the conventions know: a caller may invent any number of others.
fn known(method: &str) -> Option<&str> {
    let all = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    all.contains(&method).then_some(method)
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// As much of a text as fits.
fn beginning(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn nanos(nanos: u128) -> u64 {
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
