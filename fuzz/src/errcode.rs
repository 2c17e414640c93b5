//! The errcode of a reply, against a full JSON parser: the first top-level one, however the reply is written, cut or
//! compressed. Of what the parser does not accept, only that the cuts make no difference.

use std::{fmt, io::Write};

use flate2::{Compression, write::GzEncoder};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use wecom_proxy::{
    http1::headers::Headers,
    wecom::response::{ErrcodeScanner, MAX_DECOMPRESSED_BYTES, ResponseScanner, Verdict},
};

use super::reference::split_input;

/// The input is a byte that says how to cut, and a reply.
pub fn check(data: &[u8]) {
    let Some((how, reply)) = data.split_first() else { return };
    let whole = scan([reply]);
    assert_eq!(scan(split_input(*how, reply)), whole, "the cuts make a difference");
    assert_eq!(scan_encoded("identity", split_input(*how, reply)), whole, "not looked through as it is");
    if let Some(expected) = reference_verdict(reply) {
        assert_eq!(whole, expected, "{}", String::from_utf8_lossy(reply));
    }
    if reply.len() < MAX_DECOMPRESSED_BYTES {
        let zipped = gzip(reply);
        assert_eq!(scan_encoded("gzip", split_input(*how, &zipped)), whole, "gzip makes a difference");
    }
    for coding in ["gzip", "deflate"] {
        let damaged = scan_encoded(coding, [reply]);
        assert_eq!(
            scan_encoded(coding, split_input(*how, reply)),
            damaged,
            "the cuts make a difference in {coding}"
        );
    }
}

fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    let mut scanner = ErrcodeScanner::new();
    let mut before = Verdict::Undecided;
    for piece in pieces {
        let verdict = scanner.feed(piece);
        assert!(before == Verdict::Undecided || verdict == before, "{before:?} became {verdict:?}");
        before = verdict;
    }
    scanner.finish()
}

fn scan_encoded<'a>(coding: &str, pieces: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    let mut scanner = ResponseScanner::new(&Headers::from_pairs(&[("Content-Encoding", coding)]));
    for piece in pieces {
        scanner.feed(piece);
    }
    scanner.finish()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).and_then(|()| encoder.finish()).expect("memory takes it")
}

/// What a full parser finds; `None` where it does not accept the reply, or its number is not exact enough to judge by.
fn reference_verdict(reply: &[u8]) -> Option<Verdict> {
    let reply = reply.strip_prefix(b"\xef\xbb\xbf").unwrap_or(reply);
    if !reply.trim_ascii_start().starts_with(b"{") {
        return serde_json::from_slice::<IgnoredAny>(reply).ok().and(Some(Verdict::None));
    }
    let mut parser = serde_json::Deserializer::from_slice(reply);
    let first = FirstErrcode.deserialize(&mut parser).ok()?;
    parser.end().ok()?;
    match first {
        None => Some(Verdict::None),
        Some(value) if value.is_f64() => float_verdict(value.as_f64()?),
        Some(value) => Some(value.as_i64().map_or(Verdict::None, Verdict::Found)),
    }
}

/// A float's verdict, where rounding cannot have made it.
fn float_verdict(float: f64) -> Option<Verdict> {
    let (size, whole) = (float.abs(), float.fract() == 0.0);
    let tiny = size > 0.0 && size < 1e-300;
    // Near a whole number the text may have said something else than what was rounded to.
    let near = (size - size.round()).abs() < 1e-3;
    match () {
        () if size >= 1e19 => Some(Verdict::None),
        () if size >= 1e12 || tiny || near && !whole => None,
        () if whole => Some(Verdict::Found(float as i64)),
        () => Some(Verdict::None),
    }
}

/// The first `errcode` of an object.
struct FirstErrcode;

impl<'de> DeserializeSeed<'de> for FirstErrcode {
    type Value = Option<serde_json::Value>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FirstErrcode {
    type Value = Option<serde_json::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut first = None;
        while let Some(key) = map.next_key::<String>()? {
            match &*key {
                "errcode" if first.is_none() => first = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(first)
    }
}
