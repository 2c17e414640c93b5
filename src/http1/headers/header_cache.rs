//! Cache of header blocks. Most programs send the same headers with each request on a connection, and a server with
//! each response: a block that a thread has seen twice is only compared, and its parsed and encoded form is reused.
//! Only the number in `Content-Length` may differ.

use std::{
    cell::RefCell,
    hash::{BuildHasher, Hasher},
    rc::Rc,
};

use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;
use http::HeaderMap;

use super::{
    Header, HeaderKind, HeaderLine, HeaderLines, Headers, TextRange, content_length::ContentLength,
    credentials::HeaderCredentials, headers_start,
};
use crate::{
    http1::head::MAX_HEAD_BYTES,
    secret::{constant_time::constant_time_eq, vec_to_wipe, wipe, wipe_on_drop},
};

/// Longest header block that is cached.
const MAX_CACHED_BYTES: usize = 1024;
/// Slots of the per-thread cache, which serves connections that have not seen the block yet.
const CACHE_SLOTS: usize = 256;

/// The last two header blocks of one connection, or of the one before it on the same task: two, because a client may
/// alternate between reads and writes.
#[derive(Default)]
pub struct HeaderCache {
    cached: [Option<Rc<HeaderLines>>; 2],
    /// Hashes of blocks that it saw once. Those of the thread are too few for very many connections at a time.
    seen_once: [u64; 2],
}

/// Encoded forms of a cached header block.
pub(super) struct EncodedHeaders {
    /// Range of the number in `Content-Length`.
    content_length: Option<TextRange>,
    /// Headers that are forwarded to the upstream.
    for_upstream: Bytes,
    /// Headers that are forwarded to the client.
    for_client: Bytes,
    /// Length of the longest value in `for_client`.
    max_client_value_bytes: usize,
}

impl HeaderCache {
    /// Returns the first line of a message, the headers after it if they are cached, and the length of the head. `None`
    /// also for a head of more than [`MAX_HEAD_BYTES`].
    pub fn lookup_head<'a>(&mut self, message: &'a [u8]) -> Option<(&'a [u8], Headers, usize)> {
        let (first, rest) = message.split_at(headers_start(message)?);
        let (headers, end) = self.lookup(rest)?;
        let length = first.len() + end;
        (length <= MAX_HEAD_BYTES).then_some((first, headers, length))
    }

    /// Looks up the header block at the beginning of `text`. Returns also its length with the empty line.
    fn lookup(&mut self, text: &[u8]) -> Option<(Headers, usize)> {
        let mut cached = self.cached.iter().flatten().enumerate();
        let (nth, lines, (end, content_length)) = cached.find_map(|(nth, lines)| {
            lines.match_prefix(text).map(|position| (nth, lines.clone(), position))
        })?;
        self.cached.swap(0, nth);
        Some((Headers { lines, content_length }, end))
    }

    /// Returns the headers of a message that was received over HTTP/2, from the cache if they are in it. Their text is
    /// that of an HTTP/1 message, with the empty line, so that no other message can be taken for it.
    pub fn get_or_insert_map(&mut self, map: &HeaderMap) -> Headers {
        let length = map.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>() + 2;
        // Allocated at full length: memory that it outgrew would not be wiped.
        let mut text = vec_to_wipe(length);
        for (name, value) in map {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes().trim_ascii());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        if let Some((headers, end)) = self.lookup(&text)
            && end == text.len()
        {
            wipe(&mut text);
            return headers;
        }
        let mut line_start = 0;
        let lines = map.iter().map(|(name, value)| {
            let (name, value) = (name.as_str().as_bytes(), value.as_bytes().trim_ascii());
            let name_end = line_start + name.len() as u32;
            let value_range = TextRange { start: name_end + 2, end: name_end + 2 + value.len() as u32 };
            let name_range = TextRange { start: line_start, end: name_end };
            line_start = value_range.end + 2;
            HeaderLine {
                kind: HeaderKind::from_name(name),
                listed_in_connection: false,
                name: name_range,
                value: value_range,
            }
        });
        let lines = lines.collect();
        self.insert(HeaderLines::new(wipe_on_drop(text), lines).into())
    }

    /// Inserts parsed headers. Headers that this thread has seen before, on any connection, are returned in their
    /// cached form, and hit from now on.
    pub fn insert(&mut self, headers: Headers) -> Headers {
        thread_local! {
            static THREAD_CACHE: RefCell<ThreadHeaderCache> = RefCell::default();
        }
        let seen_once = &mut self.seen_once;
        let Some(lines) = THREAD_CACHE.with_borrow_mut(|cache| cache.insert(&headers.lines, seen_once))
        else {
            return headers;
        };
        self.cached.rotate_right(1);
        self.cached[0] = Some(lines.clone());
        let content_length = headers.first(HeaderKind::ContentLength).and_then(ContentLength::parse);
        Headers { lines, content_length }
    }
}

