//! The header lines of an HTTP message, in the order and the spelling in which they came, each told apart once.
//!
//! A header that speaks of one connection, or of one proxy, never crosses to the other side; which those are stands here.

mod credentials;
mod header_cache;

use std::rc::Rc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

pub use self::header_cache::{HeaderCache, constant_time_eq};
use self::{
    credentials::HeaderCredentials,
    header_cache::{ContentLength, EncodedHeaders},
};
use super::buffer_pool;
use crate::secret::{wipe, wipe_on_drop};

/// Most headers that `Connection` may name. Each is looked for among all lines: without a bound, one long line is worth
/// milliseconds of work.
const MAX_CONNECTION_OPTIONS: usize = 100;

/// A header line's name, as far as this proxy acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownHeader {
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
    WecomAgent,
    /// `X-Wecom-Debug`
    WecomDebug,
    /// `X-Wecom-Retried`
    WecomRetried,
    /// `X-Wecom-Hint`
    WecomHint,
    /// Any other that begins with `X-Wecom-`.
    WecomOther,
    /// What a request says of its client's network or application (`Forwarded`, `Via`, `X-Forwarded-*`, `X-Real-IP` and its
    /// like, `X-Original-*`, `X-Envoy-*`, `X-Scheme`, `Tracestate`, `Baggage`, `Cookie`, `Referer`, `Origin`), and
    /// `Idempotency-Key`, which is meant for this proxy.
    ClientInfo,
    /// What belongs to one connection (RFC 9110 §7.6.1) and has no name of its own here.
    HopByHop,
}

impl KnownHeader {
    /// Tells a name apart, in whatever case it is written.
    pub fn from_name(name: &[u8]) -> Self {
        let is = |usual: &str| name_matches(name, usual);
        // Length and first letter leave one or two to be compared.
        match (name.len(), name.first().map_or(0, |first| first | 0x20)) {
            (2, b't') if is("TE") => Self::HopByHop,
            (3, b'v') if is("Via") => Self::ClientInfo,
            (4, b'h') if is("Host") => Self::Host,
            (4, b'd') if is("Date") => Self::Date,
            (6, b'e') if is("Expect") => Self::Expect,
            (6, b'c') if is("Cookie") => Self::ClientInfo,
            (6, b'o') if is("Origin") => Self::ClientInfo,
            (7, b't') if is("Trailer") => Self::HopByHop,
            (7, b'u') if is("Upgrade") => Self::HopByHop,
            (7, b'b') if is("Baggage") => Self::ClientInfo,
            (7, b'r') if is("Referer") => Self::ClientInfo,
            (9, b'f') if is("Forwarded") => Self::ClientInfo,
            (10, b'c') if is("Connection") => Self::Connection,
            (10, b'k') if is("Keep-Alive") => Self::HopByHop,
            (10, b't') if is("Tracestate") => Self::ClientInfo,
            (11, b't') if is("Traceparent") => Self::Traceparent,
            (12, b'c') if is("Content-Type") => Self::ContentType,
            (13, b'a') if is("Authorization") => Self::Authorization,
            (14, b'c') if is("Content-Length") => Self::ContentLength,
            (14, b'h') if is("HTTP2-Settings") => Self::HopByHop,
            (14, b't') if is("True-Client-IP") => Self::ClientInfo,
            (15, b'i') if is("Idempotency-Key") => Self::ClientInfo,
            (16, b'c') if is("Content-Encoding") => Self::ContentEncoding,
            (16, b'c') if is("CF-Connecting-IP") => Self::ClientInfo,
            (17, b't') if is("Transfer-Encoding") => Self::TransferEncoding,
            (19, b'c') if is("Content-Disposition") => Self::ContentDisposition,
            (16 | 18 | 19 | 25, b'p') => match () {
                () if is("Proxy-Connection") => Self::HopByHop,
                () if is("Proxy-Authenticate") => Self::HopByHop,
                () if is("Proxy-Authorization") => Self::HopByHop,
                () if is("Proxy-Authentication-Info") => Self::HopByHop,
                () => Self::Other,
            },
            (8.., b'x') => Self::from_x_name(name),
            _ => Self::Other,
        }
    }

