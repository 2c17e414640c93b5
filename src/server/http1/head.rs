//! Parses HTTP/1 request heads. Strict about syntax; an ambiguous body framing is recorded in
//! `RequestHead::framing`, and the proxy rejects it (`proxy/head_check.rs`).
//! What both share of heads is in `http1`; the first line, its cache and the errors differ from a response's.

use std::{borrow::Cow, mem::MaybeUninit};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use crate::{
    http1::{
        framing::{Framing, FramingError},
        head::{HeadSyntaxError, has_bare_lf, head_length},
        headers::{HeaderCache, HeaderKind, Headers, ParsedHeaders},
    },
    proxy::{CONNECT_MESSAGE, RequestTarget, split_path_credential},
    secret::{Masked, constant_time::constant_time_eq, wipe},
};

/// What a TLS connection begins with: a handshake record (RFC 8446 §5.1).
const TLS_HANDSHAKE: &[u8] = b"\x16\x03";
/// Maximum number of headers.
const MAX_HEADERS: usize = 100;

/// A request head.
pub struct RequestHead {
    /// Method.
    pub method: Method,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// Path and query, without `path_credential`.
    pub target: RequestTarget,
    /// The key that the path began with; what stood there may be no key.
    pub path_credential: Option<Masked>,
    /// Authority of a target in absolute form.
    pub authority: Option<Bytes>,
    /// Headers.
    pub headers: Headers,
    /// Framing of the body, or why it is undefined.
    pub framing: Result<Framing, FramingError>,
}

impl RequestHead {
    fn new(request_line: RequestLine, headers: Headers) -> Self {
        let RequestLine { method, version, target, path_credential, authority } = request_line;
        let framing = Framing::of_request(version, &headers);
        Self { method, version, target, path_credential, authority, headers, framing }
    }

    /// Whether the client keeps the connection for further requests (RFC 9112 §9.3).
    pub fn is_persistent(&self) -> bool {
        match self.version {
            Version::HTTP_11 => !self.headers.has_connection_close(),
            _ => self.headers.has_connection_keep_alive() && !self.headers.has_connection_close(),
        }
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    pub(super) fn expects_continue(&self) -> bool {
        self.version == Version::HTTP_11
            && self
                .headers
                .values(HeaderKind::Expect)
                .any(|value| value.eq_ignore_ascii_case(b"100-continue"))
    }
}

/// A malformed or oversized head, with the status of the response.
#[derive(Debug, PartialEq, Eq)]
pub struct HeadError {
    /// Status of the response.
    pub status: StatusCode,
    /// Message for the client.
    pub message: Cow<'static, str>,
}

const fn bad_request(message: &'static str) -> HeadError {
    HeadError { status: StatusCode::BAD_REQUEST, message: Cow::Borrowed(message) }
}

const fn header_fields_too_large(message: &'static str) -> HeadError {
    HeadError { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message: Cow::Borrowed(message) }
}

/// The error for a large head that came without a key while too many others did.
pub(super) fn too_many_large_heads() -> HeadError {
    header_fields_too_large(
        "too many large request heads arrive at the same time; send less than 32 KiB, or try again",
    )
}

/// A request line.
struct RequestLine {
    method: Method,
    version: Version,
    target: RequestTarget,
    path_credential: Option<Masked>,
    authority: Option<Bytes>,
}

/// Cache of the header blocks and of the last request line of the connections that one task has served. It outlives a
/// connection, so another client's connection may use it next.
#[derive(Default)]
pub struct RequestHeadCache {
    /// Header blocks seen before.
    headers: HeaderCache,
    /// The last request line.
    request_line: Option<CachedRequestLine>,
}

/// A request line of HTTP/1.1 without an authority. WeCom's API has no other methods, and [`Method`] takes 24 bytes.
struct CachedRequestLine {
    is_post: bool,
    target: RequestTarget,
}

impl RequestHeadCache {
    /// Returns the cached request line if `first_line` equals it. The comparison takes constant time, because the
    /// target may contain a pass.
    fn lookup(&self, first_line: &[u8]) -> Option<RequestLine> {
        let CachedRequestLine { is_post, target } = self.request_line.as_ref()?;
        let method = if *is_post { Method::POST } else { Method::GET };
        let rest = first_line.strip_prefix(method.as_str().as_bytes())?.strip_prefix(b" ")?;
        let is_same = constant_time_eq(rest.strip_suffix(b" HTTP/1.1\r\n")?, target.as_str().as_bytes());
        is_same.then(|| RequestLine {
            method,
            version: Version::HTTP_11,
            target: target.clone(),
            path_credential: None,
            authority: None,
        })
    }

