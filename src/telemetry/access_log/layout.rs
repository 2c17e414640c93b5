//! A line's looks: the same as those of every other line of the log, whose names, order and quoting it keeps.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::{AccessLogEntry, Level, escape_json, is_invisible};

/// A field's name with what stands around it, in each layout and in the layouts' order.
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

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Text.
    Plain,
    /// Text for a terminal.
    Coloured,
    /// A JSON object a line.
    Json,
}

impl Layout {
    /// Appends the line and its end.
    pub(super) fn format(self, out: &mut Vec<u8>, time: &[u8], line: &AccessLogEntry<'_>) {
        let mut pen = Formatter { out, layout: self };
        pen.write_prefix(time, line.level);
        pen.write_fields(line);
        pen.write_suffix();
    }
}

struct Formatter<'a> {
    out: &'a mut Vec<u8>,
    layout: Layout,
}

impl Formatter<'_> {
    fn write_fields(&mut self, line: &AccessLogEntry<'_>) {
        self.write_text(field_name!("request_id"), line.request_id);
        self.write_optional_text(field_name!("trace_id"), line.trace_id);
        if let Some(peer) = line.peer {
            self.write_address(field_name!("peer"), peer);
        }
        self.write_optional_text(field_name!("client"), line.client);
        self.write_optional_text(field_name!("agent"), line.agent);
        self.write_bare(field_name!("method"), line.method);
        self.write_text(field_name!("path"), line.path);
        self.write_number(field_name!("status"), u64::from(line.status));
        self.write_optional_errcode(field_name!("errcode"), line.errcode);
        self.write_optional_errcode(field_name!("retried"), line.retried);
        self.write_optional_text(field_name!("error"), line.error);
        self.write_optional_text(field_name!("reason"), line.reason);
        if let Some(bytes) = line.request_bytes {
            self.write_number(field_name!("request_bytes"), bytes);
        }
        self.write_number(field_name!("bytes"), line.response_bytes);
        self.write_bool(field_name!("whole"), line.complete);
        self.write_milliseconds(field_name!("token_ms"), line.token_time);
        self.write_milliseconds(field_name!("upstream_ms"), line.upstream_time);
        self.write_milliseconds(field_name!("total_ms"), line.total_time);
        self.write_optional_text(field_name!("hint"), line.hint);
    }

    fn write_prefix(&mut self, time: &[u8], level: Level) {
        let [before, after]: [&[u8]; 2] = match (self.layout, level) {
            (Layout::Plain, Level::Info) => [b"", b"  INFO access: request"],
            (Layout::Plain, Level::Warn) => [b"", b"  WARN access: request"],
            (Layout::Coloured, Level::Info) => {
                [b"\x1b[2m", b"\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2maccess\x1b[0m\x1b[2m:\x1b[0m request"]
            }
            (Layout::Coloured, Level::Warn) => {
                [b"\x1b[2m", b"\x1b[0m \x1b[33m WARN\x1b[0m \x1b[2maccess\x1b[0m\x1b[2m:\x1b[0m request"]
            }
            (Layout::Json, Level::Info) => [br#"{"timestamp":""#, br#"","level":"INFO","message":"request""#],
            (Layout::Json, Level::Warn) => [br#"{"timestamp":""#, br#"","level":"WARN","message":"request""#],
        };
        for part in [before, time, after] {
            self.out.extend_from_slice(part);
        }
    }

    fn write_suffix(&mut self) {
        let end: &[u8] = if self.layout == Layout::Json { b",\"target\":\"access\"}\n" } else { b"\n" };
        self.out.extend_from_slice(end);
    }

    fn write_name(&mut self, label: &FieldName) {
        self.out.extend_from_slice(label.0[self.layout as usize].as_bytes());
    }

    fn write_optional_text(&mut self, label: &FieldName, text: Option<&str>) {
        if let Some(text) = text {
            self.write_text(label, text);
        }
    }

    fn write_text(&mut self, label: &FieldName, text: &str) {
        self.write_name(label);
        self.write_quoted(text);
    }

    /// A word that needs no quotes where the line is text.
    fn write_bare(&mut self, label: &FieldName, word: &str) {
        self.write_name(label);
        let is_word = needs_no_escaping(word) && !word.is_empty() && !word.contains(' ');
        if is_word && self.layout != Layout::Json {
            self.out.extend_from_slice(word.as_bytes());
        } else {
            self.write_quoted(word);
        }
    }

    fn write_address(&mut self, label: &FieldName, address: IpAddr) {
        self.write_name(label);
        let quote: &[u8] = if self.layout == Layout::Json { b"\"" } else { b"" };
        self.out.extend_from_slice(quote);
        match address {
            IpAddr::V4(address) => write_ipv4(self.out, address),
            // A Vec takes whatever is written.
            IpAddr::V6(address) => _ = write!(self.out, "{address}"),
        }
        self.out.extend_from_slice(quote);
    }

    fn write_number(&mut self, label: &FieldName, number: u64) {
        self.write_name(label);
        write_decimal(self.out, number, 1);
    }

    fn write_optional_errcode(&mut self, label: &FieldName, errcode: Option<i64>) {
        let Some(errcode) = errcode else { return };
        self.write_name(label);
        if errcode < 0 {
            self.out.push(b'-');
        }
        write_decimal(self.out, errcode.unsigned_abs(), 1);
    }

    fn write_bool(&mut self, label: &FieldName, flag: bool) {
        self.write_name(label);
        self.out.extend_from_slice(if flag { b"true" } else { b"false" });
    }

    /// Three decimals, the last one rounded.
    fn write_milliseconds(&mut self, label: &FieldName, duration: Duration) {
        self.write_name(label);
        let micros = u64::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u64::MAX);
        write_decimal(self.out, micros / 1000, 1);
        self.out.push(b'.');
        write_decimal(self.out, micros % 1000, 3);
    }

    /// Between quotes, with escapes for whatever could end the line, the quotes or a terminal's patience.
    fn write_quoted(&mut self, text: &str) {
        if !needs_no_escaping(text) {
            return self.escaped(text);
        }
        self.out.push(b'"');
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'"');
    }

    /// Apart from the plain case, which would save the registers that only this one uses.
    #[cold]
    #[inline(never)]
    fn escaped(&mut self, text: &str) {
        match self.layout {
            Layout::Json => write_json_string(self.out, text),
            _ => write_debug_string(self.out, text),
        }
    }
}

