//! The chunked transfer coding, against a strict decoder of RFC 9112, section 7.1, that has the complete input.

use bytes::BytesMut;
use wecom_proxy::http1::framing::{BodyEvent, Framing};

use super::reference::{is_value_byte, parse_header_line, split_input};

const MAX_LINE_BYTES: usize = 1024;
const MAX_TRAILER_BYTES: usize = 16 * 1024;
const FREE_FRAMING_BYTES: usize = 64 * 1024;
const MAX_FRAMING_PER_DATA_BYTE: usize = 16;

/// Input: a byte that selects the split, then the encoded body.
pub fn check(data: &[u8]) {
    let Some((selector, wire)) = data.split_first() else { return };
    let split = decode(split_input(*selector, wire));
    let (whole, reference) = (decode([wire]), reference_decode(wire));
    assert_eq!(split.body, whole.body, "the split changes the result");
    assert_eq!((split.end, &split.rest), (whole.end, &whole.rest), "the split changes the result");
    assert_eq!(whole.body, reference.body, "{:?}", String::from_utf8_lossy(wire));
    match reference.end {
        BodyEnd::Complete => assert_eq!((whole.end, whole.rest), (BodyEnd::Complete, reference.rest)),
        // An incomplete line may already exceed the limit.
        BodyEnd::Incomplete => assert!(
            whole.end == BodyEnd::Incomplete || reference.line_too_long,
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
    /// The bytes after a complete body.
    rest: Vec<u8>,
    /// Whether the incomplete last line exceeds the limit.
    line_too_long: bool,
}

fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> DecodedBody {
    let (mut framing, mut buffer) = (Framing::chunked(), BytesMut::new());
    let (mut body, mut end) = (Vec::new(), BodyEnd::Incomplete);
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        while end == BodyEnd::Incomplete {
            match framing.decode(&mut buffer) {
                Ok(BodyEvent::Data(data)) => {
                    assert!(!data.is_empty(), "an empty chunk");
                    body.extend_from_slice(&data);
                }
                Ok(BodyEvent::NeedMore) => break,
                Ok(BodyEvent::End) => end = BodyEnd::Complete,
                Err(_) => end = BodyEnd::Malformed,
            }
        }
    }
    let rest = if end == BodyEnd::Complete { buffer.to_vec() } else { Vec::new() };
    DecodedBody { body, end, rest, line_too_long: false }
}

fn reference_decode(wire: &[u8]) -> DecodedBody {
    let (mut rest, mut framing_bytes) = (wire, 0);
    let mut decoded =
        DecodedBody { body: Vec::new(), end: BodyEnd::Malformed, rest: Vec::new(), line_too_long: false };
    decoded.end = loop {
        let line = next_line(&mut rest, MAX_LINE_BYTES, &mut decoded.line_too_long);
        framing_bytes += line.ok().flatten().map_or(0, |line| line.len() + 2);
        match line.map(|line| line.map(parse_chunk_size)) {
            _ if is_excess_framing(framing_bytes, decoded.body.len()) => break BodyEnd::Malformed,
            Ok(Some(Some(0))) => {
                break skip_trailers(&mut rest, framing_bytes, &decoded.body, &mut decoded.line_too_long);
            }
            Ok(Some(Some(size))) => {
                let available = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
                decoded.body.extend_from_slice(&rest[..available]);
                rest = &rest[available..];
                match rest {
                    [b'\r', b'\n', ..] => (rest, framing_bytes) = (&rest[2..], framing_bytes + 2),
                    [] | [b'\r'] => break BodyEnd::Incomplete,
                    _ => break BodyEnd::Malformed,
                }
            }
            Ok(Some(None)) | Err(()) => break BodyEnd::Malformed,
            Ok(None) => break BodyEnd::Incomplete,
        }
    };
    if decoded.end == BodyEnd::Complete {
        decoded.rest = rest.to_vec();
    }
    decoded
}

/// Whether framing exceeds its bound relative to data; both in bytes.
fn is_excess_framing(framing_bytes: usize, data_bytes: usize) -> bool {
    framing_bytes > FREE_FRAMING_BYTES + MAX_FRAMING_PER_DATA_BYTE * data_bytes
}

fn skip_trailers(rest: &mut &[u8], framing_bytes: usize, body: &[u8], line_too_long: &mut bool) -> BodyEnd {
    let mut trailer_bytes = 0;
    loop {
        let line = next_line(rest, MAX_TRAILER_BYTES.saturating_sub(trailer_bytes), line_too_long);
        let framing_total =
            framing_bytes + trailer_bytes + line.ok().flatten().map_or(0, |line| line.len() + 2);
        match line {
            Ok(Some([])) if !is_excess_framing(framing_total, body.len()) => return BodyEnd::Complete,
            Ok(Some(_)) if is_excess_framing(framing_total, body.len()) => return BodyEnd::Malformed,
            Ok(Some(line)) if parse_header_line(line).is_none() => return BodyEnd::Malformed,
            Ok(Some(line)) => trailer_bytes += line.len() + 2,
            Ok(None) => return BodyEnd::Incomplete,
            Err(()) => return BodyEnd::Malformed,
        }
    }
}

/// The next line without its CR LF; `Ok(None)` if it is incomplete.
fn next_line<'a>(
    rest: &mut &'a [u8],
    max_bytes: usize,
    line_too_long: &mut bool,
) -> Result<Option<&'a [u8]>, ()> {
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        *line_too_long |= rest.len() > max_bytes;
        return Ok(None);
    };
    let line = rest[..end].strip_suffix(b"\r").ok_or(())?;
    *rest = &rest[end + 1..];
    if line.len() < max_bytes { Ok(Some(line)) } else { Err(()) }
}

/// The chunk size: hexadecimal digits. An extension is ignored, but must consist of bytes that a header value may contain.
fn parse_chunk_size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line.split(|byte| *byte == b';').next()?).ok()?;
    let digits = if line.contains(&b';') { text.trim_end_matches([' ', '\t']) } else { text };
    let valid = (1..=15).contains(&digits.len())
        && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        && line.iter().all(|byte| is_value_byte(*byte));
    u64::from_str_radix(digits, 16).ok().filter(|_| valid)
}