    fn insert(&mut self, request_line: &RequestLine) {
        let RequestLine { method, version, target, path_credential, authority } = request_line;
        let is_plain = authority.is_none() && path_credential.is_none();
        let has_method = matches!(*method, Method::GET | Method::POST);
        if *version == Version::HTTP_11 && has_method && is_plain && target.is_cacheable() {
            let is_post = *method == Method::POST;
            self.request_line = Some(CachedRequestLine { is_post, target: target.clone() });
        }
    }
}

/// Takes a complete head off the buffer; `None` while it is incomplete.
pub fn parse(buffer: &mut BytesMut, cache: &mut RequestHeadCache) -> Result<Option<RequestHead>, HeadError> {
    if let Some(head) = parse_cached(buffer, cache) {
        return Ok(Some(head));
    }
    let mut header_slots = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(buffer, &mut header_slots);
    let Some(length) = head_length(parsed, buffer).map_err(|error| head_error(error, buffer))? else {
        return Ok(None);
    };
    let request_line = build_request_line(&request)?;
    cache.insert(&request_line);
    let headers = ParsedHeaders::new(&buffer[..length], request.headers);
    let headers = headers.consume_and_wipe(buffer, length).map_err(|error| head_error(error, &[]))?;
    Ok(Some(RequestHead::new(request_line, cache.headers.insert(headers))))
}

/// Takes a head with cached headers off the buffer. `None` leaves the head, and any error in it, to [`parse`].
fn parse_cached(buffer: &mut BytesMut, cache: &mut RequestHeadCache) -> Option<RequestHead> {
    let (first_line, headers, length) = cache.headers.lookup_head(buffer)?;
    let request_line = match cache.lookup(first_line) {
        Some(request_line) => request_line,
        None => {
            let request_line = parse_request_line(first_line)?;
            cache.insert(&request_line);
            request_line
        }
    };
    wipe(&mut buffer[..length]);
    buffer.advance(length);
    Some(RequestHead::new(request_line, headers))
}

/// Parses a request line whose headers are cached.
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

/// Validates a request line that httparse has split.
fn build_request_line(request: &httparse::Request<'_, '_>) -> Result<RequestLine, HeadError> {
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(bad_request("incomplete request line"));
    };
    if method == "CONNECT" {
        return Err(bad_request(CONNECT_MESSAGE));
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad_request("invalid method"))?;
    let version = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let path_at =
        path_start(target).ok_or(bad_request("invalid request target: must be a path or an http URL"))?;
    let authority =
        authority_start(target).map(|start| Bytes::copy_from_slice(&target.as_bytes()[start..path_at]));
    // `http://host` is equivalent to `http://host/`.
    let target = if path_at == target.len() { "/" } else { &target[path_at..] };
    let (target, path_credential) = split_path_credential(target);
    Ok(RequestLine { method, version, target: RequestTarget::new(target), path_credential, authority })
}

/// Where the path of a request-target begins; `None` for authority and asterisk form, which this proxy does not serve.
fn path_start(target: &str) -> Option<usize> {
    if target.starts_with('/') {
        return Some(0);
    }
    let authority = authority_start(target)?;
    Some(target[authority..].find(['/', '?', '#']).map_or(target.len(), |end| authority + end))
}