/// Bytes judged at once: a register of SSE2.
const CHUNK: usize = 16;

/// Whether a text is the same within quotes as without. Looks at every byte, which is faster than to stop at one; the last
/// chunk overlaps the one before it, for single bytes cost more than a chunk.
fn needs_no_escaping(text: &str) -> bool {
    let bytes = text.as_bytes();
    match bytes.last_chunk::<CHUNK>() {
        Some(last) => bytes
            .as_chunks()
            .0
            .iter()
            .fold(are_plain(last), |so_far, chunk: &[u8; CHUNK]| so_far & are_plain(chunk)),
        None => are_plain(bytes),
    }
}

#[inline(always)]
fn are_plain(bytes: &[u8]) -> bool {
    let plain = |byte: u8| matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\');
    bytes.iter().fold(true, |so_far, byte| so_far & plain(*byte))
}

/// As Rust's `Debug` writes it, which does not escape all that is invisible.
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
        write_decimal(out, u64::from(octet), 1);
    }
}

/// A number with so many digits at least.
fn write_decimal(out: &mut Vec<u8>, number: u64, least: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number).as_bytes();
    out.extend((digits.len()..least).map(|_| b'0'));
    out.extend_from_slice(digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_plain_only_if_every_byte_is() {
        for length in 0..50 {
            let text = "a".repeat(length);
            assert!(needs_no_escaping(&text), "{length}");
            for at in 0..length {
                for odd in ["\"", "\\", "\n", "\x7f", "\u{e9}"] {
                    let other = [&text[..at], odd, &text[at + 1..]].concat();
                    assert!(!needs_no_escaping(&other), "{at} of {length}");
                }
            }
        }
    }
}
