//! The chunked coding, against a strict reader of RFC 9112 §7.1 that has all the bytes at once.

use bytes::BytesMut;
use wecom_proxy::framing::{Framing, Step};

use super::model::{header_line, is_value_byte, pieces};

const LONGEST_LINE: usize = 1024;
const MOST_TRAILERS: usize = 16 * 1024;
const FREE_FRAMING: usize = 64 * 1024;
const FRAMING_PER_BYTE: usize = 16;

/// The input is a byte that says how to cut, and what comes.
pub fn check(data: &[u8]) {
    let Some((how, wire)) = data.split_first() else { return };
    let ours = decoded(pieces(*how, wire));
    let (whole, model) = (decoded([wire]), read(wire));
    assert_eq!(ours.body, whole.body, "the cuts make a difference");
    assert_eq!((ours.end, &ours.left), (whole.end, &whole.left), "the cuts make a difference");
    assert_eq!(whole.body, model.body, "{:?}", String::from_utf8_lossy(wire));
    match model.end {
        End::Whole => assert_eq!((whole.end, whole.left), (End::Whole, model.left)),
        // Half a line may already be more than there can be of one.
        End::Cut => assert!(whole.end == End::Cut || model.is_long, "{:?}", String::from_utf8_lossy(wire)),
        End::Broken => assert_eq!(whole.end, End::Broken, "{:?}", String::from_utf8_lossy(wire)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Cut,
    Broken,
}

struct Read {
    body: Vec<u8>,
    end: End,
    /// What follows a whole body.
    left: Vec<u8>,
    /// What is there of the last line is longer than a line may be.
    is_long: bool,
}

fn decoded<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let (mut framing, mut buffer) = (Framing::chunked(), BytesMut::new());
    let (mut body, mut end) = (Vec::new(), End::Cut);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while end == End::Cut {
            match framing.step(&mut buffer) {
                Ok(Step::Data(data)) => {
                    assert!(!data.is_empty(), "an empty piece is no progress");
                    body.extend_from_slice(&data);
                }
                Ok(Step::Starved) => break,
                Ok(Step::End) => end = End::Whole,
                Err(_) => end = End::Broken,
            }
        }
    }
    let left = if end == End::Whole { buffer.to_vec() } else { Vec::new() };
    Read { body, end, left, is_long: false }
}

fn read(wire: &[u8]) -> Read {
    let (mut rest, mut framing) = (wire, 0);
    let mut read = Read { body: Vec::new(), end: End::Broken, left: Vec::new(), is_long: false };
    read.end = loop {
        let line = line(&mut rest, LONGEST_LINE, &mut read.is_long);
        framing += line.ok().flatten().map_or(0, |line| line.len() + 2);
        match line.map(|line| line.map(size)) {
            _ if is_too_much(framing, read.body.len()) => break End::Broken,
            Ok(Some(Some(0))) => break trailers(&mut rest, framing, &read.body, &mut read.is_long),
            Ok(Some(Some(size))) => {
                let here = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
                read.body.extend_from_slice(&rest[..here]);
                rest = &rest[here..];
                match rest {
                    [b'\r', b'\n', ..] => (rest, framing) = (&rest[2..], framing + 2),
                    [] | [b'\r'] => break End::Cut,
                    _ => break End::Broken,
                }
            }
            Ok(Some(None)) | Err(()) => break End::Broken,
            Ok(None) => break End::Cut,
        }
    };
    if read.end == End::Whole {
        read.left = rest.to_vec();
    }
    read
}

/// Whether there is far more framing than data.
fn is_too_much(framing: usize, data: usize) -> bool {
    framing > FREE_FRAMING + FRAMING_PER_BYTE * data
}

fn trailers(rest: &mut &[u8], framing: usize, body: &[u8], is_long: &mut bool) -> End {
    let mut seen = 0;
    loop {
        let line = line(rest, MOST_TRAILERS.saturating_sub(seen), is_long);
        let all = framing + seen + line.ok().flatten().map_or(0, |line| line.len() + 2);
        match line {
            Ok(Some([])) if !is_too_much(all, body.len()) => return End::Whole,
            Ok(Some(_)) if is_too_much(all, body.len()) => return End::Broken,
            Ok(Some(line)) if header_line(line).is_none() => return End::Broken,
            Ok(Some(line)) => seen += line.len() + 2,
            Ok(None) => return End::Cut,
            Err(()) => return End::Broken,
        }
    }
}

/// The next line, without its CR LF; `Ok(None)` where it has no end yet.
fn line<'a>(rest: &mut &'a [u8], longest: usize, is_long: &mut bool) -> Result<Option<&'a [u8]>, ()> {
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        *is_long |= rest.len() > longest;
        return Ok(None);
    };
    let line = rest[..end].strip_suffix(b"\r").ok_or(())?;
    *rest = &rest[end + 1..];
    if line.len() < longest { Ok(Some(line)) } else { Err(()) }
}

/// Hexadecimal digits, and an extension that is not looked at but for what could not stand in a header's value either.
fn size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line.split(|byte| *byte == b';').next()?).ok()?;
    let digits = if line.contains(&b';') { text.trim_end_matches([' ', '\t']) } else { text };
    let sound = (1..=15).contains(&digits.len())
        && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        && line.iter().all(|byte| is_value_byte(*byte));
    u64::from_str_radix(digits, 16).ok().filter(|_| sound)
}