/// Where the authority of a target in absolute form begins.
fn authority_start(target: &str) -> Option<usize> {
    let starts_with =
        |scheme: &&str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    ["http://", "https://"].iter().find(|scheme| starts_with(scheme)).map(|scheme| scheme.len())
}

/// Maps an error to the response.
fn head_error(error: HeadSyntaxError, head: &[u8]) -> HeadError {
    match error {
        HeadSyntaxError::Parser(error) => parser_error(error, head),
        HeadSyntaxError::TooLarge if !head.contains(&b'\n') => {
            let message = Cow::Borrowed("request target exceeds 64 KiB");
            HeadError { status: StatusCode::URI_TOO_LONG, message }
        }
        HeadSyntaxError::TooLarge => header_fields_too_large("request head exceeds 64 KiB"),
        HeadSyntaxError::BareLf => bad_request("bare LF in the request head"),
        HeadSyntaxError::TooManyConnectionOptions => {
            header_fields_too_large("Connection lists more than 100 options")
        }
    }
}

fn parser_error(error: httparse::Error, head: &[u8]) -> HeadError {
    use httparse::Error;
    if head.starts_with(TLS_HANDSHAKE) {
        return bad_request("TLS on a port without TLS: begin the URL with http://, or set server.tls");
    }
    if matches!(error, Error::Token | Error::Version)
        && let Some(message) = target_mistake(head)
    {
        return HeadError { status: StatusCode::BAD_REQUEST, message: Cow::Owned(message) };
    }
    match error {
        Error::TooManyHeaders => header_fields_too_large("more than 100 headers"),
        Error::HeaderName => bad_request("invalid header name or folded header line"),
        Error::HeaderValue => bad_request("control character in a header value"),
        Error::Version => bad_request("unsupported HTTP version, must be HTTP/1.0 or HTTP/1.1"),
        _ => bad_request("malformed request line or header"),
    }
}

/// Names the first byte of the request-target that must be percent-encoded, and its position.
fn target_mistake(head: &[u8]) -> Option<String> {
    let line = head.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty())?.trim_ascii_end();
    let (_, after_method) = line.split_at(memchr::memchr(b' ', line)? + 1);
    let end = memchr::memmem::rfind(after_method, b" HTTP/").unwrap_or(after_method.len());
    let target = &after_method[..end];
    let query_at = memchr::memchr(b'?', target);
    let at = match std::str::from_utf8(target) {
        Ok(_) => target.iter().position(|byte| *byte <= b' ' || *byte == 0x7f)?,
        Err(error) => {
            target.iter().position(|byte| *byte <= b' ').unwrap_or(usize::MAX).min(error.valid_up_to())
        }
    };
    let (part, position) = match query_at {
        Some(query_at) if at > query_at => ("query", at - query_at),
        _ => ("path", at + 1),
    };
    let found = match target[at] {
        b' ' => "a blank, to be written %20".to_owned(),
        byte @ ..=0x7f => format!("the control character 0x{byte:02X}, to be written %{byte:02X}"),
        byte => format!(
            "0x{byte:02X}, which is not UTF-8 (GBK?): encode the text in UTF-8, then percent-encode it"
        ),
    };
    Some(format!("byte {position} of the {part} is {found}"))
}

/// The client's message for an undefined body framing.
pub(super) fn framing_error_message(error: FramingError) -> &'static str {
    match error {
        FramingError::InvalidContentLength => "invalid Content-Length",
        FramingError::InvalidTransferEncoding => "unsupported Transfer-Encoding, must be chunked",
        FramingError::UnexpectedTransferEncoding => "Transfer-Encoding with Content-Length or in HTTP/1.0",
        FramingError::InvalidChunk | FramingError::ChunkOverhead => "malformed chunked body",
    }
}
