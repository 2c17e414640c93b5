//! The errcode of a WeCom response, against a full JSON parser: the first one at top level, however the body is formatted,
//! split or compressed. For bodies that the parser rejects, only that the split does not change the result.

use std::{fmt, io::Write};

use flate2::{Compression, write::GzEncoder};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use wecom_proxy::{
    http1::headers::Headers,
    wecom::response::{ErrcodeScanner, MAX_DECOMPRESSED_BYTES, ResponseScanner, Verdict},
};

use super::reference::split_input;

/// Input: a byte that selects the split, then a response body.
pub fn check(data: &[u8]) {
    let Some((selector, body)) = data.split_first() else { return };
    let whole = scan([body]);
    assert_eq!(scan(split_input(*selector, body)), whole, "the split changes the result");
    assert_eq!(
        scan_encoded("identity", split_input(*selector, body)),
        whole,
        "identity coding changes the result"
    );
    if let Some(expected) = reference_verdict(body) {
        assert_eq!(whole, expected, "{}", String::from_utf8_lossy(body));
    }
    if body.len() < MAX_DECOMPRESSED_BYTES {
        let zipped = gzip(body);
        assert_eq!(scan_encoded("gzip", split_input(*selector, &zipped)), whole, "gzip changes the result");
    }
    for coding in ["gzip", "deflate"] {
        let whole_encoded = scan_encoded(coding, [body]);
        assert_eq!(
            scan_encoded(coding, split_input(*selector, body)),
            whole_encoded,
            "the split changes the result for {coding}"
        );
    }
}

fn scan<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    let mut scanner = ErrcodeScanner::new();
    let mut before = Verdict::Undecided;
    for chunk in chunks {
        let verdict = scanner.feed(chunk);
        assert!(before == Verdict::Undecided || verdict == before, "{before:?} became {verdict:?}");
        before = verdict;
    }
    scanner.finish()
}

fn scan_encoded<'a>(coding: &str, chunks: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    let mut scanner = ResponseScanner::new(&Headers::from_pairs(&[("Content-Encoding", coding)]));
    for chunk in chunks {
        scanner.feed(chunk);
    }
    scanner.finish()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).and_then(|()| encoder.finish()).expect("written to memory")
}

/// The verdict of a full parser; `None` if it rejects the body, or if the number is rounded and so undecidable.
fn reference_verdict(body: &[u8]) -> Option<Verdict> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if !body.trim_ascii_start().starts_with(b"{") {
        return serde_json::from_slice::<IgnoredAny>(body).ok().and(Some(Verdict::None));
    }
    let mut parser = serde_json::Deserializer::from_slice(body);
    let first = FirstErrcode.deserialize(&mut parser).ok()?;
    parser.end().ok()?;
    match first {
        None => Some(Verdict::None),
        Some(value) if value.is_f64() => float_verdict(value.as_f64()?),
        Some(value) => Some(value.as_i64().map_or(Verdict::None, Verdict::Found)),
    }
}

/// The verdict for a float; `None` if rounding may have changed it.
fn float_verdict(float: f64) -> Option<Verdict> {
    let (magnitude, is_integer) = (float.abs(), float.fract() == 0.0);
    let tiny = magnitude > 0.0 && magnitude < 1e-300;
    // Near an integer the text may be a fraction that the parser rounded to the integer, or the reverse.
    let near_integer = (magnitude - magnitude.round()).abs() < 1e-3;
    match () {
        () if magnitude >= 1e19 => Some(Verdict::None),
        () if magnitude >= 1e12 || tiny || near_integer && !is_integer => None,
        () if is_integer => Some(Verdict::Found(float as i64)),
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
