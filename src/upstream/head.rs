//! The head of a request as HTTP/1.1 text, and the head of an answer out of it.

use std::{fmt::Write as _, mem::MaybeUninit, ops::Range};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{BodyLength, Flaw, Outgoing};
use crate::headers;

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 64 * 1024;
/// Most header lines of an answer.
const MAX_HEADERS: usize = 128;

/// Writes a request's head. `authority` is the upstream's, whatever the client's `Host` was.
pub(super) fn write(out: &mut BytesMut, outgoing: &Outgoing<'_>, authority: &str) {
    out.reserve(512 + outgoing.target.len());
    out.put_slice(outgoing.method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(outgoing.target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\nhost: ");
    out.put_slice(authority.as_bytes());
    out.put_slice(b"\r\n");
    for (name, value) in outgoing.headers_out() {
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    match outgoing.body {
        BodyLength::Absent => {}
        BodyLength::Known(length) => {
            let _ = write!(out, "content-length: {length}\r\n");
        }
        BodyLength::Unknown => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.put_slice(b"\r\n");
}

/// An answer's head.
pub(super) struct Head {
    pub(super) status: StatusCode,
    /// Without hop-by-hop headers, but for `Transfer-Encoding`, which the framing is read from.
    pub(super) headers: HeaderMap,
    /// Whether the connection outlives the answer.
    pub(super) persistent: bool,
}

/// Takes a whole head off the buffer; `None` while it is not all there.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Head>, Flaw> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        buffer,
        &mut lines,
    );
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
        Ok(_) => return Err(Flaw::Head("its head is longer than 64 KiB")),
        Err(httparse::Error::TooManyHeaders) => return Err(Flaw::Head("it has more than 128 header lines")),
        Err(_) => return Err(Flaw::Head("it does not speak HTTP/1.1")),
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Flaw::Head("its status is not a number from 100 to 999"))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Flaw::Head("it switches to another protocol, which nobody asked for"));
    }
    let mut persistent = response.version == Some(1);

    let base = buffer.as_ptr() as usize;
    let within = |text: &[u8]| -> Range<usize> {
        let start = text.as_ptr() as usize - base;
        start..start + text.len()
    };
    let mut places = [const { (0..0, 0..0) }; MAX_HEADERS];
    let count = response.headers.len();
    for (place, line) in places.iter_mut().zip(response.headers.iter()) {
        *place = (within(line.name.as_bytes()), within(line.value));
    }
    let head = buffer.split_to(length).freeze();
    let mut headers = HeaderMap::with_capacity(count + 4);
    let mut nominates = false;
    for (name, value) in &places[..count] {
        let name = HeaderName::from_bytes(&head[name.clone()])
            .map_err(|_| Flaw::Head("a header's name is not one"))?;
        let value = shared_value(&head, value)?;
        if name == header::CONNECTION {
            let options = || value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            persistent &= !options().any(|option| option.eq_ignore_ascii_case(b"close"));
            nominates |= options().any(|option| !option.eq_ignore_ascii_case(b"keep-alive"));
        } else if name != header::TRANSFER_ENCODING && headers::is_hop_by_hop(&name) {
            continue;
        }
        headers.append(name, value);
    }
    if nominates {
        for name in headers::nominated(&headers) {
            if name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
                headers.remove(name);
            }
        }
    }
    headers.remove(header::CONNECTION);
    Ok(Some(Head { status, headers, persistent }))
}

/// A header's value without copying it out of the head.
fn shared_value(head: &Bytes, place: &Range<usize>) -> Result<HeaderValue, Flaw> {
    HeaderValue::from_maybe_shared(head.slice(place.clone()))
        .map_err(|_| Flaw::Head("a header's value is not one"))
}
