//! The head of a request as HTTP/1.1 text, and the head of an answer out of it.

use std::mem::MaybeUninit;

use bytes::{Buf, BufMut, BytesMut};
use http::StatusCode;

use super::{BodyLength, UpstreamErrorKind, UpstreamRequest};
use crate::http1::{
    framing::has_bare_lf,
    headers::{HeaderCache, Headers, ParsedHeaders},
};

/// Most bytes of an answer's head.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// The first line of nearly every answer.
const COMMON_STATUS_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";
/// Most header lines of an answer.
const MAX_HEADERS: usize = 128;

/// Writes a request's head. `authority` is the upstream's, whatever the client's `Host` was.
pub(super) fn write_request_head(out: &mut BytesMut, outgoing: &UpstreamRequest<'_>, authority: &str) {
    out.reserve(1024);
    out.put_slice(outgoing.method.as_str().as_bytes());
    out.put_u8(b' ');
    for piece in outgoing.target {
        out.put_slice(piece.as_bytes());
    }
    out.put_slice(b" HTTP/1.1\r\nhost: ");
    out.put_slice(authority.as_bytes());
    out.put_slice(b"\r\n");
    outgoing.headers.encode_for_upstream(out);
    match outgoing.body_length {
        BodyLength::Absent => {}
        BodyLength::Known(length) => {
            out.put_slice(b"content-length: ");
            out.put_slice(itoa::Buffer::new().format(length).as_bytes());
            out.put_slice(b"\r\n");
        }
        BodyLength::Unknown => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.put_slice(b"\r\n");
}

/// An answer's head.
pub(super) struct ResponseHead {
    pub(super) status: StatusCode,
    pub(super) headers: Headers,
    /// Whether the connection outlives the answer.
    pub(super) keep_alive: bool,
}

/// Takes a whole head off the buffer; `None` while it is not all there. `familiar` are the lines that this connection
/// brought before.
pub(super) fn parse_response_head(
    buffer: &mut BytesMut,
    familiar: &mut HeaderCache,
) -> Result<Option<ResponseHead>, UpstreamErrorKind> {
    if let Some(head) = parse_cached_head(buffer, familiar) {
        return Ok(Some(head));
    }
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        buffer,
        &mut lines,
    );
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD_BYTES => return Ok(None),
        Ok(_) => return Err(UpstreamErrorKind::InvalidHead("its head is longer than 64 KiB")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(UpstreamErrorKind::InvalidHead("it has more than 128 header lines"));
        }
        Err(_) => return Err(UpstreamErrorKind::InvalidHead("it does not speak HTTP/1.1")),
    };
    if has_bare_lf(&buffer[..length]) {
        return Err(UpstreamErrorKind::InvalidHead("a line of its head ends without a carriage return"));
    }
    let said = status_and_version(&response)?;
    let fields = ParsedHeaders::new(&buffer[..length], response.headers).consume(buffer, length);
    if fields.has_too_many_connection_options() {
        return Err(UpstreamErrorKind::InvalidHead("its Connection names more than 100 headers"));
    }
    Ok(Some(ResponseHead::new(said, familiar.insert(fields))))
}

/// The same for a head of which only the first line is new. What is wrong with one is not said here.
fn parse_cached_head(buffer: &mut BytesMut, familiar: &mut HeaderCache) -> Option<ResponseHead> {
    let (first_line, fields, length) = familiar.lookup_head(buffer)?;
    if length > MAX_HEAD_BYTES {
        return None;
    }
    let said = if first_line == COMMON_STATUS_LINE {
        (StatusCode::OK, true)
    } else {
        parse_status_line(first_line)?
    };
    buffer.advance(length);
    Some(ResponseHead::new(said, fields))
}

/// What a status line says whose header lines are known.
fn parse_status_line(line: &[u8]) -> Option<(StatusCode, bool)> {
    if has_bare_lf(line) {
        return None;
    }
    let mut response = httparse::Response::new(&mut []);
    if response.parse(line).ok()?.is_complete() {
        return None;
    }
    status_and_version(&response).ok()
}

/// Takes in the status line: the status, and whether it is of HTTP/1.1.
fn status_and_version(
    response: &httparse::Response<'_, '_>,
) -> Result<(StatusCode, bool), UpstreamErrorKind> {
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status =
        status.ok_or(UpstreamErrorKind::InvalidHead("its status is not a number from 100 to 999"))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamErrorKind::InvalidHead(
            "it switches to another protocol, which nobody asked for",
        ));
    }
    Ok((status, response.version == Some(1)))
}

impl ResponseHead {
    fn new((status, is_new): (StatusCode, bool), headers: Headers) -> Self {
        let keep_alive = is_new && !headers.has_connection_close();
        Self { status, headers, keep_alive }
    }
}
