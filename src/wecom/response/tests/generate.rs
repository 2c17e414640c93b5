//! Generators for the property tests: JSON in any form the grammar allows, split anywhere, compressed, and the
//! verdict of a full parser to compare with.

use std::fmt::Write as _;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::*;
use serde::de::{Deserializer as _, Error, IgnoredAny, MapAccess, Visitor};

use super::{ErrcodeScanner, ResponseScanner, Verdict};

/// A JSON value with its members in order, equal keys included, and its numbers as they are spelled.
#[derive(Clone, Debug)]
pub(crate) enum JsonValue {
    Scalar(&'static str),
    Text(String),
    Array(Vec<JsonValue>),
    Object(Vec<(String, JsonValue)>),
}

const SCALARS: &[&str] = &[
    "0",
    "-1",
    "40014",
    "42001",
    "4.0014e4",
    "400140E-1",
    "40014.0",
    "-0",
    "0.5",
    "1e3",
    "1E+19",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "40014.5",
    "true",
    "false",
    "null",
];

pub(crate) fn json() -> impl Strategy<Value = JsonValue> {
    let leaf = prop_oneof![
        3 => prop::sample::select(SCALARS).prop_map(JsonValue::Scalar),
        1 => text().prop_map(JsonValue::Text),
    ];
    let nested = leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..5).prop_map(JsonValue::Array), object(inner)]
    });
    prop_oneof![9 => object(nested.clone()), 1 => nested]
}

fn object(value: impl Strategy<Value = JsonValue>) -> impl Strategy<Value = JsonValue> {
    let key = prop_oneof![
        2 => Just("errcode".to_owned()),
        2 => prop::sample::select(&["errmsg", "errcod", "errcodes", "Errcode", "", "errcode\0"][..]).prop_map(str::to_owned),
        1 => text(),
    ];
    prop::collection::vec((key, value), 0..5).prop_map(JsonValue::Object)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just("{\"errcode\":40014}".to_owned()), "\\PC{0,6}", "[\"\\\\/{}:,\n\t\0e😀]{0,6}"]
}

/// Pseudo-random numbers from a seed.
pub(crate) struct JsonRng(u64);

impl JsonRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

/// Writes `json` with random white space, escapes and byte order mark.
pub(crate) fn render(json: &JsonValue, rng: &mut JsonRng) -> Vec<u8> {
    let mut out = String::new();
    if rng.below(8) == 0 {
        out.push('\u{feff}');
    }
    let spaced = rng.below(2) == 0;
    write_value(json, spaced, rng, &mut out);
    write_space(spaced, rng, &mut out);
    out.into_bytes()
}

fn write_value(json: &JsonValue, spaced: bool, rng: &mut JsonRng, out: &mut String) {
    write_space(spaced, rng, out);
    match json {
        JsonValue::Scalar(text) => out.push_str(text),
        JsonValue::Text(text) => write_text(text, rng, out),
        JsonValue::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_value(item, spaced, rng, out);
            }
            write_space(spaced, rng, out);
            out.push(']');
        }
        JsonValue::Object(members) => {
            out.push('{');
            for (at, (key, value)) in members.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_space(spaced, rng, out);
                write_text(key, rng, out);
                write_space(spaced, rng, out);
                out.push(':');
                write_value(value, spaced, rng, out);
            }
            write_space(spaced, rng, out);
            out.push('}');
        }
    }
    write_space(spaced, rng, out);
}

fn write_space(spaced: bool, rng: &mut JsonRng, out: &mut String) {
    if spaced {
        out.extend((0..rng.below(3)).map(|_| [' ', '\n', '\t', '\r'][rng.below(4)]));
    }
}

fn write_text(text: &str, rng: &mut JsonRng, out: &mut String) {
    let often = [1, 2, 8][rng.below(3)]; // a larger number means fewer needless escapes
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            '\n' => out.push_str("\\n"),
            '/' => out.push_str("\\/"),
            _ if char < ' ' || rng.below(often + 1) == 1 => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let lower = rng.below(2) == 0;
                    let _ = if lower { write!(out, "\\u{unit:04x}") } else { write!(out, "\\u{unit:04X}") };
                }
            }
            _ => out.push(char),
        }
    }
    out.push('"');
}

/// Splits `bytes` into chunks of random length, empty ones among them.
pub(crate) fn random_chunks<'a>(bytes: &'a [u8], rng: &mut JsonRng) -> Vec<&'a [u8]> {
    let longest = [2, 8, 64][rng.below(3)];
    let (mut chunks, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rng.below(longest).min(rest.len()));
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

/// The final verdict on a body in chunks.
pub(crate) fn scan_chunks<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    let mut scanner = ErrcodeScanner::new();
    for chunk in chunks {
        scanner.feed(chunk);
    }
    scanner.finish()
}

/// The final verdict on an encoded body in chunks.
pub(crate) fn scan_encoded_chunks<'a>(encoding: &str, chunks: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    let mut scanner =
        ResponseScanner::new(&crate::http1::headers::Headers::from_pairs(&[("Content-Encoding", encoding)]));
    for chunk in chunks {
        scanner.feed(chunk);
    }
    scanner.finish()
}

/// The verdict of a full parser; `None` if it rejects the body, or its number is not exact enough to compare.
pub(crate) fn reference_verdict(body: &[u8]) -> Option<Verdict> {
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    let mut parser = serde_json::Deserializer::from_slice(body);
    let verdict = match parser.deserialize_map(FirstErrcode) {
        Ok(verdict) => verdict?,
        // A valid value that is not an object has no errcode.
        Err(_) => serde_json::from_slice::<IgnoredAny>(body).ok().and(Some(Verdict::None))?,
    };
    let object = body.trim_ascii_start().starts_with(b"{");
    if object {
        parser.end().ok()?;
    }
    Some(verdict)
}

struct FirstErrcode;

impl<'de> Visitor<'de> for FirstErrcode {
    type Value = Option<Verdict>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut first = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "errcode" if first.is_none() => first = Some(map.next_value::<serde_json::Value>()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let Some(value) = first else { return Ok(Some(Verdict::None)) };
        if value.is_f64() {
            return exact_verdict(value.as_f64().ok_or_else(|| A::Error::custom("no number"))?)
                .map_or(Ok(None), |v| Ok(Some(v)));
        }
        Ok(Some(value.as_i64().map_or(Verdict::None, Verdict::Found)))
    }
}

/// A float's verdict, if rounding cannot have changed it.
fn exact_verdict(float: f64) -> Option<Verdict> {
    match float {
        _ if float.abs() >= 1e19 => Some(Verdict::None),
        _ if float.abs() >= 9e15 => None,
        _ if float.fract() == 0.0 => Some(Verdict::Found(float as i64)),
        _ => Some(Verdict::None),
    }
}

pub(crate) fn gzip_compressed(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zlib_compressed(text: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn deflate_compressed(text: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}