    /// The same for a name that begins with an X.
    fn from_x_name(name: &[u8]) -> Self {
        let is = |usual: &str| name_matches(name, usual);
        let begins = |known: &str| {
            name.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known.as_bytes()))
        };
        match name.len() {
            8 if is("X-Scheme") => Self::ClientInfo,
            9 if is("X-Api-Key") => Self::ApiKey,
            9 if is("X-Real-IP") => Self::ClientInfo,
            11 if is("X-Client-IP") => Self::ClientInfo,
            12 if is("X-Request-Id") => Self::RequestId,
            _ if ["x-forwarded-", "x-original-", "x-envoy-"].into_iter().any(begins) => Self::ClientInfo,
            _ if !begins("x-wecom-") => Self::Other,
            12 if is("X-Wecom-Hint") => Self::WecomHint,
            13 if is("X-Wecom-Agent") => Self::WecomAgent,
            13 if is("X-Wecom-Debug") => Self::WecomDebug,
            15 if is("X-Wecom-Retried") => Self::WecomRetried,
            _ => Self::WecomOther,
        }
    }

    fn mask(self) -> u32 {
        1 << self as u32
    }

    /// Whether it belongs to one connection, or says how a message is framed on it, in either direction.
    fn is_hop_by_hop(self) -> bool {
        matches!(self, Self::Connection | Self::TransferEncoding | Self::HopByHop)
    }

    /// Whether an answer's line is one that the proxy writes itself.
    fn is_set_by_proxy(self) -> bool {
        matches!(
            self,
            Self::ContentLength | Self::RequestId | Self::WecomAgent | Self::WecomRetried | Self::WecomHint
        )
    }

    /// Whether a request's line stays here beside those: the client's credentials, what is said to this proxy, what the
    /// client's network tells of itself, and what is written anew or answered here.
    fn is_stripped_from_request(self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::ContentLength
                | Self::Expect
                | Self::Authorization
                | Self::ApiKey
                | Self::ClientInfo
                | Self::Traceparent
                | Self::WecomAgent
                | Self::WecomDebug
                | Self::WecomRetried
                | Self::WecomHint
                | Self::WecomOther
        )
    }
}

/// Whether a name is this one, whatever its case. Most programs write it the usual way, which is quicker to see.
#[inline]
fn name_matches(name: &[u8], usual: &str) -> bool {
    name == usual.as_bytes() || name.eq_ignore_ascii_case(usual.as_bytes())
}

/// Whether a name that came over HTTP/2 holds a quotation mark: the http crate takes it for a letter, and no name may hold
/// one (RFC 9110 §5.6.2).
pub fn has_quotation_mark(name: &HeaderName) -> bool {
    memchr::memchr(b'"', name.as_str().as_bytes()).is_some()
}

/// One header line.
#[derive(Clone, Copy)]
pub struct Header<'a> {
    /// What its name means here.
    pub known: KnownHeader,
    /// Its name, as it was spelled.
    pub name: &'a [u8],
    /// Its value, without white space around it.
    pub value: &'a [u8],
}

impl Header<'_> {
    /// Writes it as a line.
    fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.name.len() + self.value.len() + 4);
        out.put_slice(self.name);
        out.put_slice(b": ");
        out.put_slice(self.value);
        out.put_slice(b"\r\n");
    }
}

/// All header lines of one message; clones share them. It has no `Debug`: some carry credentials.
#[derive(Clone, Default)]
pub struct Headers {
    lines: Rc<HeaderLines>,
    /// What `Content-Length` says here, where the lines are shared with other messages.
    content_length: Option<ContentLength>,
}

/// Lines, and the text in which they stand.
#[derive(Default)]
struct HeaderLines {
    text: Bytes,
    entries: Vec<HeaderLine>,
    /// A bit for each kind of name that occurs.
    known_mask: u32,
    /// What `Connection` says.
    close: bool,
    keep_alive: bool,
    /// It says more than anybody means.
    too_many_options: bool,
    /// Which credentials they show and repeat.
    credentials: HeaderCredentials,
    /// What was made of lines that come again and again.
    encoded: Option<Box<EncodedHeaders>>,
}

