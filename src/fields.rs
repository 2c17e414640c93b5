//! The header lines of an HTTP message, in the order and the spelling in which they came, each told apart once.
//!
//! A header that speaks of one connection, or of one proxy, never crosses to the other side; which those are stands here.

mod familiar;
mod shown;

use std::rc::Rc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

pub use self::familiar::{Familiar, is_same};
use self::{
    familiar::{Digits, Ready},
    shown::Credentials,
};
use crate::{
    buffers,
    secret::{wipe, wiped_bytes},
};

/// Most headers that `Connection` may name. Each is looked for among all lines: without a bound, one long line is worth
/// milliseconds of work.
const MAX_OPTIONS: usize = 100;

/// A header line's name, as far as this proxy acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// None of the others.
    Other,
    /// `Authorization`
    Authorization,
    /// `Connection`
    Connection,
    /// `Content-Disposition`
    ContentDisposition,
    /// `Content-Encoding`
    ContentEncoding,
    /// `Content-Length`
    ContentLength,
    /// `Content-Type`
    ContentType,
    /// `Date`
    Date,
    /// `Expect`
    Expect,
    /// `Host`
    Host,
    /// `Traceparent`
    Traceparent,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `X-Api-Key`
    ApiKey,
    /// `X-Request-Id`
    RequestId,
    /// `X-Wecom-Agent`
    Agent,
    /// `X-Wecom-Debug`
    Debug,
    /// `X-Wecom-Retried`
    Retried,
    /// `X-Wecom-Hint`
    Hint,
    /// Any other that begins with `X-Wecom-`.
    Wecom,
    /// What a request says of its client's network or application (`Forwarded`, `Via`, `X-Forwarded-*`, `X-Real-IP` and its
    /// like, `X-Original-*`, `X-Envoy-*`, `X-Scheme`, `Tracestate`, `Baggage`, `Cookie`, `Referer`, `Origin`), and
    /// `Idempotency-Key`, which is meant for this proxy.
    Private,
    /// What belongs to one connection (RFC 9110 §7.6.1) and has no name of its own here.
    Hop,
}

impl Known {
    /// Tells a name apart, in whatever case it is written.
    pub fn of(name: &[u8]) -> Self {
        let is = |usual: &str| is_named(name, usual);
        // Length and first letter leave one or two to be compared.
        match (name.len(), name.first().map_or(0, |first| first | 0x20)) {
            (2, b't') if is("TE") => Self::Hop,
            (3, b'v') if is("Via") => Self::Private,
            (4, b'h') if is("Host") => Self::Host,
            (4, b'd') if is("Date") => Self::Date,
            (6, b'e') if is("Expect") => Self::Expect,
            (6, b'c') if is("Cookie") => Self::Private,
            (6, b'o') if is("Origin") => Self::Private,
            (7, b't') if is("Trailer") => Self::Hop,
            (7, b'u') if is("Upgrade") => Self::Hop,
            (7, b'b') if is("Baggage") => Self::Private,
            (7, b'r') if is("Referer") => Self::Private,
            (9, b'f') if is("Forwarded") => Self::Private,
            (10, b'c') if is("Connection") => Self::Connection,
            (10, b'k') if is("Keep-Alive") => Self::Hop,
            (10, b't') if is("Tracestate") => Self::Private,
            (11, b't') if is("Traceparent") => Self::Traceparent,
            (12, b'c') if is("Content-Type") => Self::ContentType,
            (13, b'a') if is("Authorization") => Self::Authorization,
            (14, b'c') if is("Content-Length") => Self::ContentLength,
            (14, b'h') if is("HTTP2-Settings") => Self::Hop,
            (14, b't') if is("True-Client-IP") => Self::Private,
            (15, b'i') if is("Idempotency-Key") => Self::Private,
            (16, b'c') if is("Content-Encoding") => Self::ContentEncoding,
            (16, b'c') if is("CF-Connecting-IP") => Self::Private,
            (17, b't') if is("Transfer-Encoding") => Self::TransferEncoding,
            (19, b'c') if is("Content-Disposition") => Self::ContentDisposition,
            (16 | 18 | 19 | 25, b'p') => match () {
                () if is("Proxy-Connection") => Self::Hop,
                () if is("Proxy-Authenticate") => Self::Hop,
                () if is("Proxy-Authorization") => Self::Hop,
                () if is("Proxy-Authentication-Info") => Self::Hop,
                () => Self::Other,
            },
            (8.., b'x') => Self::of_x(name),
            _ => Self::Other,
        }
    }

