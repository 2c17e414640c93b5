//! The head of an HTTP/1 request, taken off what a client sent. Strict: what could be read in two ways is refused.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use crate::{
    http1::{
        framing::{Framing, FramingError, has_bare_lf},
        headers::{HeaderCache, Headers, KnownHeader, ParsedHeaders, constant_time_eq},
    },
    proxy::RequestTarget,
    secret::wipe,
};

/// Most bytes of a head.
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Longest target that is remembered.
const MAX_CACHED_TARGET_BYTES: usize = 1024;
/// Most header lines.
const MAX_HEADERS: usize = 100;

/// A request's head.
pub(super) struct RequestHead {
    pub(super) method: Method,
    pub(super) version: Version,
    pub(super) target: RequestTarget,
    /// The authority of a target in absolute form.
    pub(super) authority: Option<Bytes>,
    pub(super) headers: Headers,
    /// How the body is framed, or why nobody can tell.
    pub(super) framing: Result<Framing, FramingError>,
}

impl RequestHead {
    fn new(asked: RequestLine, headers: Headers) -> Self {
        let RequestLine { method, version, target, authority } = asked;
        let framing = Framing::of_request(version, &headers);
        Self { method, version, target, authority, headers, framing }
    }

    /// Whether the client wants to send more requests on this connection.
    pub(super) fn is_persistent(&self) -> bool {
        match self.version {
            Version::HTTP_11 => !self.headers.has_connection_close(),
            _ => self.headers.has_connection_keep_alive() && !self.headers.has_connection_close(),
        }
    }

    /// Whether the client waits for a word before it sends the body.
    pub(super) fn expects_continue(&self) -> bool {
        self.version == Version::HTTP_11
            && self
                .headers
                .values(KnownHeader::Expect)
                .any(|value| value.eq_ignore_ascii_case(b"100-continue"))
    }
}

/// A head that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HeadError {
    pub(super) status: StatusCode,
    pub(super) message: &'static str,
}

const fn bad_request(words: &'static str) -> HeadError {
    HeadError { status: StatusCode::BAD_REQUEST, message: words }
}

const fn header_fields_too_large(words: &'static str) -> HeadError {
    HeadError { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message: words }
}

/// What a request line says.
struct RequestLine {
    method: Method,
    version: Version,
    target: RequestTarget,
    authority: Option<Bytes>,
}

/// What the requests of a connection have in common with those before them.
#[derive(Default)]
pub struct RequestHeadCache {
    /// Their header lines.
    headers: HeaderCache,
    /// What the last one asked for.
    request_line: Option<CachedRequestLine>,
}

/// Asked in HTTP/1.1, without an authority.
struct CachedRequestLine {
    method: Method,
    target: RequestTarget,
}

impl RequestHeadCache {
    /// What a line asks for, if it is the line of the request before. How long it takes to see that it is another does not
    /// tell where they differ: there may be a pass in it.
    fn lookup(&self, first_line: &[u8]) -> Option<RequestLine> {
        let CachedRequestLine { method, target } = self.request_line.as_ref()?;
        let rest = first_line.strip_prefix(method.as_str().as_bytes())?.strip_prefix(b" ")?;
        let is_same = constant_time_eq(rest.strip_suffix(b" HTTP/1.1\r\n")?, target.as_str().as_bytes());
        is_same.then(|| RequestLine {
            method: method.clone(),
            version: Version::HTTP_11,
            target: target.clone(),
            authority: None,
        })
    }

    fn insert(&mut self, asked: &RequestLine) {
        let RequestLine { method, version, target, authority } = asked;
        // A gettoken is rare, and there is a key in it: it is not kept in memory longer than it takes.
        let is_usual =
            target.as_str().len() <= MAX_CACHED_TARGET_BYTES && !target.path().ends_with("/gettoken");
        if *version == Version::HTTP_11 && authority.is_none() && is_usual {
            self.request_line = Some(CachedRequestLine { method: method.clone(), target: target.clone() });
        }
    }
}

