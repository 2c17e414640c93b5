//! Formats a line exactly as tracing-subscriber formats other log lines: same names, order and quoting.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::{AccessLogEntry, Level, escape_json, is_invisible};
use crate::time::milliseconds::put_milliseconds;

/// A field's name with its delimiters, for each [`Layout`] in its order.
struct FieldName([&'static str; 3]);

macro_rules! field_name {
    ($name:literal) => {
        &FieldName([
            concat!(" ", $name, "="),
            concat!(" \x1b[3m", $name, "\x1b[0m\x1b[2m=\x1b[0m"),
            concat!(",\"", $name, "\":"),
        ])
    };
}

/// The format of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Text.
    Plain,
    /// Text for a terminal.
    Coloured,
    /// One JSON object per line.
    Json,
}

impl Layout {
    /// Appends the line and its newline.
    pub(super) fn format(self, out: &mut Vec<u8>, time: &[u8], entry: &AccessLogEntry<'_>) {
        match self {
            Self::Plain => Formatter::<PLAIN>(out).write_line(time, entry),
            Self::Coloured => Formatter::<COLOURED>(out).write_line(time, entry),
            Self::Json => Formatter::<JSON>(out).write_line(time, entry),
        }
    }
}

const PLAIN: usize = Layout::Plain as usize;
const COLOURED: usize = Layout::Coloured as usize;
const JSON: usize = Layout::Json as usize;

/// Compiled for each layout, so that the names of the fields are copied as constants.
struct Formatter<'a, const LAYOUT: usize>(&'a mut Vec<u8>);