/// The header cache of one thread.
struct ThreadHeaderCache {
    hasher: RandomState,
    slots: Vec<CacheSlot>,
}

#[derive(Clone, Default)]
struct CacheSlot {
    /// Hash of a block that was seen once.
    seen_once: u64,
    /// A block that was seen twice, with its hash.
    cached: Option<(u64, Rc<HeaderLines>)>,
}

impl Default for ThreadHeaderCache {
    fn default() -> Self {
        Self { hasher: RandomState::default(), slots: vec![CacheSlot::default(); CACHE_SLOTS] }
    }
}

impl ThreadHeaderCache {
    /// Returns the cached form of the block if it was seen before, by the thread or by the connection.
    fn insert(&mut self, lines: &HeaderLines, seen_by_connection: &mut [u64; 2]) -> Option<Rc<HeaderLines>> {
        if !lines.is_cacheable() {
            return None;
        }
        let parts = lines.split_around(lines.content_length_range());
        let mut hasher = self.hasher.build_hasher();
        parts.iter().for_each(|part| hasher.write(part));
        let hash = hasher.finish();
        let slot = &mut self.slots[hash as usize % CACHE_SLOTS];
        // Texts are compared only if their hashes are equal, so the time reveals nothing about the beginning of a
        // secret in them.
        if let Some((cached_hash, cached)) = &slot.cached
            && *cached_hash == hash
            && cached.split_around(cached.content_length_range()) == parts
        {
            return Some(cached.clone());
        }
        if slot.seen_once != hash && !seen_by_connection.contains(&hash) {
            slot.seen_once = hash;
            *seen_by_connection = [hash, seen_by_connection[0]];
            return None;
        }
        let cached = Rc::new(lines.to_cached());
        slot.cached = Some((hash, cached.clone()));
        Some(cached)
    }
}

impl HeaderLines {
    /// Whether the block is likely to be seen again.
    fn is_cacheable(&self) -> bool {
        let is_unique =
            |line: &HeaderLine| matches!(line.kind, HeaderKind::RequestId | HeaderKind::Traceparent);
        let lengths = self.entries.iter().filter(|line| line.kind == HeaderKind::ContentLength);
        self.text.len() <= MAX_CACHED_BYTES && !self.entries.iter().any(is_unique) && lengths.count() <= 1
    }

    /// Range of the number in `Content-Length`, if it is one.
    fn content_length_range(&self) -> Option<TextRange> {
        if let Some(encoded) = &self.encoded {
            return encoded.content_length;
        }
        let line = self.entries.iter().find(|line| line.kind == HeaderKind::ContentLength)?;
        ContentLength::parse(line.value.slice(&self.text)).map(|_| line.value)
    }

    /// The text before and after that number.
    fn split_around(&self, content_length: Option<TextRange>) -> [&[u8]; 2] {
        match content_length {
            Some(content_length) => {
                [&self.text[..content_length.start as usize], &self.text[content_length.end as usize..]]
            }
            None => [&self.text, &[]],
        }
    }

    /// Whether `text` begins with this block: its length, and the number that `text` has in `Content-Length`.
    fn match_prefix(&self, text: &[u8]) -> Option<(usize, Option<ContentLength>)> {
        let content_length = self.content_length_range();
        let [before, after] = self.split_around(content_length);
        let rest = strip_prefix_constant_time(text, before)?;
        if content_length.is_none() {
            return Some((before.len(), None));
        }
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let digits = ContentLength::parse(&rest[..count])?;
        let rest = strip_prefix_constant_time(&rest[count..], after)?;
        Some((text.len() - rest.len(), Some(digits)))
    }

    /// Maximum encoded size: the text may lack a space after each colon.
    fn max_encoded_bytes(&self) -> usize {
        self.text.len() + self.entries.len()
    }

    /// A copy with its own text, encoded for both directions.
    fn to_cached(&self) -> Self {
        let lines = Self::new(wipe_on_drop(self.text.to_vec()), self.entries.clone());
        let content_length = lines.content_length_range();
        let headers = Headers::from(lines);
        let max_client_value_bytes =
            headers.forwarded_to_client().map(|header| header.value.len()).max().unwrap_or_default();
        let encoded = EncodedHeaders {
            content_length,
            for_upstream: encode_headers(headers.forwarded_to_upstream(), self.max_encoded_bytes()),
            for_client: encode_headers(headers.forwarded_to_client(), self.max_encoded_bytes()),
            max_client_value_bytes,
        };
        let HeaderLines {
            text,
            entries,
            kind_mask,
            close,
            keep_alive,
            too_many_options,
            credentials: _,
            encoded: _,
            attachment: _,
        } = &*headers.lines;
        Self {
            text: text.clone(),
            entries: entries.clone(),
            kind_mask: *kind_mask,
            close: *close,
            keep_alive: *keep_alive,
            too_many_options: *too_many_options,
            credentials: HeaderCredentials::default(),
            encoded: Some(Box::new(encoded)),
            attachment: RefCell::default(),
        }
    }
}

