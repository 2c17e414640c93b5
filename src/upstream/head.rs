//! The head of a request as HTTP/1.1 text, and the head of an answer out of it.

use std::mem::MaybeUninit;

use bytes::{Buf, BufMut, BytesMut};
use http::StatusCode;

use super::{BodyLength, Flaw, Outgoing};
use crate::{
    fields::{Familiar, Fields, Found},
    framing::has_bare_line_feed,
};

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 64 * 1024;
/// The first line of nearly every answer.
const USUAL: &[u8] = b"HTTP/1.1 200 OK\r\n";
/// Most header lines of an answer.
const MAX_HEADERS: usize = 128;

/// Writes a request's head. `authority` is the upstream's, whatever the client's `Host` was.
pub(super) fn write(out: &mut BytesMut, outgoing: &Outgoing<'_>, authority: &str) {
    out.reserve(1024);
    out.put_slice(outgoing.method.as_str().as_bytes());
    out.put_u8(b' ');
    for piece in outgoing.target {
        out.put_slice(piece.as_bytes());
    }
    out.put_slice(b" HTTP/1.1\r\nhost: ");
    out.put_slice(authority.as_bytes());
    out.put_slice(b"\r\n");
    outgoing.fields.put_to_upstream(out);
    match outgoing.body {
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
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) fields: Fields,
    /// Whether the connection outlives the answer.
    pub(super) persistent: bool,
}

/// Takes a whole head off the buffer; `None` while it is not all there. `familiar` are the lines that this connection
/// brought before.
pub(super) fn take(buffer: &mut BytesMut, familiar: &mut Familiar) -> Result<Option<Head>, Flaw> {
    if let Some(head) = take_familiar(buffer, familiar) {
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
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
        Ok(_) => return Err(Flaw::Head("its head is longer than 64 KiB")),
        Err(httparse::Error::TooManyHeaders) => return Err(Flaw::Head("it has more than 128 header lines")),
        Err(_) => return Err(Flaw::Head("it does not speak HTTP/1.1")),
    };
    if has_bare_line_feed(&buffer[..length]) {
        return Err(Flaw::Head("a line of its head ends without a carriage return"));
    }
    let said = said(&response)?;
    let fields = Found::new(&buffer[..length], response.headers).take_off(buffer, length);
    if fields.names_too_many() {
        return Err(Flaw::Head("its Connection names more than 100 headers"));
    }
    Ok(Some(Head::new(said, familiar.note(fields))))
}

/// The same for a head of which only the first line is new. What is wrong with one is not said here.
fn take_familiar(buffer: &mut BytesMut, familiar: &mut Familiar) -> Option<Head> {
    let (first_line, fields, length) = familiar.recognise_head(buffer)?;
    if length > MAX_HEAD {
        return None;
    }
    let said = if first_line == USUAL { (StatusCode::OK, true) } else { first_line_alone(first_line)? };
    buffer.advance(length);
    Some(Head::new(said, fields))
}

/// What a status line says whose header lines are known.
fn first_line_alone(line: &[u8]) -> Option<(StatusCode, bool)> {
    if has_bare_line_feed(line) {
        return None;
    }
    let mut response = httparse::Response::new(&mut []);
    if response.parse(line).ok()?.is_complete() {
        return None;
    }
    said(&response).ok()
}

/// Takes in the status line: the status, and whether it is of HTTP/1.1.
fn said(response: &httparse::Response<'_, '_>) -> Result<(StatusCode, bool), Flaw> {
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Flaw::Head("its status is not a number from 100 to 999"))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Flaw::Head("it switches to another protocol, which nobody asked for"));
    }
    Ok((status, response.version == Some(1)))
}

impl Head {
    fn new((status, is_new): (StatusCode, bool), fields: Fields) -> Self {
        let persistent = is_new && !fields.says_close();
        Self { status, fields, persistent }
    }
}
