//! Headers of an HTTP message in their order and spelling; each name is classified once.
//!
//! Hop-by-hop headers, and those meant for this proxy, are never forwarded; this module determines which these are.

mod content_length;
mod credentials;
mod header_block;
mod header_cache;
mod header_kind;

use std::{any::Any, cell::RefCell, rc::Rc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderName;

use self::{content_length::ContentLength, credentials::HeaderCredentials, header_cache::EncodedHeaders};
pub use self::{header_block::HeaderBlock, header_cache::HeaderCache, header_kind::HeaderKind};
use crate::{
    http1::head::HeadSyntaxError,
    secret::{wipe, wipe_on_drop},
};

/// Maximum number of options in `Connection`. Each is compared with all headers: without a bound, one long line would
/// cost milliseconds.
const MAX_CONNECTION_OPTIONS: usize = 100;

/// Whether an HTTP/2 header name contains a quotation mark: the http crate accepts it, RFC 9110 §5.6.2 does not.
pub fn has_quotation_mark(name: &HeaderName) -> bool {
    memchr::memchr(b'"', name.as_str().as_bytes()).is_some()
}

/// One header.
#[derive(Clone, Copy)]
pub struct Header<'a> {
    /// Its classified name.
    pub kind: HeaderKind,
    /// Its name in its original spelling.
    pub name: &'a [u8],
    /// Its value without surrounding white space.
    pub value: &'a [u8],
}

impl Header<'_> {
    /// Encodes it as a line. Inlined, so that a constant name is copied as such.
    #[inline]
    fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.name.len() + self.value.len() + 4);
        out.put_slice(self.name);
        out.put_slice(b": ");
        out.put_slice(self.value);
        out.put_slice(b"\r\n");
    }
}

/// All headers of one message; clones share them. No `Debug`, because some contain credentials.
#[derive(Clone, Default)]
pub struct Headers {
    lines: Rc<HeaderLines>,
    /// Value of `Content-Length` in this message, if the lines are shared with other messages.
    content_length: Option<ContentLength>,
}

/// Parsed header lines and their text.
#[derive(Default)]
struct HeaderLines {
    text: Bytes,
    entries: Vec<HeaderLine>,
    /// A bit for each [`HeaderKind`] that occurs.
    kind_mask: u32,
    /// `Connection` contains `close`; `keep-alive` likewise.
    close: bool,
    keep_alive: bool,
    /// `Connection` lists more than [`MAX_CONNECTION_OPTIONS`] names; the message is rejected.
    too_many_options: bool,
    /// The credentials they present and repeat.
    credentials: HeaderCredentials,
    /// Pre-encoded lines; only in the header cache.
    encoded: Option<Box<EncodedHeaders>>,
    /// See [`Headers::attach`].
    attachment: RefCell<Option<Box<dyn Any>>>,
}

/// Position of a line in the text.
#[derive(Clone, Copy)]
struct HeaderLine {
    kind: HeaderKind,
    /// Listed in the message's `Connection`, and so hop-by-hop whatever its name.
    listed_in_connection: bool,
    name: TextRange,
    value: TextRange,
}

#[derive(Clone, Copy)]
struct TextRange {
    start: u32,
    end: u32,
}

impl TextRange {
    /// The range of `part` in a text that begins at address `base`. Heads are bounded far below 4 GiB.
    fn of_part(part: &[u8], base: usize) -> Self {
        let start = (part.as_ptr() as usize - base) as u32;
        Self { start, end: start + part.len() as u32 }
    }

    fn slice(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }
}

/// Where the headers of a message begin: after its first line, which empty lines may precede.
fn headers_start(message: &[u8]) -> Option<usize> {
    let begin = message.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    memchr::memchr(b'\n', &message[begin..]).map(|end| begin + end + 1)
}

/// Headers found in a head that is still in its buffer.
pub struct ParsedHeaders {
    start: usize,
    lines: Vec<HeaderLine>,
}

impl ParsedHeaders {
    /// Takes over what httparse found in this head.
    pub fn new(head: &[u8], headers: &[httparse::Header<'_>]) -> Self {
        let start = headers_start(head).unwrap_or(head.len());
        let base = head[start..].as_ptr() as usize;
        let line = |header: &httparse::Header<'_>| HeaderLine {
            kind: HeaderKind::from_name(header.name.as_bytes()),
            listed_in_connection: false,
            name: TextRange::of_part(header.name.as_bytes(), base),
            value: TextRange::of_part(header.value, base),
        };
        Self { start, lines: headers.iter().map(line).collect() }
    }