    /// The same for a name that begins with an X.
    fn of_x(name: &[u8]) -> Self {
        let is = |usual: &str| is_named(name, usual);
        let begins = |known: &str| {
            name.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known.as_bytes()))
        };
        match name.len() {
            8 if is("X-Scheme") => Self::Private,
            9 if is("X-Api-Key") => Self::ApiKey,
            9 if is("X-Real-IP") => Self::Private,
            11 if is("X-Client-IP") => Self::Private,
            12 if is("X-Request-Id") => Self::RequestId,
            _ if ["x-forwarded-", "x-original-", "x-envoy-"].into_iter().any(begins) => Self::Private,
            _ if !begins("x-wecom-") => Self::Other,
            12 if is("X-Wecom-Hint") => Self::Hint,
            13 if is("X-Wecom-Agent") => Self::Agent,
            13 if is("X-Wecom-Debug") => Self::Debug,
            15 if is("X-Wecom-Retried") => Self::Retried,
            _ => Self::Wecom,
        }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Whether it belongs to one connection, or says how a message is framed on it, in either direction.
    fn is_of_connection(self) -> bool {
        matches!(self, Self::Connection | Self::TransferEncoding | Self::Hop)
    }

    /// Whether an answer's line is one that the proxy writes itself.
    fn is_said_anew(self) -> bool {
        matches!(self, Self::ContentLength | Self::RequestId | Self::Agent | Self::Retried | Self::Hint)
    }

    /// Whether a request's line stays here beside those: the client's credentials, what is said to this proxy, what the
    /// client's network tells of itself, and what is written anew or answered here.
    fn stays_here(self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::ContentLength
                | Self::Expect
                | Self::Authorization
                | Self::ApiKey
                | Self::Private
                | Self::Traceparent
                | Self::Agent
                | Self::Debug
                | Self::Retried
                | Self::Hint
                | Self::Wecom
        )
    }
}

/// Whether a name is this one, whatever its case. Most programs write it the usual way, which is quicker to see.
#[inline]
fn is_named(name: &[u8], usual: &str) -> bool {
    name == usual.as_bytes() || name.eq_ignore_ascii_case(usual.as_bytes())
}

/// Whether a name that came over HTTP/2 holds a quotation mark: the http crate takes it for a letter, and no name may hold
/// one (RFC 9110 §5.6.2).
pub fn is_quoted(name: &HeaderName) -> bool {
    memchr::memchr(b'"', name.as_str().as_bytes()).is_some()
}

/// One header line.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    /// What its name means here.
    pub known: Known,
    /// Its name, as it was spelled.
    pub name: &'a [u8],
    /// Its value, without white space around it.
    pub value: &'a [u8],
}

impl Field<'_> {
    /// Writes it as a line.
    fn put(&self, out: &mut BytesMut) {
        out.reserve(self.name.len() + self.value.len() + 4);
        out.put_slice(self.name);
        out.put_slice(b": ");
        out.put_slice(self.value);
        out.put_slice(b"\r\n");
    }
}

/// All header lines of one message; clones share them. It has no `Debug`: some carry credentials.
#[derive(Clone, Default)]
pub struct Fields {
    lines: Rc<Lines>,
    /// What `Content-Length` says here, where the lines are shared with other messages.
    length: Option<Digits>,
}

/// Lines, and the text in which they stand.
#[derive(Default)]
struct Lines {
    text: Bytes,
    each: Vec<Line>,
    /// A bit for each kind of name that occurs.
    kinds: u32,
    /// What `Connection` says.
    close: bool,
    keep_alive: bool,
    /// It says more than anybody means.
    rambles: bool,
    /// Which credentials they show and repeat.
    credentials: Credentials,
    /// What was made of lines that come again and again.
    familiar: Option<Box<Ready>>,
}

