//! The header lines of an answer that are the proxy's own, and what must not be in those that are not.

use std::{cell::Cell, time::Duration};

use bytes::{BufMut, BytesMut};
use memchr::memmem;

use super::{
    authenticate::is_credential, error::ErrorKind, request::Request, request_context::RequestContext,
};
use crate::{
    http1::headers::{HeaderBlock, Headers, KnownHeader},
    tokens::{Token, ceil_seconds},
    wecom::errcode,
};

/// Hexadecimal digits of a key as `wecom-proxy key` makes them.
const MADE_KEY_DIGITS: usize = 64;
/// Length of a secret of WeCom's.
const SECRET_BYTES: usize = 43;

/// What an answer begins with whose body is the proxy's own.
pub(super) fn local_headers() -> HeaderBlock {
    let mut lines = HeaderBlock::default();
    lines.append(b"content-type", b"application/json; charset=UTF-8");
    lines
}

/// Puts the proxy's own lines onto an answer.
pub(super) fn add_proxy_headers(record: &RequestContext, explains: bool, lines: &mut HeaderBlock) {
    lines.append(b"x-request-id", record.request_id.as_bytes());
    if let Some(agent) = &record.agent {
        lines.append(b"x-wecom-agent", agent.name.as_bytes());
    }
    let room = lines.buffer_mut();
    room.reserve(96);
    room.put_slice(b"server-timing: token;dur=");
    put_milliseconds(room, record.token_time);
    room.put_slice(b", upstream;dur=");
    put_milliseconds(room, record.upstream_time);
    room.put_slice(b"\r\n");
    if let Some(errcode) = record.retried {
        lines.append(b"x-wecom-retried", itoa::Buffer::new().format(errcode).as_bytes());
    }
    if let Some(wait) = record.retry_after {
        lines.append(b"retry-after", itoa::Buffer::new().format(ceil_seconds(wait).max(1)).as_bytes());
    }
    // The proxy's own errors say themselves what to do; what the table says of their errcodes is meant for WeCom's.
    let wecoms = record.error.as_ref().is_none_or(|(kind, _)| *kind == ErrorKind::TokenUnavailable);
    let hint = record.errcode.filter(|errcode| wecoms && *errcode != errcode::OK).and_then(errcode::hint);
    if let Some(hint) = hint.filter(|_| explains) {
        lines.append(b"x-wecom-hint", hint.as_bytes());
    }
}

/// Whether the caller wants to be told what an errcode means.
pub(super) fn wants_hint(request: &Request) -> bool {
    request.headers.first(KnownHeader::WecomDebug).is_some_and(|value| value == b"1")
}

/// Milliseconds with three decimals.
fn put_milliseconds(room: &mut BytesMut, duration: Duration) {
    // Nearly always nothing was waited for.
    if duration.is_zero() {
        return room.put_slice(b"0.000");
    }
    let micros = duration.as_micros() as u64;
    let thousandths = (micros % 1000) as u32;
    room.put_slice(itoa::Buffer::new().format(micros / 1000).as_bytes());
    room.put_u8(b'.');
    // The leading one keeps the zeros behind it.
    room.put_slice(&itoa::Buffer::new().format(1000 + thousandths).as_bytes()[1..]);
}

/// The lines of an answer that go on to the caller, without the token: an upstream that redirects may say the request's
/// URL back.
pub(super) fn forwarded_headers(fields: &Headers, token: Option<&Token>) -> HeaderBlock {
    let mut lines = HeaderBlock::default();
    let token = token.map(|token| token.value.expose().as_bytes());
    if let Some(ready) = fields.encoded_for_client(token.map_or(usize::MAX, <[u8]>::len)) {
        lines.buffer_mut().put_slice(ready);
        return lines;
    }
    for field in fields.forwarded_to_client() {
        match token {
            Some(token) if field.value.len() >= token.len() => {
                lines.append(field.name, &remove_token(token, field.value));
            }
            _ => lines.append(field.name, field.value),
        }
    }
    lines
}

/// A text without any occurrence of `token`.
fn remove_token(token: &[u8], text: &[u8]) -> Vec<u8> {
    let (mut kept, mut rest) = (Vec::new(), text);
    while let Some(at) = memmem::find(rest, token) {
        kept.extend_from_slice(&rest[..at]);
        rest = &rest[at + token.len()..];
    }
    kept.extend_from_slice(rest);
    kept
}