    /// Takes the head of `length` bytes off its buffer. The text is copied: headers may live as long as a request
    /// waits, and must not keep the whole buffer.
    pub fn consume(self, buffer: &mut BytesMut, length: usize) -> Result<Headers, HeadSyntaxError> {
        let text = Bytes::copy_from_slice(&buffer[self.start..length]);
        buffer.advance(length);
        HeaderLines::new(text, self.lines).accept()
    }

    /// The same for a head that may contain credentials: the copy is wiped when it is dropped, and the buffer at once.
    pub fn consume_and_wipe(self, buffer: &mut BytesMut, length: usize) -> Result<Headers, HeadSyntaxError> {
        let text = wipe_on_drop(buffer[self.start..length].to_vec());
        wipe(&mut buffer[..length]);
        buffer.advance(length);
        HeaderLines::new(text, self.lines).accept()
    }
}

impl Headers {
    /// Headers from the proxy itself.
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Self {
        // Allocated at full length: memory that it outgrew would not be wiped.
        let mut text = Vec::with_capacity(pairs.iter().map(|(name, value)| name.len() + value.len()).sum());
        let mut append = |part: &str| {
            let start = text.len() as u32;
            text.put_slice(part.as_bytes());
            TextRange { start, end: text.len() as u32 }
        };
        let lines = pairs.iter().map(|(name, value)| HeaderLine {
            kind: HeaderKind::from_name(name.as_bytes()),
            listed_in_connection: false,
            name: append(name),
            value: append(value),
        });
        let lines = lines.collect();
        HeaderLines::new(wipe_on_drop(text), lines).into()
    }

    /// Memory of the text and of the list of lines, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.lines.text.len() + self.lines.entries.capacity() * size_of::<HeaderLine>()
    }

    /// Every header.
    pub fn iter(&self) -> impl Iterator<Item = Header<'_>> {
        self.lines.entries.iter().map(|line| self.header(line))
    }

    /// The value of the only `Content-Length`, if it is known without parsing.
    pub fn cached_content_length(&self) -> Option<u64> {
        self.content_length.as_ref().and_then(ContentLength::value)
    }

    fn header(&self, line: &HeaderLine) -> Header<'_> {
        Header { kind: line.kind, name: line.name.slice(&self.lines.text), value: self.value(line) }
    }

    fn value(&self, line: &HeaderLine) -> &[u8] {
        match &self.content_length {
            Some(length) if line.kind == HeaderKind::ContentLength => length.as_bytes(),
            _ => line.value.slice(&self.lines.text),
        }
    }

    /// The values of every header with this name.
    pub fn values(&self, kind: HeaderKind) -> impl Iterator<Item = &[u8]> {
        // Most headers that are looked up do not exist.
        let entries = if self.lines.kind_mask & kind.mask() == 0 { &[][..] } else { &self.lines.entries };
        entries.iter().filter(move |line| line.kind == kind).map(|line| self.value(line))
    }

    /// The first value with this name.
    pub fn first(&self, kind: HeaderKind) -> Option<&[u8]> {
        self.values(kind).next()
    }

    /// Whether there is a header with this name.
    pub fn contains(&self, kind: HeaderKind) -> bool {
        self.first(kind).is_some()
    }

    /// Whether `Connection` contains `close`.
    pub fn has_connection_close(&self) -> bool {
        self.lines.close
    }

    /// Whether `Connection` contains `keep-alive`.
    pub fn has_connection_keep_alive(&self) -> bool {
        self.lines.keep_alive
    }

    /// The headers that are not hop-by-hop.
    pub fn end_to_end(&self) -> impl Iterator<Item = Header<'_>> {
        self.lines.entries.iter().filter(|line| line.is_end_to_end()).map(|line| self.header(line))
    }

    /// Of a request: the headers that are forwarded to the upstream. One that repeats a pass, or a key that the request
    /// presents, is withheld.
    pub fn forwarded_to_upstream(&self) -> impl Iterator<Item = Header<'_>> {
        let withheld = self.lines.withheld_lines();
        let entries = self.lines.entries.iter().enumerate();
        let forwarded =
            entries.filter(|(nth, line)| line.is_forwarded_to_upstream() && !withheld.contains(nth));
        forwarded.map(|(_, line)| self.header(line))
    }

    /// Encodes the headers of [`Headers::forwarded_to_upstream`].
    pub fn encode_for_upstream(&self, out: &mut BytesMut) {
        match &self.lines.encoded {
            Some(encoded) => out.put_slice(encoded.for_upstream()),
            None => self.forwarded_to_upstream().for_each(|header| header.encode(out)),
        }
    }

    /// Of a response: the headers that are forwarded to the client. `Content-Length` is not among them, whatever the
    /// upstream lists in `Connection`: the proxy frames the body itself.
    pub fn forwarded_to_client(&self) -> impl Iterator<Item = Header<'_>> {
        let is_forwarded = |line: &&HeaderLine| line.is_end_to_end() && !line.kind.is_set_by_proxy();
        self.lines.entries.iter().filter(is_forwarded).map(|line| self.header(line))
    }

    /// The encoded headers of [`Headers::forwarded_to_client`], if they are cached and every value is shorter than
    /// `token_bytes`, the length of the token: a longer one may contain the token and must be searched.
    pub fn encoded_for_client(&self, token_bytes: usize) -> Option<&[u8]> {
        self.lines.encoded.as_ref()?.for_client(token_bytes)
    }

    /// Whether later messages may have the same lines.
    pub fn is_cached(&self) -> bool {
        self.lines.encoded.is_some()
    }

    /// Attaches to cached headers what was found out about them, in place of what was attached before.
    pub fn attach<T: 'static>(&self, value: T) {
        if self.is_cached() {
            *self.lines.attachment.borrow_mut() = Some(Box::new(value));
        }
    }

    /// What `read` returns for what is attached, if that is a `T`.
    #[inline]
    pub fn with_attachment<T: 'static, R>(&self, read: impl FnOnce(&T) -> R) -> Option<R> {
        self.lines.attachment.borrow().as_ref()?.downcast_ref().map(read)
    }
}