/// Where a line stands in the text.
#[derive(Clone, Copy)]
struct Line {
    known: Known,
    /// The message's `Connection` names it.
    nominated: bool,
    name: Span,
    value: Span,
}

#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Where `part` stands in a text that begins at `base`. Heads are bounded far below 4 GiB.
    fn of(part: &[u8], base: usize) -> Self {
        let start = (part.as_ptr() as usize - base) as u32;
        Self { start, end: start + part.len() as u32 }
    }

    fn of_text(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }
}

/// Where in a message the header lines begin: behind its first line, before which there may be empty ones.
fn lines_at(message: &[u8]) -> Option<usize> {
    let begin = message.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    memchr::memchr(b'\n', &message[begin..]).map(|end| begin + end + 1)
}

/// Lines that were found in a head, before it is taken off its buffer.
pub struct Found {
    at: usize,
    lines: Vec<Line>,
}

impl Found {
    /// What httparse found in this head.
    pub fn new(head: &[u8], headers: &[httparse::Header<'_>]) -> Self {
        let at = lines_at(head).unwrap_or(head.len());
        let base = head[at..].as_ptr() as usize;
        let line = |header: &httparse::Header<'_>| Line {
            known: Known::of(header.name.as_bytes()),
            nominated: false,
            name: Span::of(header.name.as_bytes(), base),
            value: Span::of(header.value, base),
        };
        Self { at, lines: headers.iter().map(line).collect() }
    }

    /// Takes the head, which is so long, off its buffer; the lines together with their text. The text is a copy: the lines
    /// may last as long as a request waits, and must not keep the whole buffer.
    pub fn take_off(self, buffer: &mut BytesMut, length: usize) -> Fields {
        let text = Bytes::copy_from_slice(&buffer[self.at..length]);
        buffer.advance(length);
        Lines::new(text, self.lines).into()
    }

    /// The same for a head in which there may be credentials: the lines get a text of their own, which is wiped when they
    /// go, and what was read is wiped at once.
    pub fn wipe_off(self, buffer: &mut BytesMut, length: usize) -> Fields {
        let text = wiped_bytes(buffer[self.at..length].to_vec());
        wipe(&mut buffer[..length]);
        buffer.advance(length);
        Lines::new(text, self.lines).into()
    }
}

impl Fields {
    /// Lines of the proxy's own.
    pub fn of(lines: &[(&str, &str)]) -> Self {
        let length = lines.iter().map(|(name, value)| name.len() + value.len()).sum();
        Self::copied(length, lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    /// The lines of a message that came over HTTP/2.
    pub fn of_map(map: &HeaderMap) -> Self {
        let length = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        Self::copied(
            length,
            map.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes().trim_ascii())),
        )
    }