/// Where a line stands in the text.
#[derive(Clone, Copy)]
struct HeaderLine {
    known: KnownHeader,
    /// The message's `Connection` names it.
    hop_by_hop: bool,
    name: TextRange,
    value: TextRange,
}

#[derive(Clone, Copy)]
struct TextRange {
    start: u32,
    end: u32,
}

impl TextRange {
    /// Where `part` stands in a text that begins at `base`. Heads are bounded far below 4 GiB.
    fn of_part(part: &[u8], base: usize) -> Self {
        let start = (part.as_ptr() as usize - base) as u32;
        Self { start, end: start + part.len() as u32 }
    }

    fn slice(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }
}

/// Where in a message the header lines begin: behind its first line, before which there may be empty ones.
fn headers_start(message: &[u8]) -> Option<usize> {
    let begin = message.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    memchr::memchr(b'\n', &message[begin..]).map(|end| begin + end + 1)
}

/// Lines that were found in a head, before it is taken off its buffer.
pub struct ParsedHeaders {
    start: usize,
    lines: Vec<HeaderLine>,
}

impl ParsedHeaders {
    /// What httparse found in this head.
    pub fn new(head: &[u8], headers: &[httparse::Header<'_>]) -> Self {
        let start = headers_start(head).unwrap_or(head.len());
        let base = head[start..].as_ptr() as usize;
        let line = |header: &httparse::Header<'_>| HeaderLine {
            known: KnownHeader::from_name(header.name.as_bytes()),
            hop_by_hop: false,
            name: TextRange::of_part(header.name.as_bytes(), base),
            value: TextRange::of_part(header.value, base),
        };
        Self { start, lines: headers.iter().map(line).collect() }
    }

    /// Takes the head, which is so long, off its buffer; the lines together with their text. The text is a copy: the lines
    /// may last as long as a request waits, and must not keep the whole buffer.
    pub fn consume(self, buffer: &mut BytesMut, length: usize) -> Headers {
        let text = Bytes::copy_from_slice(&buffer[self.start..length]);
        buffer.advance(length);
        HeaderLines::new(text, self.lines).into()
    }

    /// The same for a head in which there may be credentials: the lines get a text of their own, which is wiped when they
    /// go, and what was read is wiped at once.
    pub fn consume_and_wipe(self, buffer: &mut BytesMut, length: usize) -> Headers {
        let text = wipe_on_drop(buffer[self.start..length].to_vec());
        wipe(&mut buffer[..length]);
        buffer.advance(length);
        HeaderLines::new(text, self.lines).into()
    }
}

impl Headers {
    /// Lines of the proxy's own.
    pub fn from_pairs(lines: &[(&str, &str)]) -> Self {
        let length = lines.iter().map(|(name, value)| name.len() + value.len()).sum();
        Self::copy_from(length, lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    /// The lines of a message that came over HTTP/2.
    pub fn from_map(map: &HeaderMap) -> Self {
        let length = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        Self::copy_from(
            length,
            map.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes().trim_ascii())),
        )
    }

