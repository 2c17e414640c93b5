//! Header lines that came before. Most programs send the same lines with each request on a connection, and a server with
//! each answer: what was made of them once serves again, and all that is left to do is to compare them. Only the number in
//! `Content-Length` may differ.

use std::{
    cell::RefCell,
    hash::{BuildHasher, Hasher},
    rc::Rc,
};

use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;

use super::{
    Header, HeaderLine, HeaderLines, Headers, KnownHeader, TextRange, credentials::HeaderCredentials,
    headers_start,
};
use crate::secret::wipe_on_drop;

/// Longest text that is remembered.
const MAX_CACHED_BYTES: usize = 1024;
/// How many are remembered on each thread, for connections that have not met them yet.
const CACHE_SLOTS: usize = 256;
/// Most digits of a length.
const MAX_LENGTH_DIGITS: usize = 20;

/// The lines that one connection, or the one before it at the same table, brought last, of two kinds: a client that reads and
/// writes in turn is not strange each time.
#[derive(Default)]
pub struct HeaderCache([Option<Rc<HeaderLines>>; 2]);

/// What was made of lines that came before.
pub(super) struct EncodedHeaders {
    /// The number in `Content-Length`.
    content_length: Option<TextRange>,
    /// What goes on to the upstream.
    for_upstream: Bytes,
    /// What goes on to the caller, and how long its longest value is.
    for_client: (Bytes, usize),
}

/// The number in `Content-Length`, as it is written.
#[derive(Clone, Copy)]
pub(super) struct ContentLength {
    value: Option<u64>,
    digits: [u8; MAX_LENGTH_DIGITS],
    digit_count: u8,
}

impl HeaderCache {
    /// The first line of a message, the lines behind it if they came before on this connection, and how long the head is.
    pub fn lookup_head<'a>(&mut self, message: &'a [u8]) -> Option<(&'a [u8], Headers, usize)> {
        let (first, rest) = message.split_at(headers_start(message)?);
        let (fields, end) = self.lookup(rest)?;
        Some((first, fields, first.len() + end))
    }

    /// The lines at the beginning of `text`, if they came before on this connection, and how many bytes they are with the
    /// empty line behind them.
    fn lookup(&mut self, text: &[u8]) -> Option<(Headers, usize)> {
        let mut known = self.0.iter().flatten().enumerate();
        let (nth, lines, (end, length)) = known
            .find_map(|(nth, lines)| lines.match_prefix(text).map(|begin| (nth, lines.clone(), begin)))?;
        self.0.swap(0, nth);
        Some((Headers { lines, content_length: length }, end))
    }

    /// Takes note of lines that had to be read. Those that came before, if only on another connection, are recognised from now
    /// on, and come back as they are remembered.
    pub fn insert(&mut self, fields: Headers) -> Headers {
        thread_local! {
            static THREAD_CACHE: RefCell<ThreadHeaderCache> = RefCell::default();
        }
        let Some(lines) = THREAD_CACHE.with_borrow_mut(|seen| seen.insert(&fields.lines)) else {
            return fields;
        };
        self.0.rotate_right(1);
        self.0[0] = Some(lines.clone());
        let length = fields.first(KnownHeader::ContentLength).and_then(ContentLength::parse);
        Headers { lines, content_length: length }
    }
}

/// What one thread has seen.
struct ThreadHeaderCache {
    hasher: RandomState,
    slots: Vec<CacheSlot>,
}

#[derive(Clone, Default)]
struct CacheSlot {
    /// The hash of lines that came once.
    seen_once: u64,
    /// Lines that came again, and their hash.
    cached: Option<(u64, Rc<HeaderLines>)>,
}

impl Default for ThreadHeaderCache {
    fn default() -> Self {
        Self { hasher: RandomState::default(), slots: vec![CacheSlot::default(); CACHE_SLOTS] }
    }
}

impl ThreadHeaderCache {
    /// The lines as they are remembered, if they came before.
    fn insert(&mut self, lines: &HeaderLines) -> Option<Rc<HeaderLines>> {
        if !lines.is_cacheable() {
            return None;
        }
        let parts = lines.split_around(lines.content_length_range());
        let mut hasher = self.hasher.build_hasher();
        parts.iter().for_each(|part| hasher.write(part));
        let hash = hasher.finish();
        let slot = &mut self.slots[hash as usize % CACHE_SLOTS];
        // A text is compared only with one of the same hash: how long that takes tells nobody how a secret in it begins.
        if let Some((known, again)) = &slot.cached
            && *known == hash
            && again.split_around(again.content_length_range()) == parts
        {
            return Some(again.clone());
        }
        if slot.seen_once != hash {
            slot.seen_once = hash;
            return None;
        }
        let again = Rc::new(lines.to_cached());
        slot.cached = Some((hash, again.clone()));
        Some(again)
    }
}