    /// Lines with a text of their own, which is so long at most.
    fn copied<'a>(length: usize, lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        // Of its whole length at once: memory that it outgrows would not be wiped.
        let mut text = Vec::with_capacity(length);
        let mut span = |part: &[u8]| {
            let start = text.len() as u32;
            text.put_slice(part);
            Span { start, end: text.len() as u32 }
        };
        let lines = lines.map(|(name, value)| Line {
            known: Known::of(name),
            nominated: false,
            name: span(name),
            value: span(value),
        });
        let lines = lines.collect();
        Lines::new(wiped_bytes(text), lines).into()
    }

    /// How long the text is in which they stand.
    pub fn text_bytes(&self) -> usize {
        self.lines.text.len()
    }

    /// Every line.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.lines.each.iter().map(|line| self.field(line))
    }

    /// What the one `Content-Length` says, where that is known without reading the line.
    pub fn known_length(&self) -> Option<u64> {
        self.length.as_ref().and_then(Digits::number)
    }

    fn field(&self, line: &Line) -> Field<'_> {
        Field { known: line.known, name: line.name.of_text(&self.lines.text), value: self.value(line) }
    }

    fn value(&self, line: &Line) -> &[u8] {
        match &self.length {
            Some(length) if line.known == Known::ContentLength => length.as_bytes(),
            _ => line.value.of_text(&self.lines.text),
        }
    }

    /// The values of every line with this name.
    pub fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        // Most of what is asked for is not there.
        let each = if self.lines.kinds & known.bit() == 0 { &[][..] } else { &self.lines.each };
        each.iter().filter(move |line| line.known == known).map(|line| self.value(line))
    }

    /// The first value with this name.
    pub fn first(&self, known: Known) -> Option<&[u8]> {
        self.all(known).next()
    }

    /// Whether there is a line with this name.
    pub fn contains(&self, known: Known) -> bool {
        self.first(known).is_some()
    }

    /// Whether `Connection` says `close`.
    pub fn says_close(&self) -> bool {
        self.lines.close
    }

    /// Whether `Connection` says `keep-alive`.
    pub fn says_keep_alive(&self) -> bool {
        self.lines.keep_alive
    }

    /// Whether `Connection` names so many headers that not all of them were looked for: such a message is not to be passed
    /// on.
    pub fn names_too_many(&self) -> bool {
        self.lines.rambles
    }

    /// The lines that do not belong to one connection.
    pub fn beyond_connection(&self) -> impl Iterator<Item = Field<'_>> {
        self.lines.each.iter().filter(|line| line.outlives_connection()).map(|line| self.field(line))
    }

    /// Of a request: the lines that go on to the upstream. One that repeats a pass, or a key that the request shows, does
    /// not.
    pub fn to_upstream(&self) -> impl Iterator<Item = Field<'_>> {
        let withheld = self.lines.withheld();
        let each = self.lines.each.iter().enumerate();
        let going = each.filter(|(nth, line)| line.leaves() && !withheld.contains(nth));
        going.map(|(_, line)| self.field(line))
    }

    /// Writes those lines.
    pub fn put_to_upstream(&self, out: &mut BytesMut) {
        match &self.lines.familiar {
            Some(ready) => out.put_slice(ready.to_upstream()),
            None => self.to_upstream().for_each(|field| field.put(out)),
        }
    }

    /// Of an answer: the lines that go on to the caller. Its length is not among them: how the body is framed is decided
    /// anew, whatever the upstream nominates.
    pub fn to_caller(&self) -> impl Iterator<Item = Field<'_>> {
        let leaves = |line: &&Line| line.outlives_connection() && !line.known.is_said_anew();
        self.lines.each.iter().filter(leaves).map(|line| self.field(line))
    }

    /// The same ready for the wire, if they are at hand and none of their values is as long as `too_long`.
    pub fn ready_for_caller(&self, too_long: usize) -> Option<&[u8]> {
        self.lines.familiar.as_ref()?.to_caller(too_long)
    }

    /// What tells lines that came before from all others, for as long as a clone of them is held.
    pub fn mark(&self) -> Option<usize> {
        self.lines.familiar.as_ref().map(|_| Rc::as_ptr(&self.lines) as usize)
    }
}

impl From<Lines> for Fields {
    fn from(lines: Lines) -> Self {
        Self { lines: Rc::new(lines), length: None }
    }
}

impl Line {
    fn outlives_connection(&self) -> bool {
        !(self.nominated || self.known.is_of_connection())
    }

    /// Whether a request's line goes on to the upstream by its name.
    fn leaves(&self) -> bool {
        self.outlives_connection() && !self.known.stays_here()
    }
}

impl Lines {
    fn new(text: Bytes, each: Vec<Line>) -> Self {
        let kinds = each.iter().fold(0, |kinds, line| kinds | line.known.bit());
        let mut lines = Self { text, each, kinds, ..Self::default() };
        lines.nominate();
        lines
    }

    /// Takes in what `Connection` says, and marks the lines that it names.
    fn nominate(&mut self) {
        let Self { text, each, close, keep_alive, rambles, .. } = self;
        let mut options_seen = 0;
        for nth in 0..each.len() {
            if each[nth].known != Known::Connection {
                continue;
            }
            for option in options(each[nth].value.of_text(text)) {
                options_seen += 1;
                if options_seen > MAX_OPTIONS {
                    *rambles = true;
                    return;
                }
                if option.eq_ignore_ascii_case(b"close") {
                    *close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    *keep_alive = true;
                } else {
                    for line in each.iter_mut() {
                        line.nominated |= line.name.of_text(text).eq_ignore_ascii_case(option);
                    }
                }
            }
        }
    }
}