    /// Lines with a text of their own, which is so long at most.
    fn copy_from<'a>(length: usize, lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        // Of its whole length at once: memory that it outgrows would not be wiped.
        let mut text = Vec::with_capacity(length);
        let mut span = |part: &[u8]| {
            let start = text.len() as u32;
            text.put_slice(part);
            TextRange { start, end: text.len() as u32 }
        };
        let lines = lines.map(|(name, value)| HeaderLine {
            known: KnownHeader::from_name(name),
            hop_by_hop: false,
            name: span(name),
            value: span(value),
        });
        let lines = lines.collect();
        HeaderLines::new(wipe_on_drop(text), lines).into()
    }

    /// How long the text is in which they stand.
    pub fn text_bytes(&self) -> usize {
        self.lines.text.len()
    }

    /// Every line.
    pub fn iter(&self) -> impl Iterator<Item = Header<'_>> {
        self.lines.entries.iter().map(|line| self.header(line))
    }

    /// What the one `Content-Length` says, where that is known without reading the line.
    pub fn cached_content_length(&self) -> Option<u64> {
        self.content_length.as_ref().and_then(ContentLength::value)
    }

    fn header(&self, line: &HeaderLine) -> Header<'_> {
        Header { known: line.known, name: line.name.slice(&self.lines.text), value: self.value(line) }
    }

    fn value(&self, line: &HeaderLine) -> &[u8] {
        match &self.content_length {
            Some(length) if line.known == KnownHeader::ContentLength => length.as_bytes(),
            _ => line.value.slice(&self.lines.text),
        }
    }

    /// The values of every line with this name.
    pub fn values(&self, known: KnownHeader) -> impl Iterator<Item = &[u8]> {
        // Most of what is asked for is not there.
        let each = if self.lines.known_mask & known.mask() == 0 { &[][..] } else { &self.lines.entries };
        each.iter().filter(move |line| line.known == known).map(|line| self.value(line))
    }

    /// The first value with this name.
    pub fn first(&self, known: KnownHeader) -> Option<&[u8]> {
        self.values(known).next()
    }

    /// Whether there is a line with this name.
    pub fn contains(&self, known: KnownHeader) -> bool {
        self.first(known).is_some()
    }

    /// Whether `Connection` says `close`.
    pub fn has_connection_close(&self) -> bool {
        self.lines.close
    }

    /// Whether `Connection` says `keep-alive`.
    pub fn has_connection_keep_alive(&self) -> bool {
        self.lines.keep_alive
    }

    /// Whether `Connection` names so many headers that not all of them were looked for: such a message is not to be passed
    /// on.
    pub fn has_too_many_connection_options(&self) -> bool {
        self.lines.too_many_options
    }

    /// The lines that do not belong to one connection.
    pub fn end_to_end(&self) -> impl Iterator<Item = Header<'_>> {
        self.lines.entries.iter().filter(|line| line.is_end_to_end()).map(|line| self.header(line))
    }

    /// Of a request: the lines that go on to the upstream. One that repeats a pass, or a key that the request shows, does
    /// not.
    pub fn forwarded_to_upstream(&self) -> impl Iterator<Item = Header<'_>> {
        let withheld = self.lines.withheld_lines();
        let each = self.lines.entries.iter().enumerate();
        let going = each.filter(|(nth, line)| line.is_forwarded_to_upstream() && !withheld.contains(nth));
        going.map(|(_, line)| self.header(line))
    }

    /// Writes those lines.
    pub fn encode_for_upstream(&self, out: &mut BytesMut) {
        match &self.lines.encoded {
            Some(ready) => out.put_slice(ready.for_upstream()),
            None => self.forwarded_to_upstream().for_each(|field| field.encode(out)),
        }
    }

    /// Of an answer: the lines that go on to the caller. Its length is not among them: how the body is framed is decided
    /// anew, whatever the upstream nominates.
    pub fn forwarded_to_client(&self) -> impl Iterator<Item = Header<'_>> {
        let leaves = |line: &&HeaderLine| line.is_end_to_end() && !line.known.is_set_by_proxy();
        self.lines.entries.iter().filter(leaves).map(|line| self.header(line))
    }

    /// The same ready for the wire, if they are at hand and none of their values is as long as `too_long`.
    pub fn encoded_for_client(&self, too_long: usize) -> Option<&[u8]> {
        self.lines.encoded.as_ref()?.for_client(too_long)
    }

    /// What tells lines that came before from all others, for as long as a clone of them is held.
    pub fn cache_id(&self) -> Option<usize> {
        self.lines.encoded.as_ref().map(|_| Rc::as_ptr(&self.lines) as usize)
    }
}

impl From<HeaderLines> for Headers {
    fn from(lines: HeaderLines) -> Self {
        Self { lines: Rc::new(lines), content_length: None }
    }
}