/// Takes a whole head off the buffer; `None` while it is not all there.
pub(super) fn parse(
    buffer: &mut BytesMut,
    habits: &mut RequestHeadCache,
) -> Result<Option<RequestHead>, HeadError> {
    if let Some(head) = parse_cached(buffer, habits) {
        return Ok(Some(head));
    }
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(buffer, &mut lines) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD_BYTES => return Ok(None),
        Ok(httparse::Status::Partial) if !buffer.contains(&b'\n') => {
            let words = "the request's target is longer than 64 KiB";
            return Err(HeadError { status: StatusCode::URI_TOO_LONG, message: words });
        }
        Ok(_) => return Err(header_fields_too_large("the request's head is longer than 64 KiB")),
        Err(error) => return Err(head_error(error)),
    };
    if has_bare_lf(&buffer[..length]) {
        return Err(bad_request("a line of the head ends without a carriage return"));
    }
    let asked = build_request_line(&request)?;
    habits.insert(&asked);
    let fields = ParsedHeaders::new(&buffer[..length], request.headers).consume_and_wipe(buffer, length);
    if fields.has_too_many_connection_options() {
        return Err(header_fields_too_large("Connection names more than 100 headers"));
    }
    Ok(Some(RequestHead::new(asked, habits.headers.insert(fields))))
}

/// The same for a head of which only the first line is new. What is wrong with one is not said here.
fn parse_cached(buffer: &mut BytesMut, habits: &mut RequestHeadCache) -> Option<RequestHead> {
    let (first_line, fields, length) = habits.headers.lookup_head(buffer)?;
    if length > MAX_HEAD_BYTES {
        return None;
    }
    let asked = match habits.lookup(first_line) {
        Some(asked) => asked,
        None => {
            let asked = parse_request_line(first_line)?;
            habits.insert(&asked);
            asked
        }
    };
    wipe(&mut buffer[..length]);
    buffer.advance(length);
    Some(RequestHead::new(asked, fields))
}

/// What a request line says whose header lines are known.
fn parse_request_line(line: &[u8]) -> Option<RequestLine> {
    if has_bare_lf(line) {
        return None;
    }
    let mut request = httparse::Request::new(&mut []);
    if request.parse(line).ok()?.is_complete() {
        return None;
    }
    build_request_line(&request).ok()
}

/// Takes in the request line.
fn build_request_line(request: &httparse::Request<'_, '_>) -> Result<RequestLine, HeadError> {
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(bad_request("the request line is not complete"));
    };
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad_request("the method is not one"))?;
    let version = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let path_at =
        path_start(target).ok_or(bad_request("the request's target is neither a path nor an http URL"))?;
    let authority =
        authority_start(target).map(|start| Bytes::copy_from_slice(&target.as_bytes()[start..path_at]));
    // `http://host` stands for `http://host/`.
    let target = if path_at == target.len() { "/" } else { &target[path_at..] };
    Ok(RequestLine { method, version, target: RequestTarget::new(target), authority })
}

/// Where in a request-target the path begins. What has none is for other kinds of server.
fn path_start(target: &str) -> Option<usize> {
    if target.starts_with('/') {
        return Some(0);
    }
    let authority = authority_start(target)?;
    Some(target[authority..].find(['/', '?', '#']).map_or(target.len(), |end| authority + end))
}

/// Where the authority begins, if the target is in absolute form.
fn authority_start(target: &str) -> Option<usize> {
    let begins =
        |scheme: &&str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    ["http://", "https://"].iter().find(|scheme| begins(scheme)).map(|scheme| scheme.len())
}

/// What the caller is told of a head that cannot be parsed.
fn head_error(error: httparse::Error) -> HeadError {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => header_fields_too_large("the request has more than 100 header lines"),
        Error::HeaderName => bad_request("a header's name is not one, or a header line is folded"),
        Error::HeaderValue => bad_request("a header's value holds a control character"),
        Error::Version => bad_request("the request line does not end in HTTP/1.0 or HTTP/1.1"),
        _ => bad_request("the request line or a header line is malformed"),
    }
}

/// What the caller is told of a body that nobody knows the end of.
pub(super) fn framing_error_message(error: FramingError) -> &'static str {
    match error {
        FramingError::InvalidContentLength => "Content-Length is not one number",
        FramingError::InvalidTransferEncoding => "Transfer-Encoding is not exactly \"chunked\"",
        FramingError::UnexpectedTransferEncoding => {
            "Transfer-Encoding stands beside Content-Length, or in a request of HTTP/1.0"
        }
        FramingError::InvalidChunk | FramingError::ChunkOverhead => "the body's chunks are not well formed",
    }
}