/// The text after `cached`, if `text` begins with it.
fn strip_prefix_constant_time<'a>(text: &'a [u8], cached: &[u8]) -> Option<&'a [u8]> {
    let (prefix, rest) = text.split_at_checked(cached.len())?;
    constant_time_eq(prefix, cached).then_some(rest)
}

impl EncodedHeaders {
    pub(super) fn for_upstream(&self) -> &[u8] {
        &self.for_upstream
    }

    /// Headers that are forwarded to the client, if every value is shorter than the token.
    pub(super) fn for_client(&self, token_bytes: usize) -> Option<&[u8]> {
        (self.max_client_value_bytes < token_bytes).then_some(&self.for_client)
    }
}

/// Encodes headers into at most `max_bytes` bytes.
fn encode_headers<'a>(headers: impl Iterator<Item = Header<'a>>, max_bytes: usize) -> Bytes {
    // Allocated at full length: memory that it outgrew would not be wiped.
    let mut lines = BytesMut::with_capacity(max_bytes);
    headers.for_each(|header| header.encode(&mut lines));
    wipe_on_drop(lines.into())
}

#[cfg(test)]
mod tests {
    use super::{super::ParsedHeaders, *};

    /// `name` is unique per test: the thread's cache may be shared.
    fn header_text(name: &str, more: &str) -> String {
        format!("Host: x\r\nX-Test: {name}\r\n{more}Accept: */*\r\n\r\n")
    }