/// What a request is called in the log and towards its caller.
pub(super) enum RequestId {
    /// The caller's own. A copy: a slice would keep the whole head in memory until the response has ended.
    FromClient(Box<[u8]>),
    /// One of ours, in hexadecimal digits.
    Generated([u8; 24]),
}

impl RequestId {
    /// It is visible ASCII.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::FromClient(text) => text,
            Self::Generated(text) => text,
        }
    }
}

/// Request ids: random where the process began, counted from there.
pub(super) struct RequestIds {
    prefix: [u8; 16],
    next_number: Cell<u32>,
}

impl Default for RequestIds {
    fn default() -> Self {
        let mut prefix = [0; 16];
        write_hex(&mut prefix, getrandom::u64().unwrap_or_default());
        Self { prefix, next_number: Cell::new(0) }
    }
}

impl RequestIds {
    /// The caller's own id if it sent a sane one, else a new one.
    pub(super) fn assign(&self, request: &Request) -> RequestId {
        let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
        let own = request.headers.first(KnownHeader::RequestId);
        let own = own.filter(|text| (1..=128).contains(&text.len()) && text.iter().all(sane));
        match own.map(|text| RequestId::FromClient(text.into())) {
            Some(id) if !resembles_secret(id.as_bytes()) && !is_credential(request, id.as_str()) => id,
            _ => self.generate(),
        }
    }

    fn generate(&self) -> RequestId {
        let nth = self.next_number.get();
        self.next_number.set(nth.wrapping_add(1));
        let mut text = [0; 24];
        text[..16].copy_from_slice(&self.prefix);
        write_hex(&mut text[16..], u64::from(nth));
        RequestId::Generated(text)
    }
}

/// Whether an id has the form of a key as `wecom-proxy key` makes them, or of a secret of WeCom's, which would stand in the
/// log. Whether it really is one is not looked up: the response would tell anyone who guesses.
fn resembles_secret(id: &[u8]) -> bool {
    let has_run = |is_part: fn(&u8) -> bool, is_long: fn(usize) -> bool| {
        id.split(|byte| !is_part(byte)).any(|run| is_long(run.len()))
    };
    id.len() >= SECRET_BYTES
        && (has_run(u8::is_ascii_hexdigit, |length| length >= MADE_KEY_DIGITS)
            || has_run(
                |byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte),
                |length| length == SECRET_BYTES,
            ))
}

/// The last digits of a number, as many as there is room for.
fn write_hex(room: &mut [u8], mut number: u64) {
    for digit in room.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number % 16) as usize];
        number /= 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_count_up_after_the_prefix() {
        let ids = RequestIds { prefix: *b"fedcba9876543210", next_number: Cell::new(0xff) };
        assert_eq!(ids.generate().as_str(), "fedcba9876543210000000ff");
        assert_eq!(ids.generate().as_str(), "fedcba987654321000000100");
    }

    #[test]
    fn ids_in_the_form_of_a_secret_are_none() {
        let (key, secret) = ("0f".repeat(32), "Kq3-5vXz_7bN1mPqRsTuVwXyZaBcDeFgHiJkLmNoPqR");
        for id in
            [&key, &format!("id-{key}"), &format!("{key}/1"), secret, &format!("a:{secret}"), &"A".repeat(43)]
        {
            assert!(resembles_secret(id.as_bytes()), "{id}");
        }
        for id in [
            "1",
            "b2dc8f6d-4b9c-c1a9-e0a0-d0b2dc8f6d4b",
            "4bf92f3577b34da6a3ce929d0e0e4736",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "Root=1-67891233-abcdef012345678912345678",
            &"x".repeat(128),
        ] {
            assert!(!resembles_secret(id.as_bytes()), "{id}");
        }
    }

    #[test]
    fn remove_token_removes_every_occurrence() {
        assert_eq!(remove_token(b"T0k", b"/a?access_token=T0k&b=T0k"), b"/a?access_token=&b=");
        assert_eq!(remove_token(b"T0k", b"T0"), b"T0");
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        let text = |micros| {
            let mut room = BytesMut::new();
            put_milliseconds(&mut room, Duration::from_micros(micros));
            String::from_utf8(room.to_vec()).expect("text")
        };
        assert_eq!([text(0), text(7), text(1234), text(5_000_010)], ["0.000", "0.007", "1.234", "5000.010"]);
    }
}