/// The options of a `Connection` line.
fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

/// Header lines ready for the wire: `name: value`, each with its line end.
pub struct Block(BytesMut);

impl Default for Block {
    fn default() -> Self {
        Self(buffers::take())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.0));
    }
}

impl Block {
    /// Adds a line. Neither part may hold a line end: what came from outside was parsed as a line, what is our own is
    /// written by us.
    pub fn put(&mut self, name: &[u8], value: &[u8]) {
        Field { known: Known::Other, name, value }.put(&mut self.0);
    }

    /// Room to write lines into, each with its line end.
    pub fn room(&mut self) -> &mut BytesMut {
        &mut self.0
    }

    /// The lines as they go over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same lines for a message that leaves over HTTP/2. A line that cannot be one there is left out.
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        let mut rest = &self.0[..];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let line = rest[..end].trim_ascii_end();
            rest = &rest[end + 1..];
            let Some(colon) = memchr::memchr(b':', line) else { continue };
            let name = HeaderName::from_bytes(&line[..colon]);
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii_start());
            if let (Ok(name), Ok(value)) = (name, value) {
                map.append(name, value);
            }
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<'a>(fields: impl Iterator<Item = Field<'a>>) -> Vec<String> {
        fields.map(|field| String::from_utf8_lossy(field.name).into_owned()).collect()
    }

    #[test]
    fn a_request_keeps_here_what_is_not_for_wecom() {
        let fields = Fields::of(&[
            ("Host", "x"),
            ("User-Agent", "curl"),
            ("AUTHORIZATION", "Bearer x"),
            ("x-api-key", "x"),
            ("Cookie", "a"),
            ("Via", "1.1 x"),
            ("Forwarded", "for=x"),
            ("X-Forwarded-For", "x"),
            ("X-Forwarded-Anything", "x"),
            ("x-real-ip", "x"),
            ("X-Client-IP", "x"),
            ("True-Client-Ip", "x"),
            ("CF-Connecting-IP", "x"),
            ("X-Original-URL", "x"),
            ("X-Envoy-Original-Path", "x"),
            ("X-Scheme", "x"),
            ("Referer", "x"),
            ("Origin", "x"),
            ("Idempotency-Key", "x"),
            ("Traceparent", "00-x"),
            ("TRACESTATE", "x"),
            ("baggage", "x"),
            ("X-Wecom-Agent", "hr"),
            ("X-Wecom-New", "x"),
            ("Content-Length", "3"),
            ("Expect", "100-continue"),
            ("TE", "trailers"),
            ("Proxy-Authorization", "x"),
            ("Transfer-Encoding", "chunked"),
            ("X-Wecom", "stays as it is not ours"),
            ("X-Request-Id", "1"),
            ("Connection", "keep-alive, X-Mine,,close"),
            ("x-MINE", "1"),
            ("Accept", "*/*"),
        ]);
        assert_eq!(names(fields.to_upstream()), ["User-Agent", "X-Wecom", "X-Request-Id", "Accept"]);
        assert!(fields.says_close() && fields.says_keep_alive());
        assert_eq!(fields.first(Known::Agent), Some(&b"hr"[..]));
    }

    #[test]
    fn an_answer_loses_what_was_its_connections() {
        let fields = Fields::of(&[
            ("Content-Type", "text/plain"),
            ("Content-Length", "3"),
            ("Connection", "content-length, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Set-Cookie", "a"),
            ("Set-Cookie", "b"),
        ]);
        assert_eq!(names(fields.to_caller()), ["Content-Type", "Set-Cookie", "Set-Cookie"]);
    }

    #[test]
    fn a_block_is_the_same_over_both_protocols() {
        let mut block = Block::default();
        block.put(b"X-One", b"a: b");
        block.put(b"x-empty", b"");
        assert_eq!(block.as_bytes(), b"X-One: a: b\r\nx-empty: \r\n");
        let map = block.to_map();
        assert_eq!((map["x-one"].as_bytes(), map["x-empty"].as_bytes()), (&b"a: b"[..], &b""[..]));
    }
}