    fn parse_headers(text: &str) -> Headers {
        let mut buffer = BytesMut::from(&*format!("GET / HTTP/1.1\r\n{text}"));
        let message = buffer.clone();
        let mut slots = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut slots);
        let length = request.parse(&message).expect("a head").unwrap();
        ParsedHeaders::new(&message[..length], request.headers)
            .consume(&mut buffer, length)
            .unwrap_or_default()
    }

    fn pairs(headers: &Headers) -> Vec<(Vec<u8>, Vec<u8>)> {
        headers.iter().map(|header| (header.name.to_vec(), header.value.to_vec())).collect()
    }

    #[test]
    fn headers_seen_twice_on_any_connection_are_cached() {
        let text = header_text("twice", "");
        let mut first = HeaderCache::default();
        let headers = first.insert(parse_headers(&text));
        assert!(!headers.is_cached() && first.lookup(text.as_bytes()).is_none(), "seen once");
        let mut other = HeaderCache::default();
        let headers = other.insert(parse_headers(&text));
        assert!(headers.is_cached(), "cached when seen twice");
        let more = text.clone() + "GET /";
        let (cached, end) = other.lookup(more.as_bytes()).expect("cached headers");
        assert!(Rc::ptr_eq(&cached.lines, &headers.lines) && end == text.len());
        assert_eq!(pairs(&cached), pairs(&parse_headers(&text)));
        assert!(first.lookup(text.as_bytes()).is_none(), "each connection has its own cache");
    }

    #[test]
    fn blocks_of_very_many_connections_in_turn_are_all_cached() {
        let texts: Vec<_> =
            (0..8 * CACHE_SLOTS).map(|nth| header_text(&format!("connection-{nth}"), "")).collect();
        let mut caches: Vec<_> = texts.iter().map(|_| HeaderCache::default()).collect();
        // Each sends its two blocks in turn, and the blocks of all the others come between them.
        for _ in 0..2 {
            for more in ["X-Reads: 1\r\n", "X-Writes: 1\r\n"] {
                for (text, cache) in texts.iter().zip(&mut caches) {
                    cache.insert(parse_headers(&(more.to_owned() + text)));
                }
            }
        }
        for (text, cache) in texts.iter().zip(&mut caches) {
            for more in ["X-Reads: 1\r\n", "X-Writes: 1\r\n"] {
                assert!(cache.lookup((more.to_owned() + text).as_bytes()).is_some(), "{text}");
            }
        }
    }

    #[test]
    fn attachment_stays_with_cached_headers_until_another_one_comes() {
        let text = header_text("attachment", "");
        let mut cache = HeaderCache::default();
        let fresh = cache.insert(parse_headers(&text));
        fresh.attach(1_u8);
        assert_eq!(fresh.with_attachment(|value: &u8| *value), None, "not cached");
        let cached = cache.insert(parse_headers(&text));
        cached.attach(2_u8);
        let (again, _) = cache.lookup(text.as_bytes()).expect("cached headers");
        assert_eq!(again.with_attachment(|value: &u8| *value), Some(2));
        again.attach("three");
        assert_eq!(cached.with_attachment(|value: &u8| *value), None, "of another type");
        assert_eq!(cached.with_attachment(|value: &&str| *value), Some("three"));
    }

    #[test]
    fn lookup_differing_only_in_content_length_hits() {
        let mut cache = HeaderCache::default();
        for content_length in ["12", "7"] {
            let headers = cache.insert(parse_headers(&header_text(
                "length",
                &format!("Content-Length: {content_length}\r\n"),
            )));
            assert_eq!(headers.first(HeaderKind::ContentLength), Some(content_length.as_bytes()));
        }
        for content_length in ["0", "7", "00000000000000000012", "99999999999999999999"] {
            let text = header_text("length", &format!("Content-Length: {content_length}\r\n"));
            let (headers, end) = cache.lookup(text.as_bytes()).expect("only the length differs");
            assert_eq!(end, text.len());
            assert_eq!(pairs(&headers), pairs(&parse_headers(&text)));
        }
        for invalid in ["", "-1", "+7", "7 ", " 7", "7,7", "0x7", "7\r\nA: b", "111111111111111111111"] {
            let text = header_text("length", &format!("Content-Length: {invalid}\r\n"));
            assert!(cache.lookup(text.as_bytes()).is_none(), "{invalid:?}");
        }
        let text = header_text("length", "Content-Length: 7\r\n");
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = other[at].wrapping_add(1);
            let hit = cache.lookup(&other);
            assert_eq!(hit.is_some(), text.as_bytes()[at] == b'7', "byte {at}");
            assert!(cache.lookup(&text.as_bytes()[..at]).is_none(), "incomplete");
        }
    }

    #[test]
    fn connection_cache_holds_two_entries() {
        let [reads, writes, third] = ["reads", "writes", "third"].map(|name| header_text(name, ""));
        let mut cache = HeaderCache::default();
        for text in [&reads, &writes, &third] {
            (0..2).for_each(|_| drop(cache.insert(parse_headers(text))));
        }
        for _ in 0..3 {
            for text in [&writes, &third] {
                assert!(cache.lookup(text.as_bytes()).is_some());
            }
        }
        assert!(cache.lookup(reads.as_bytes()).is_none());
    }

    #[test]
    fn headers_unique_per_request_are_not_cached() {
        let long = format!("X-Long: {}\r\n", "a".repeat(MAX_CACHED_BYTES));
        let twice = "Content-Length: 7\r\ncontent-length: 7\r\n";
        for more in ["X-Request-Id: 1\r\n", "traceparent: 00-1\r\n", twice, &long] {
            let text = header_text("rare", more);
            let mut cache = HeaderCache::default();
            (0..3).for_each(|_| assert!(!cache.insert(parse_headers(&text)).is_cached()));
            assert!(cache.lookup(text.as_bytes()).is_none(), "{more}");
        }
    }

    #[test]
    fn cached_encoding_equals_fresh_encoding() {
        let more = "Connection: close, X-Mine\r\nX-Mine: 1\r\nAuthorization: Bearer k\r\nCookie: a\r\nDate: now\r\n\
                    Content-Length: 5\r\nX-Request-Agent: hr\r\nX-Wecom-Retried: 1\r\n";
        let text = header_text("ready", more);
        let mut cache = HeaderCache::default();
        let fresh = cache.insert(parse_headers(&text));
        let cached = cache.insert(parse_headers(&text));
        let to_upstream = |headers: &Headers| {
            let mut out = BytesMut::new();
            headers.encode_for_upstream(&mut out);
            out
        };
        assert_eq!(to_upstream(&cached), to_upstream(&fresh));
        assert_eq!(
            (cached.has_connection_close(), cached.has_connection_keep_alive()),
            (fresh.has_connection_close(), fresh.has_connection_keep_alive())
        );
        assert!(fresh.encoded_for_client(usize::MAX).is_none());
        let encoded = cached.encoded_for_client(usize::MAX).expect("an encoded block");
        assert_eq!(encoded, encode_headers(fresh.forwarded_to_client(), text.len()));
        // The longest forwarded value is that of `Authorization`.
        assert!(cached.encoded_for_client(8).is_none() && cached.encoded_for_client(9).is_some());
    }
}