impl HeaderLines {
    /// Whether they are worth remembering.
    fn is_cacheable(&self) -> bool {
        let is_rare =
            |line: &HeaderLine| matches!(line.known, KnownHeader::RequestId | KnownHeader::Traceparent);
        let lengths = self.entries.iter().filter(|line| line.known == KnownHeader::ContentLength);
        self.text.len() <= MAX_CACHED_BYTES && !self.entries.iter().any(is_rare) && lengths.count() <= 1
    }

    /// Where the number stands in `Content-Length`, if it is one.
    fn content_length_range(&self) -> Option<TextRange> {
        if let Some(ready) = &self.encoded {
            return ready.content_length;
        }
        let line = self.entries.iter().find(|line| line.known == KnownHeader::ContentLength)?;
        ContentLength::parse(line.value.slice(&self.text)).map(|_| line.value)
    }

    /// The text before and behind that number.
    fn split_around(&self, length: Option<TextRange>) -> [&[u8]; 2] {
        match length {
            Some(length) => [&self.text[..length.start as usize], &self.text[length.end as usize..]],
            None => [&self.text, &[]],
        }
    }

    /// Whether `text` begins with these lines: where they end, and the number that it has in `Content-Length`.
    fn match_prefix(&self, text: &[u8]) -> Option<(usize, Option<ContentLength>)> {
        let length = self.content_length_range();
        let [before, behind] = self.split_around(length);
        let mut rest = strip_prefix_constant_time(text, before)?;
        let digits = match length {
            Some(_) => {
                let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let digits = ContentLength::parse(&rest[..count])?;
                rest = &rest[count..];
                Some(digits)
            }
            None => None,
        };
        let rest = strip_prefix_constant_time(rest, behind)?;
        Some((text.len() - rest.len(), digits))
    }

    /// Most bytes that they take on the wire: a space may be missing behind each colon.
    fn max_encoded_bytes(&self) -> usize {
        self.text.len() + self.entries.len()
    }

    /// The same with a text of their own, and laid out for either direction.
    fn to_cached(&self) -> Self {
        let lines = Self::new(wipe_on_drop(self.text.to_vec()), self.entries.clone());
        let length = lines.content_length_range();
        let fields = Headers::from(lines);
        let longest = fields.forwarded_to_client().map(|field| field.value.len()).max().unwrap_or_default();
        let ready = EncodedHeaders {
            content_length: length,
            for_upstream: encode_headers(fields.forwarded_to_upstream(), self.max_encoded_bytes()),
            for_client: (encode_headers(fields.forwarded_to_client(), self.max_encoded_bytes()), longest),
        };
        let HeaderLines {
            text,
            entries: each,
            known_mask: kinds,
            close,
            keep_alive,
            too_many_options: rambles,
            credentials: _,
            encoded: _,
        } = &*fields.lines;
        Self {
            text: text.clone(),
            entries: each.clone(),
            known_mask: *kinds,
            close: *close,
            keep_alive: *keep_alive,
            too_many_options: *rambles,
            credentials: HeaderCredentials::default(),
            encoded: Some(Box::new(ready)),
        }
    }
}

/// What comes behind `known`, if `text` begins with it.
fn strip_prefix_constant_time<'a>(text: &'a [u8], known: &[u8]) -> Option<&'a [u8]> {
    let (begin, rest) = text.split_at_checked(known.len())?;
    constant_time_eq(begin, known).then_some(rest)
}