impl HeaderLine {
    fn is_end_to_end(&self) -> bool {
        !(self.hop_by_hop || self.known.is_hop_by_hop())
    }

    /// Whether a request's line goes on to the upstream by its name.
    fn is_forwarded_to_upstream(&self) -> bool {
        self.is_end_to_end() && !self.known.is_stripped_from_request()
    }
}

impl HeaderLines {
    fn new(text: Bytes, each: Vec<HeaderLine>) -> Self {
        let kinds = each.iter().fold(0, |kinds, line| kinds | line.known.mask());
        let mut lines = Self { text, entries: each, known_mask: kinds, ..Self::default() };
        lines.apply_connection_options();
        lines
    }

    /// Takes in what `Connection` says, and marks the lines that it names.
    fn apply_connection_options(&mut self) {
        let Self { text, entries: each, close, keep_alive, too_many_options: rambles, .. } = self;
        let mut options_seen = 0;
        for nth in 0..each.len() {
            if each[nth].known != KnownHeader::Connection {
                continue;
            }
            for option in connection_options(each[nth].value.slice(text)) {
                options_seen += 1;
                if options_seen > MAX_CONNECTION_OPTIONS {
                    *rambles = true;
                    return;
                }
                if option.eq_ignore_ascii_case(b"close") {
                    *close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    *keep_alive = true;
                } else {
                    for line in each.iter_mut() {
                        line.hop_by_hop |= line.name.slice(text).eq_ignore_ascii_case(option);
                    }
                }
            }
        }
    }
}

/// The options of a `Connection` line.
fn connection_options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

/// Header lines ready for the wire: `name: value`, each with its line end.
pub struct HeaderBlock(BytesMut);

impl Default for HeaderBlock {
    fn default() -> Self {
        Self(buffer_pool::acquire())
    }
}

impl Drop for HeaderBlock {
    fn drop(&mut self) {
        buffer_pool::release(std::mem::take(&mut self.0));
    }
}

impl HeaderBlock {
    /// Adds a line. Neither part may hold a line end: what came from outside was parsed as a line, what is our own is
    /// written by us.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        Header { known: KnownHeader::Other, name, value }.encode(&mut self.0);
    }

    /// Room to write lines into, each with its line end.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.0
    }

    /// The lines as they go over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same lines for a message that leaves over HTTP/2. A line that cannot be one there is left out.
    pub fn to_header_map(&self) -> HeaderMap {
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

    fn names<'a>(fields: impl Iterator<Item = Header<'a>>) -> Vec<String> {
        fields.map(|field| String::from_utf8_lossy(field.name).into_owned()).collect()
    }

    #[test]
    fn request_headers_for_proxy_only_are_not_forwarded() {
        let fields = Headers::from_pairs(&[
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
        assert_eq!(
            names(fields.forwarded_to_upstream()),
            ["User-Agent", "X-Wecom", "X-Request-Id", "Accept"]
        );
        assert!(fields.has_connection_close() && fields.has_connection_keep_alive());
        assert_eq!(fields.first(KnownHeader::WecomAgent), Some(&b"hr"[..]));
    }

    #[test]
    fn response_hop_by_hop_headers_are_not_forwarded() {
        let fields = Headers::from_pairs(&[
            ("Content-Type", "text/plain"),
            ("Content-Length", "3"),
            ("Connection", "content-length, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Set-Cookie", "a"),
            ("Set-Cookie", "b"),
        ]);
        assert_eq!(names(fields.forwarded_to_client()), ["Content-Type", "Set-Cookie", "Set-Cookie"]);
    }

    #[test]
    fn header_block_is_equal_over_http1_and_http2() {
        let mut block = HeaderBlock::default();
        block.append(b"X-One", b"a: b");
        block.append(b"x-empty", b"");
        assert_eq!(block.as_bytes(), b"X-One: a: b\r\nx-empty: \r\n");
        let map = block.to_header_map();
        assert_eq!((map["x-one"].as_bytes(), map["x-empty"].as_bytes()), (&b"a: b"[..], &b""[..]));
    }
}
