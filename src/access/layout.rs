//! A line's looks: the same as those of every other line of the log, whose names, order and quoting it keeps.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::{Level, Line, escape_json, is_invisible};

/// A field's name with what stands around it, in each layout and in the layouts' order.
struct Label([&'static str; 3]);

macro_rules! label {
    ($name:literal) => {
        &Label([
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
    pub(super) fn write(self, out: &mut Vec<u8>, time: &[u8], line: &Line<'_>) {
        let mut pen = Pen { out, layout: self };
        pen.begin(time, line.level);
        pen.fields(line);
        pen.end();
    }
}

struct Pen<'a> {
    out: &'a mut Vec<u8>,
    layout: Layout,
}

impl Pen<'_> {
    fn fields(&mut self, line: &Line<'_>) {
        self.text(label!("request_id"), line.request_id);
        self.maybe_text(label!("trace_id"), line.trace_id);
        if let Some(peer) = line.peer {
            self.address(label!("peer"), peer);
        }
        self.maybe_text(label!("client"), line.client);
        self.maybe_text(label!("agent"), line.agent);
        self.word(label!("method"), line.method);
        self.text(label!("path"), line.path);
        self.number(label!("status"), u64::from(line.status));
        self.maybe_errcode(label!("errcode"), line.errcode);
        self.maybe_errcode(label!("retried"), line.retried);
        self.maybe_text(label!("error"), line.error);
        self.maybe_text(label!("reason"), line.reason);
        if let Some(bytes) = line.request_bytes {
            self.number(label!("request_bytes"), bytes);
        }
        self.number(label!("bytes"), line.bytes);
        self.flag(label!("whole"), line.whole);
        self.milliseconds(label!("token_ms"), line.token);
        self.milliseconds(label!("upstream_ms"), line.upstream);
        self.milliseconds(label!("total_ms"), line.total);
        self.maybe_text(label!("hint"), line.hint);
    }

    fn begin(&mut self, time: &[u8], level: Level) {
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

    fn end(&mut self) {
        let end: &[u8] = if self.layout == Layout::Json { b",\"target\":\"access\"}\n" } else { b"\n" };
        self.out.extend_from_slice(end);
    }

    fn label(&mut self, label: &Label) {
        self.out.extend_from_slice(label.0[self.layout as usize].as_bytes());
    }

    fn maybe_text(&mut self, label: &Label, text: Option<&str>) {
        if let Some(text) = text {
            self.text(label, text);
        }
    }

    fn text(&mut self, label: &Label, text: &str) {
        self.label(label);
        self.quoted(text);
    }

    /// A word that needs no quotes where the line is text.
    fn word(&mut self, label: &Label, word: &str) {
        self.label(label);
        let is_word = is_plain(word) && !word.is_empty() && !word.contains(' ');
        if is_word && self.layout != Layout::Json {
            self.out.extend_from_slice(word.as_bytes());
        } else {
            self.quoted(word);
        }
    }

    fn address(&mut self, label: &Label, address: IpAddr) {
        self.label(label);
        let quote: &[u8] = if self.layout == Layout::Json { b"\"" } else { b"" };
        self.out.extend_from_slice(quote);
        match address {
            IpAddr::V4(address) => dotted(self.out, address),
            // A Vec takes whatever is written.
            IpAddr::V6(address) => _ = write!(self.out, "{address}"),
        }
        self.out.extend_from_slice(quote);
    }

    fn number(&mut self, label: &Label, number: u64) {
        self.label(label);
        decimal(self.out, number, 1);
    }

    fn maybe_errcode(&mut self, label: &Label, errcode: Option<i64>) {
        let Some(errcode) = errcode else { return };
        self.label(label);
        if errcode < 0 {
            self.out.push(b'-');
        }
        decimal(self.out, errcode.unsigned_abs(), 1);
    }

    fn flag(&mut self, label: &Label, flag: bool) {
        self.label(label);
        self.out.extend_from_slice(if flag { b"true" } else { b"false" });
    }

    /// Three decimals, the last one rounded.
    fn milliseconds(&mut self, label: &Label, duration: Duration) {
        self.label(label);
        let micros = u64::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u64::MAX);
        decimal(self.out, micros / 1000, 1);
        self.out.push(b'.');
        decimal(self.out, micros % 1000, 3);
    }

    /// Between quotes, with escapes for whatever could end the line, the quotes or a terminal's patience.
    fn quoted(&mut self, text: &str) {
        if !is_plain(text) {
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
            Layout::Json => json_string(self.out, text),
            _ => text_string(self.out, text),
        }
    }
}

/// Bytes judged at once: a register of SSE2.
const CHUNK: usize = 16;

/// Whether a text is the same within quotes as without. Looks at every byte, which is faster than to stop at one; the last
/// chunk overlaps the one before it, for single bytes cost more than a chunk.
fn is_plain(text: &str) -> bool {
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
fn text_string(out: &mut Vec<u8>, text: &str) {
    for char in format!("{text:?}").chars() {
        if is_invisible(char) {
            let _ = write!(out, "{}", char.escape_unicode());
        } else {
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

fn json_string(out: &mut Vec<u8>, text: &str) {
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

fn dotted(out: &mut Vec<u8>, address: Ipv4Addr) {
    for (nth, octet) in address.octets().into_iter().enumerate() {
        if nth > 0 {
            out.push(b'.');
        }
        decimal(out, u64::from(octet), 1);
    }
}

/// A number with so many digits at least.
fn decimal(out: &mut Vec<u8>, number: u64, least: usize) {
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
            assert!(is_plain(&text), "{length}");
            for at in 0..length {
                for odd in ["\"", "\\", "\n", "\x7f", "\u{e9}"] {
                    let other = [&text[..at], odd, &text[at + 1..]].concat();
                    assert!(!is_plain(&other), "{at} of {length}");
                }
            }
        }
    }
}
