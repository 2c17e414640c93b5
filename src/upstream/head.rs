//! HTTP/1.1 heads: writes a request's, parses a response's. What both share of heads is in `http1`; the first line and
//! the errors differ from a request's.

use std::{mem::MaybeUninit, time::Duration};

use bytes::{Buf, BufMut, BytesMut};
use http::StatusCode;

use super::{BodyLength, Settings, UpstreamErrorKind, UpstreamRequest};
use crate::{
    http1::{
        head::{HeadSyntaxError, has_bare_lf, head_length},
        headers::{HeaderCache, HeaderKind, Headers, ParsedHeaders},
    },
    text,
};

/// Status line of nearly every response.
const COMMON_STATUS_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";
/// Maximum headers of a response.
const MAX_HEADERS: usize = 128;

/// Writes a request head. `Host` is the upstream's; the client's is not forwarded.
pub(super) fn write_request_head(buf: &mut BytesMut, request: &UpstreamRequest<'_>, settings: &Settings) {
    buf.reserve(1024);
    buf.put_slice(request.method.as_str().as_bytes());
    buf.put_u8(b' ');
    buf.put_slice(settings.path_prefix.as_bytes());
    for part in request.target {
        buf.put_slice(part.as_bytes());
    }
    buf.put_slice(b" HTTP/1.1\r\nhost: ");
    buf.put_slice(settings.authority.as_bytes());
    buf.put_slice(b"\r\n");
    request.headers.encode_for_upstream(buf);
    match request.body_length {
        BodyLength::Absent => {}
        BodyLength::Known(length) => {
            buf.put_slice(b"content-length: ");
            buf.put_slice(itoa::Buffer::new().format(length).as_bytes());
            buf.put_slice(b"\r\n");
        }
        BodyLength::Unknown => buf.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    buf.put_slice(b"\r\n");
}

/// A parsed response head.
pub struct ResponseHead {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: Headers,
    /// Whether the connection can be reused after the response.
    pub keep_alive: bool,
}

/// Parses a complete head off the buffer; `None` while it is incomplete. `header_cache` is the connection's.
pub fn parse_response_head(
    buffer: &mut BytesMut,
    header_cache: &mut HeaderCache,
) -> Result<Option<ResponseHead>, UpstreamErrorKind> {
    if let Some(head) = parse_cached_head(buffer, header_cache) {
        return Ok(Some(head));
    }
    let mut header_slots = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        buffer,
        &mut header_slots,
    );
    let Some(length) = head_length(parsed, buffer).map_err(invalid_head)? else { return Ok(None) };
    let parsed_status = status_and_version(&response)?;
    let headers = ParsedHeaders::new(&buffer[..length], response.headers).consume(buffer, length);
    let headers = headers.map_err(invalid_head)?;
    Ok(Some(ResponseHead::new(parsed_status, header_cache.insert(headers))))
}

fn invalid_head(error: HeadSyntaxError) -> UpstreamErrorKind {
    UpstreamErrorKind::InvalidHead(match error {
        HeadSyntaxError::Parser(httparse::Error::TooManyHeaders) => {
            const { &text!("more than 128 headers in the response", "响应头超过 128 个") }
        }
        HeadSyntaxError::Parser(_) => const { &text!("malformed response head", "响应头格式错误") },
        HeadSyntaxError::TooLarge => const { &text!("response head over 64 KiB", "响应头超过 64 KiB") },
        HeadSyntaxError::BareLf => const { &text!("bare LF in the response head", "响应头中有单独的 LF") },
        HeadSyntaxError::TooManyConnectionOptions => {
            const { &text!("Connection lists more than 100 options", "Connection 列出的选项超过 100 个") }
        }
    })
}

/// Parses a head whose headers are cached. `None` also for a malformed one, which the full parser then reports.
fn parse_cached_head(buffer: &mut BytesMut, header_cache: &mut HeaderCache) -> Option<ResponseHead> {
    let (first_line, headers, length) = header_cache.lookup_head(buffer)?;
    let parsed_status = if first_line == COMMON_STATUS_LINE {
        (StatusCode::OK, true)
    } else {
        parse_status_line(first_line)?
    };
    buffer.advance(length);
    Some(ResponseHead::new(parsed_status, headers))
}

/// Parses the status line of a head whose headers are cached.
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

/// Returns the status and whether the version is HTTP/1.1.
fn status_and_version(
    response: &httparse::Response<'_, '_>,
) -> Result<(StatusCode, bool), UpstreamErrorKind> {
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status
        .ok_or(UpstreamErrorKind::InvalidHead(const { &text!("invalid status code", "状态码无效") }))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamErrorKind::InvalidHead(
            const { &text!("unexpected 101 Switching Protocols", "意外的 101 Switching Protocols") },
        ));
    }
    Ok((status, response.version == Some(1)))
}

/// `Keep-Alive: timeout`: how long the peer keeps an idle connection open (RFC 2068 §19.7.1.1).
pub(super) fn keep_alive_timeout(headers: &Headers) -> Option<Duration> {
    let value = std::str::from_utf8(headers.first(HeaderKind::KeepAlive)?).ok()?;
    value.split(',').find_map(|parameter| {
        let (name, seconds) = parameter.split_once('=')?;
        let seconds = seconds.trim().trim_matches('"').parse().ok()?;
        name.trim().eq_ignore_ascii_case("timeout").then_some(Duration::from_secs(seconds))
    })
}

impl ResponseHead {
    fn new((status, is_http11): (StatusCode, bool), headers: Headers) -> Self {
        let keep_alive = is_http11 && !headers.has_connection_close();
        Self { status, headers, keep_alive }
    }
}
