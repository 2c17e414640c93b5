//! The chunked coding, against a strict reader of RFC 9112 §7.1 that has all the bytes at once.

use bytes::BytesMut;
use wecom_proxy::http1::framing::{BodyEvent, Framing};

use super::reference::{is_value_byte, parse_header_line, split_input};

const MAX_LINE_BYTES: usize = 1024;
const MAX_TRAILER_BYTES: usize = 16 * 1024;
const FREE_FRAMING_BYTES: usize = 64 * 1024;
const MAX_FRAMING_PER_DATA_BYTE: usize = 16;

/// The input is a byte that says how to cut, and what comes.
pub fn check(data: &[u8]) {
    let Some((how, wire)) = data.split_first() else { return };
    let ours = decode(split_input(*how, wire));
    let (whole, model) = (decode([wire]), reference_decode(wire));
    assert_eq!(ours.body, whole.body, "the cuts make a difference");
    assert_eq!((ours.end, &ours.rest), (whole.end, &whole.rest), "the cuts make a difference");
    assert_eq!(whole.body, model.body, "{:?}", String::from_utf8_lossy(wire));
    match model.end {
        BodyEnd::Complete => assert_eq!((whole.end, whole.rest), (BodyEnd::Complete, model.rest)),
        // Half a line may already be more than there can be of one.
        BodyEnd::Incomplete => assert!(
            whole.end == BodyEnd::Incomplete || model.line_too_long,
            "{:?}",
            String::from_utf8_lossy(wire)
        ),
        BodyEnd::Malformed => {
            assert_eq!(whole.end, BodyEnd::Malformed, "{:?}", String::from_utf8_lossy(wire))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyEnd {
    Complete,
    Incomplete,
    Malformed,
}

struct DecodedBody {
    body: Vec<u8>,
    end: BodyEnd,
    /// What follows a whole body.
    rest: Vec<u8>,
    /// What is there of the last line is longer than a line may be.
    line_too_long: bool,
}

fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> DecodedBody {
    let (mut framing, mut buffer) = (Framing::chunked(), BytesMut::new());
    let (mut body, mut end) = (Vec::new(), BodyEnd::Incomplete);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while end == BodyEnd::Incomplete {
            match framing.decode(&mut buffer) {
                Ok(BodyEvent::Data(data)) => {
                    assert!(!data.is_empty(), "an empty piece is no progress");
                    body.extend_from_slice(&data);
                }
                Ok(BodyEvent::NeedMore) => break,
                Ok(BodyEvent::End) => end = BodyEnd::Complete,
                Err(_) => end = BodyEnd::Malformed,
            }
        }
    }
    let left = if end == BodyEnd::Complete { buffer.to_vec() } else { Vec::new() };
    DecodedBody { body, end, rest: left, line_too_long: false }
}

fn reference_decode(wire: &[u8]) -> DecodedBody {
    let (mut rest, mut framing) = (wire, 0);
    let mut read =
        DecodedBody { body: Vec::new(), end: BodyEnd::Malformed, rest: Vec::new(), line_too_long: false };
    read.end = loop {
        let line = next_line(&mut rest, MAX_LINE_BYTES, &mut read.line_too_long);
        framing += line.ok().flatten().map_or(0, |line| line.len() + 2);
        match line.map(|line| line.map(parse_chunk_size)) {
            _ if is_excess_framing(framing, read.body.len()) => break BodyEnd::Malformed,
            Ok(Some(Some(0))) => {
                break skip_trailers(&mut rest, framing, &read.body, &mut read.line_too_long);
            }
            Ok(Some(Some(size))) => {
                let here = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
                read.body.extend_from_slice(&rest[..here]);
                rest = &rest[here..];
                match rest {
                    [b'\r', b'\n', ..] => (rest, framing) = (&rest[2..], framing + 2),
                    [] | [b'\r'] => break BodyEnd::Incomplete,
                    _ => break BodyEnd::Malformed,
                }
            }
            Ok(Some(None)) | Err(()) => break BodyEnd::Malformed,
            Ok(None) => break BodyEnd::Incomplete,
        }
    };
    if read.end == BodyEnd::Complete {
        read.rest = rest.to_vec();
    }
    read
}

/// Whether there is far more framing than data.
fn is_excess_framing(framing: usize, data: usize) -> bool {
    framing > FREE_FRAMING_BYTES + MAX_FRAMING_PER_DATA_BYTE * data
}

fn skip_trailers(rest: &mut &[u8], framing: usize, body: &[u8], is_long: &mut bool) -> BodyEnd {
    let mut seen = 0;
    loop {
        let line = next_line(rest, MAX_TRAILER_BYTES.saturating_sub(seen), is_long);
        let all = framing + seen + line.ok().flatten().map_or(0, |line| line.len() + 2);
        match line {
            Ok(Some([])) if !is_excess_framing(all, body.len()) => return BodyEnd::Complete,
            Ok(Some(_)) if is_excess_framing(all, body.len()) => return BodyEnd::Malformed,
            Ok(Some(line)) if parse_header_line(line).is_none() => return BodyEnd::Malformed,
            Ok(Some(line)) => seen += line.len() + 2,
            Ok(None) => return BodyEnd::Incomplete,
            Err(()) => return BodyEnd::Malformed,
        }
    }
}

/// The next line, without its CR LF; `Ok(None)` where it has no end yet.
fn next_line<'a>(rest: &mut &'a [u8], longest: usize, is_long: &mut bool) -> Result<Option<&'a [u8]>, ()> {
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        *is_long |= rest.len() > longest;
        return Ok(None);
    };
    let line = rest[..end].strip_suffix(b"\r").ok_or(())?;
    *rest = &rest[end + 1..];
    if line.len() < longest { Ok(Some(line)) } else { Err(()) }
}

/// Hexadecimal digits, and an extension that is not looked at but for what could not stand in a header's value either.
fn parse_chunk_size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line.split(|byte| *byte == b';').next()?).ok()?;
    let digits = if line.contains(&b';') { text.trim_end_matches([' ', '\t']) } else { text };
    let sound = (1..=15).contains(&digits.len())
        && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        && line.iter().all(|byte| is_value_byte(*byte));
    u64::from_str_radix(digits, 16).ok().filter(|_| sound)
}