/// Whether a text that came is one that came before. A proxy before this one may send several clients' requests on one
/// connection: how long it takes is to tell none of them how another's key begins.
pub fn constant_time_eq(text: &[u8], known: &[u8]) -> bool {
    if text.len() != known.len() {
        return false;
    }
    // Without an early exit, so that it always takes the same time for the same length. The last chunk overlaps the one
    // before it: a remainder taken byte by byte would cost more than all before it.
    if let (Some(one), Some(other)) = (text.last_chunk::<WIDE>(), known.last_chunk()) {
        let chunks = text.as_chunks().0.iter().zip(known.as_chunks().0);
        return chunks.fold(unlike([0; WIDE], one, other), |so_far, (one, other)| unlike(so_far, one, other))
            == [0; WIDE];
    }
    if let (Some((one, other)), Some((last, other_last))) =
        (text.first_chunk::<HALF>().zip(known.first_chunk()), text.last_chunk().zip(known.last_chunk()))
    {
        return unlike(unlike([0; HALF], one, other), last, other_last) == [0; HALF];
    }
    text.iter().zip(known).fold(0, |so_far, (one, other)| so_far | (one ^ other)) == 0
}

/// Bytes compared at once: two registers of SSE2.
const WIDE: usize = 32;
const HALF: usize = WIDE / 2;

/// A bit for each in which the two differ, beside those that are set already.
#[inline]
fn unlike<const N: usize>(mut so_far: [u8; N], one: &[u8; N], other: &[u8; N]) -> [u8; N] {
    for nth in 0..N {
        so_far[nth] |= one[nth] ^ other[nth];
    }
    so_far
}

impl EncodedHeaders {
    pub(super) fn for_upstream(&self) -> &[u8] {
        &self.for_upstream
    }

    /// What goes on to the caller, if none of its values is as long as that.
    pub(super) fn for_client(&self, too_long: usize) -> Option<&[u8]> {
        let (lines, longest) = &self.for_client;
        (*longest < too_long).then_some(lines)
    }
}

/// Lines as they go over the wire, which take at most so many bytes.
fn encode_headers<'a>(fields: impl Iterator<Item = Header<'a>>, length: usize) -> Bytes {
    // Of the whole length at once: memory that it outgrows would not be wiped.
    let mut lines = BytesMut::with_capacity(length);
    fields.for_each(|field| field.encode(&mut lines));
    wipe_on_drop(lines.into())
}