impl From<HeaderLines> for Headers {
    fn from(lines: HeaderLines) -> Self {
        Self { lines: Rc::new(lines), content_length: None }
    }
}

impl HeaderLine {
    fn is_end_to_end(&self) -> bool {
        !(self.listed_in_connection || self.kind.is_hop_by_hop())
    }

    /// Whether the name allows that a request's header is forwarded to the upstream.
    fn is_forwarded_to_upstream(&self) -> bool {
        self.is_end_to_end() && !self.kind.is_stripped_from_request()
    }
}

impl HeaderLines {
    fn new(text: Bytes, entries: Vec<HeaderLine>) -> Self {
        let kind_mask = entries.iter().fold(0, |kind_mask, line| kind_mask | line.kind.mask());
        let mut lines = Self { text, entries, kind_mask, ..Self::default() };
        lines.apply_connection_options();
        lines
    }

    /// Refuses a list in `Connection` of which not all was applied: such a message must not be forwarded.
    fn accept(self) -> Result<Headers, HeadSyntaxError> {
        if self.too_many_options { Err(HeadSyntaxError::TooManyConnectionOptions) } else { Ok(self.into()) }
    }

    /// Applies the options of `Connection`, and marks the headers that it lists.
    fn apply_connection_options(&mut self) {
        let Self { text, entries, close, keep_alive, too_many_options, .. } = self;
        let mut options_seen = 0;
        for nth in 0..entries.len() {
            if entries[nth].kind != HeaderKind::Connection {
                continue;
            }
            for option in connection_options(entries[nth].value.slice(text)) {
                options_seen += 1;
                if options_seen > MAX_CONNECTION_OPTIONS {
                    *too_many_options = true;
                    return;
                }
                if option.eq_ignore_ascii_case(b"close") {
                    *close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    *keep_alive = true;
                } else {
                    for line in entries.iter_mut() {
                        line.listed_in_connection |= line.name.slice(text).eq_ignore_ascii_case(option);
                    }
                }
            }
        }
    }
}

/// The options of a `Connection` header.
fn connection_options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests;