impl<const LAYOUT: usize> Formatter<'_, LAYOUT> {
    fn write_line(&mut self, time: &[u8], entry: &AccessLogEntry<'_>) {
        self.write_prefix(time, entry.level);
        self.write_fields(entry);
        self.write_suffix();
    }

    fn write_fields(&mut self, entry: &AccessLogEntry<'_>) {
        self.write_text(field_name!("request_id"), entry.request_id);
        self.write_optional_text(field_name!("trace_id"), entry.trace_id);
        if let Some(peer) = entry.peer {
            self.write_address(field_name!("peer"), peer);
        }
        self.write_optional_text(field_name!("client"), entry.client);
        self.write_optional_text(field_name!("agent"), entry.agent);
        self.write_optional_text(field_name!("upstream"), entry.upstream);
        self.write_bare(field_name!("method"), entry.method);
        self.write_text(field_name!("path"), entry.path);
        self.write_number(field_name!("status"), u64::from(entry.status));
        // The proxy's own errors have a kind.
        if entry.status >= 500 && entry.error.is_none() {
            self.write_text(field_name!("by"), "wecom");
        }
        self.write_optional_errcode(field_name!("errcode"), entry.errcode);
        self.write_optional_errcode(field_name!("retried"), entry.retried);
        self.write_optional_text(field_name!("error"), entry.error);
        self.write_optional_text(field_name!("reason"), entry.reason);
        if let Some(bytes) = entry.request_bytes {
            self.write_number(field_name!("request_bytes"), bytes);
        }
        self.write_number(field_name!("bytes"), entry.response_bytes);
        self.write_bool(field_name!("whole"), entry.complete);
        self.write_milliseconds(field_name!("token_ms"), entry.token_time);
        self.write_milliseconds(field_name!("upstream_ms"), entry.upstream_time);
        self.write_milliseconds(field_name!("total_ms"), entry.total_time);
        self.write_optional_text(field_name!("hint"), entry.hint);
    }

    fn write_prefix(&mut self, time: &[u8], level: Level) {
        let [before, after]: [&[u8]; 2] = match (LAYOUT, level) {
            (PLAIN, Level::Info) => [b"", b"  INFO access: request"],
            (PLAIN, Level::Warn) => [b"", b"  WARN access: request"],
            (COLOURED, Level::Info) => {
                [b"\x1b[2m", b"\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2maccess\x1b[0m\x1b[2m:\x1b[0m request"]
            }
            (COLOURED, Level::Warn) => {
                [b"\x1b[2m", b"\x1b[0m \x1b[33m WARN\x1b[0m \x1b[2maccess\x1b[0m\x1b[2m:\x1b[0m request"]
            }
            (_, Level::Info) => [br#"{"timestamp":""#, br#"","level":"INFO","message":"request""#],
            (_, Level::Warn) => [br#"{"timestamp":""#, br#"","level":"WARN","message":"request""#],
        };
        for part in [before, time, after] {
            self.0.extend_from_slice(part);
        }
    }

    fn write_suffix(&mut self) {
        let end: &[u8] = if LAYOUT == JSON { b",\"target\":\"access\"}\n" } else { b"\n" };
        self.0.extend_from_slice(end);
    }

    fn write_name(&mut self, name: &FieldName) {
        self.0.extend_from_slice(name.0[LAYOUT].as_bytes());
    }

    fn write_optional_text(&mut self, name: &FieldName, text: Option<&str>) {
        if let Some(text) = text {
            self.write_text(name, text);
        }
    }

    fn write_text(&mut self, name: &FieldName, text: &str) {
        self.write_name(name);
        self.write_quoted(text);
    }

    /// A word without quotes in a text line, unless it needs them.
    fn write_bare(&mut self, name: &FieldName, word: &str) {
        self.write_name(name);
        let is_word = needs_no_escaping(word) && !word.is_empty() && !word.contains(' ');
        if is_word && LAYOUT != JSON {
            self.0.extend_from_slice(word.as_bytes());
        } else {
            self.write_quoted(word);
        }
    }

    fn write_address(&mut self, name: &FieldName, address: IpAddr) {
        self.write_name(name);
        let quote: &[u8] = if LAYOUT == JSON { b"\"" } else { b"" };
        self.0.extend_from_slice(quote);
        match address {
            IpAddr::V4(address) => write_ipv4(self.0, address),
            // Writing to a Vec cannot fail.
            IpAddr::V6(address) => _ = write!(self.0, "{address}"),
        }
        self.0.extend_from_slice(quote);
    }

    fn write_number(&mut self, name: &FieldName, number: u64) {
        self.write_name(name);
        write_decimal(self.0, number);
    }

    fn write_optional_errcode(&mut self, name: &FieldName, errcode: Option<i64>) {
        let Some(errcode) = errcode else { return };
        self.write_name(name);
        if errcode < 0 {
            self.0.push(b'-');
        }
        write_decimal(self.0, errcode.unsigned_abs());
    }

    fn write_bool(&mut self, name: &FieldName, flag: bool) {
        self.write_name(name);
        self.0.extend_from_slice(if flag { b"true" } else { b"false" });
    }

    /// Milliseconds, rounded to three decimals.
    fn write_milliseconds(&mut self, name: &FieldName, duration: Duration) {
        self.write_name(name);
        put_milliseconds(self.0, duration);
    }

    /// A quoted text, with escapes for quotes, line ends and control characters.
    fn write_quoted(&mut self, text: &str) {
        if !needs_no_escaping(text) {
            return self.write_escaped(text);
        }
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
    }

    /// Not inlined, so that the common case does not save the registers that only this one uses.
    #[cold]
    #[inline(never)]
    fn write_escaped(&mut self, text: &str) {
        if LAYOUT == JSON { write_json_string(self.0, text) } else { write_debug_string(self.0, text) }
    }
}

/// The bytes checked at once: an SSE2 register.
const CHUNK_BYTES: usize = 16;
/// Half of it, for shorter texts.
const HALF_CHUNK_BYTES: usize = CHUNK_BYTES / 2;

/// Whether a text needs no escapes in quotes. Checks every byte without an early exit, which lets LLVM vectorise. The
/// last chunk overlaps the one before it, because single bytes cost more than a chunk.
fn needs_no_escaping(text: &str) -> bool {
    let bytes = text.as_bytes();
    match bytes.last_chunk::<CHUNK_BYTES>() {
        Some(last) => bytes
            .as_chunks()
            .0
            .iter()
            .fold(are_plain(last), |all_plain, chunk: &[u8; CHUNK_BYTES]| all_plain & are_plain(chunk)),
        None => match (bytes.first_chunk::<HALF_CHUNK_BYTES>(), bytes.last_chunk::<HALF_CHUNK_BYTES>()) {
            (Some(first), Some(last)) => are_plain(first) & are_plain(last),
            _ => are_plain(bytes),
        },
    }
}

#[inline(always)]
fn are_plain(bytes: &[u8]) -> bool {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\');
    bytes.iter().fold(true, |all_plain, byte| all_plain & is_plain(*byte))
}

/// Writes `text` as Rust's `Debug`, and escapes the invisible characters that `Debug` does not.
fn write_debug_string(out: &mut Vec<u8>, text: &str) {
    for char in format!("{text:?}").chars() {
        if is_invisible(char) {
            let _ = write!(out, "{}", char.escape_unicode());
        } else {
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

fn write_json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for char in text.chars() {
        match char {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            char if is_invisible(char) => escape_json(out, char),
            char => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

fn write_ipv4(out: &mut Vec<u8>, address: Ipv4Addr) {
    for (nth, octet) in address.octets().into_iter().enumerate() {
        if nth > 0 {
            out.push(b'.');
        }
        write_decimal(out, u64::from(octet));
    }
}

fn write_decimal(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_no_escaping_checks_every_byte() {
        for length in 0..50 {
            let text = "a".repeat(length);
            assert!(needs_no_escaping(&text), "{length}");
            for at in 0..length {
                for special in ["\"", "\\", "\n", "\x7f", "\u{e9}"] {
                    let other = [&text[..at], special, &text[at + 1..]].concat();
                    assert!(!needs_no_escaping(&other), "{at} of {length}");
                }
            }
        }
    }
}