impl ContentLength {
    fn parse(text: &[u8]) -> Option<Self> {
        let count =
            u8::try_from(text.len()).ok().filter(|count| (1..=MAX_LENGTH_DIGITS as u8).contains(count))?;
        let number = text.iter().try_fold(Some(0u64), |sum, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            Some(sum.and_then(|sum| sum.checked_mul(10)?.checked_add(digit)))
        })?;
        let mut digits = Self { value: number, digits: [0; MAX_LENGTH_DIGITS], digit_count: count };
        digits.digits[..text.len()].copy_from_slice(text);
        Some(digits)
    }

    /// What they say, if it is no larger than a number can be.
    pub(super) fn value(&self) -> Option<u64> {
        self.value
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.digits[..usize::from(self.digit_count)]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::ParsedHeaders, *};

    /// A name that no other test uses: what one of them has seen another must not know.
    fn header_text(name: &str, more: &str) -> String {
        format!("Host: x\r\nX-Test: {name}\r\n{more}Accept: */*\r\n\r\n")
    }

    fn parse_headers(text: &str) -> Headers {
        let mut buffer = BytesMut::from(&*format!("GET / HTTP/1.1\r\n{text}"));
        let message = buffer.clone();
        let mut room = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut room);
        let length = request.parse(&message).expect("a head").unwrap();
        ParsedHeaders::new(&message[..length], request.headers).consume(&mut buffer, length)
    }

    fn pairs(fields: &Headers) -> Vec<(Vec<u8>, Vec<u8>)> {
        fields.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect()
    }

    #[test]
    fn headers_seen_twice_on_any_connection_are_cached() {
        let text = header_text("twice", "");
        let mut first = HeaderCache::default();
        let fields = first.insert(parse_headers(&text));
        assert!(fields.cache_id().is_none() && first.lookup(text.as_bytes()).is_none(), "once is not often");
        let mut other = HeaderCache::default();
        let fields = other.insert(parse_headers(&text));
        assert!(fields.cache_id().is_some(), "the second time they come as they are remembered");
        let more = text.clone() + "GET /";
        let (again, end) = other.lookup(more.as_bytes()).expect("they came before");
        assert_eq!((again.cache_id(), end), (fields.cache_id(), text.len()));
        assert_eq!(pairs(&again), pairs(&parse_headers(&text)));
        assert!(first.lookup(text.as_bytes()).is_none(), "each connection looks for itself");
    }

    #[test]
    fn lookup_differing_only_in_content_length_hits() {
        let mut familiar = HeaderCache::default();
        for length in ["12", "7"] {
            let fields = familiar
                .insert(parse_headers(&header_text("length", &format!("Content-Length: {length}\r\n"))));
            assert_eq!(fields.first(KnownHeader::ContentLength), Some(length.as_bytes()));
        }
        for length in ["0", "7", "00000000000000000012", "99999999999999999999"] {
            let text = header_text("length", &format!("Content-Length: {length}\r\n"));
            let (fields, end) = familiar.lookup(text.as_bytes()).expect("only the length differs");
            assert_eq!(end, text.len());
            assert_eq!(pairs(&fields), pairs(&parse_headers(&text)));
        }
        for strange in ["", "-1", "+7", "7 ", " 7", "7,7", "0x7", "7\r\nA: b", "111111111111111111111"] {
            let text = header_text("length", &format!("Content-Length: {strange}\r\n"));
            assert!(familiar.lookup(text.as_bytes()).is_none(), "{strange:?}");
        }
        let text = header_text("length", "Content-Length: 7\r\n");
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = other[at].wrapping_add(1);
            let recognised = familiar.lookup(&other);
            assert_eq!(recognised.is_some(), text.as_bytes()[at] == b'7', "byte {at}");
            assert!(familiar.lookup(&text.as_bytes()[..at]).is_none(), "it is not whole");
        }
    }

    #[test]
    fn connection_cache_holds_two_entries() {
        let [reads, writes, third] = ["reads", "writes", "third"].map(|name| header_text(name, ""));
        let mut familiar = HeaderCache::default();
        for text in [&reads, &writes, &third] {
            (0..2).for_each(|_| drop(familiar.insert(parse_headers(text))));
        }
        for _ in 0..3 {
            for text in [&writes, &third] {
                assert!(familiar.lookup(text.as_bytes()).is_some());
            }
        }
        assert!(familiar.lookup(reads.as_bytes()).is_none());
    }

    #[test]
    fn headers_unique_per_request_are_not_cached() {
        let long = format!("X-Long: {}\r\n", "a".repeat(MAX_CACHED_BYTES));
        let twice = "Content-Length: 7\r\ncontent-length: 7\r\n";
        for more in ["X-Request-Id: 1\r\n", "traceparent: 00-1\r\n", twice, &long] {
            let text = header_text("rare", more);
            let mut familiar = HeaderCache::default();
            (0..3).for_each(|_| assert!(familiar.insert(parse_headers(&text)).cache_id().is_none()));
            assert!(familiar.lookup(text.as_bytes()).is_none(), "{more}");
        }
    }

    #[test]
    fn cached_encoding_equals_fresh_encoding() {
        let more = "Connection: close, X-Mine\r\nX-Mine: 1\r\nAuthorization: Bearer k\r\nCookie: a\r\nDate: now\r\n\
                    Content-Length: 5\r\nX-Request-Agent: hr\r\nX-Wecom-Retried: 1\r\n";
        let text = header_text("ready", more);
        let mut familiar = HeaderCache::default();
        let anew = familiar.insert(parse_headers(&text));
        let again = familiar.insert(parse_headers(&text));
        let to_upstream = |fields: &Headers| {
            let mut out = BytesMut::new();
            fields.encode_for_upstream(&mut out);
            out
        };
        assert_eq!(to_upstream(&again), to_upstream(&anew));
        assert_eq!(
            (again.has_connection_close(), again.has_connection_keep_alive()),
            (anew.has_connection_close(), anew.has_connection_keep_alive())
        );
        assert!(anew.encoded_for_client(usize::MAX).is_none());
        let ready = again.encoded_for_client(usize::MAX).expect("it is ready");
        assert_eq!(ready, encode_headers(anew.forwarded_to_client(), text.len()));
        // The longest value that goes on to the caller, of `Authorization`.
        assert!(again.encoded_for_client(8).is_none() && again.encoded_for_client(9).is_some());
    }

    #[test]
    fn texts_are_the_same_only_if_every_byte_is() {
        for length in 0..100 {
            let known = vec![b'a'; length];
            assert!(constant_time_eq(&known, &known), "{length}");
            assert!(!constant_time_eq(&[&known[..], b"a"].concat(), &known), "{length}");
            for at in 0..length {
                let mut other = known.clone();
                other[at] ^= 1 << (at % 8);
                assert!(!constant_time_eq(&other, &known), "{at} of {length}");
            }
        }
    }
}
