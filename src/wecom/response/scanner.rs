//! Finds the top-level `errcode` of a streamed JSON response: no allocation, constant memory, no I/O.
//!
//! Ours: serde_json reads complete texts only, so each response would be kept back to its end. An errcode at the beginning
//! takes 378 instructions of the 24,500 of a small request, one behind 64 KiB nine for each byte.

use memchr::memchr2;

use self::nesting::NestingStack;
use super::number::{JsonNumber, NumberStep};

mod fast_path;
mod json_tokens;
mod nesting;
#[cfg(test)]
mod tests;

/// Deepest nesting that is scanned; each level takes one bit. A deeper response counts as one without an
/// errcode.
pub const MAX_DEPTH: usize = 1024;

/// Shorter chunks skip the fast path, because they rarely contain a whole key with its value.
const MIN_FAST_PATH_BYTES: usize = 16;

const KEY: &[u8] = b"errcode";
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// What is known of a response's errcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More of the body is needed.
    Undecided,
    /// The top-level errcode.
    Found(i64),
    /// There is none, whatever follows.
    None,
}

/// Finds the top-level `errcode` of a JSON object that arrives in chunks; chunk boundaries make no difference.
///
/// - The **first** `errcode` key of the top-level object decides, escapes in it resolved. (A parser in which the
///   last of two equal keys wins has to read the whole body; WeCom never sends two.) It counts if its value is a
///   number that is mathematically an integer and fits an `i64`: `40014`, `4.0014e4` and `40014.0` are the same,
///   `"40014"` is none.
/// - A found errcode is final, even if the body is malformed after it. A body that is malformed before it has no
///   errcode: brackets, commas, colons, literals, numbers, escapes and control characters are checked as in RFC
///   8259, nesting up to [`MAX_DEPTH`]. Not checked: UTF-8, and whether surrogate escapes come in pairs; neither
///   can hide or forge a key.
/// - A byte order mark and white space may lead. A body that is no object is decided at its first byte, an
///   object without an errcode at its closing brace.
#[derive(Clone, Debug)]
pub struct ErrcodeScanner {
    verdict: Verdict,
    state: State,
    nesting: NestingStack,
    /// Whether the string being scanned is a key.
    in_key: bool,
    /// How many bytes of `errcode` the key being scanned has matched; `None` if it is another key, a nested one,
    /// or no key.
    key_matched: Option<usize>,
    /// Whether the next value, or the number being scanned, is the errcode's.
    is_errcode_value: bool,
    number: JsonNumber,
}

/// The state in the grammar: what may come next.
#[derive(Clone, Copy, Debug)]
enum State {
    Bom(usize),
    Start,
    KeyOrEnd,
    Key,
    Colon,
    Value,
    ValueOrEnd,
    CommaOrEnd,
    String,
    Escape,
    Unicode { left: u8, code: u32 },
    Number,
    Literal(&'static [u8]),
}

impl ErrcodeScanner {
    /// A scanner at the start of a body.
    pub const fn new() -> Self {
        Self {
            verdict: Verdict::Undecided,
            state: State::Bom(0),
            nesting: NestingStack::new(),
            in_key: false,
            key_matched: None,
            is_errcode_value: false,
            number: JsonNumber::new(),
        }
    }

    /// The verdict so far.
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Scans the next chunk of the body. Once there is a verdict, it stays, and further chunks cost nothing.
    pub fn feed(&mut self, bytes: &[u8]) -> Verdict {
        let mut rest = self.skip_common_prefix(bytes);
        while let (Verdict::Undecided, Some((&byte, after))) = (self.verdict, rest.split_first()) {
            if let State::Key | State::Value | State::CommaOrEnd = self.state
                && rest.len() >= MIN_FAST_PATH_BYTES
                && !self.is_errcode_value
            {
                let consumed = self.scan_fast(rest);
                if consumed > 0 {
                    rest = &rest[consumed..];
                    continue;
                }
            }
            rest = match self.state {
                State::String => self.scan_string(rest),
                State::Number => match self.number.push(byte) {
                    NumberStep::Consumed => after,
                    NumberStep::Complete => {
                        self.end_number(byte);
                        rest
                    }
                    NumberStep::Malformed => self.fail(),
                },
                _ => match self.next_state(byte) {
                    Some(state) => {
                        self.state = state;
                        after
                    }
                    None => self.fail(),
                },
            };
        }
        self.verdict
    }

    /// Skips the beginning that most responses have.
    fn skip_common_prefix<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match (self.state, bytes.strip_prefix(br#"{"errcode":"#)) {
            (State::Bom(0), Some(rest)) if self.nesting.push(true) => {
                (self.state, self.in_key, self.is_errcode_value) = (State::Value, true, true);
                rest
            }
            _ => bytes,
        }
    }

    /// Ends the body: an undecided verdict becomes [`Verdict::None`], because the object was never closed.
    pub fn finish(&mut self) -> Verdict {
        if self.verdict == Verdict::Undecided {
            self.verdict = Verdict::None;
        }
        self.verdict
    }

    fn fail(&mut self) -> &'static [u8] {
        self.verdict = Verdict::None;
        &[]
    }

    /// The state after `byte`; `None` if there can be no errcode any more.
    fn next_state(&mut self, byte: u8) -> Option<State> {
        match (self.state, byte) {
            (State::Bom(seen), _) => self.scan_bom(seen, byte),
            (
                State::Start
                | State::KeyOrEnd
                | State::Key
                | State::Colon
                | State::Value
                | State::ValueOrEnd
                | State::CommaOrEnd,
                b' ' | b'\t' | b'\n' | b'\r',
            ) => Some(self.state),
            (State::Start, b'{') => self.open_container(true),
            (State::KeyOrEnd | State::Key, b'"') => {
                self.in_key = true;
                self.key_matched = (self.nesting.depth == 1).then_some(0);
                Some(State::String)
            }
            (State::Colon, b':') => Some(State::Value),
            (State::KeyOrEnd, b'}') | (State::ValueOrEnd, b']') => self.close_container(),
            (State::Value | State::ValueOrEnd, _) => self.begin_value(byte),
            (State::CommaOrEnd, b',') if self.nesting.in_object() => Some(State::Key),
            (State::CommaOrEnd, b',') => Some(State::Value),
            (State::CommaOrEnd, b'}') if self.nesting.in_object() => self.close_container(),
            (State::CommaOrEnd, b']') if !self.nesting.in_object() => self.close_container(),
            (State::Escape, b'u') => Some(State::Unicode { left: 4, code: 0 }),
            (State::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.key_matched = None; // none of these is a letter of the key
                Some(State::String)
            }
            (State::Unicode { left, code }, _) => self.scan_unicode_escape(left, code, byte),
            (State::Literal(rest), _) => match rest.split_first()? {
                (&expected, _) if expected != byte => None,
                (_, []) => Some(State::CommaOrEnd),
                (_, rest) => Some(State::Literal(rest)),
            },
            _ => None,
        }
    }

    fn scan_bom(&mut self, seen: usize, byte: u8) -> Option<State> {
        match byte {
            _ if byte == BOM[seen] && seen + 1 == BOM.len() => Some(State::Start),
            _ if byte == BOM[seen] => Some(State::Bom(seen + 1)),
            _ if seen > 0 => None,
            _ => {
                self.state = State::Start;
                self.next_state(byte)
            }
        }
    }

    fn open_container(&mut self, object: bool) -> Option<State> {
        self.nesting.push(object).then_some(if object { State::KeyOrEnd } else { State::ValueOrEnd })
    }

    /// Closes a container; `None` if it was the top-level object, which then has no errcode.
    fn close_container(&mut self) -> Option<State> {
        self.nesting.depth -= 1;
        (self.nesting.depth > 0).then_some(State::CommaOrEnd)
    }

    fn begin_value(&mut self, byte: u8) -> Option<State> {
        match byte {
            b'-' | b'0'..=b'9' => {
                self.number = JsonNumber::new();
                self.number.push(byte);
                Some(State::Number)
            }
            _ if self.is_errcode_value => None, // the first errcode decides, and it is no number
            b'"' => {
                self.in_key = false;
                Some(State::String)
            }
            b'{' => self.open_container(true),
            b'[' => self.open_container(false),
            b't' => Some(State::Literal(b"rue")),
            b'f' => Some(State::Literal(b"alse")),
            b'n' => Some(State::Literal(b"ull")),
            _ => None,
        }
    }

    /// Scans a string up to its end, an escape, or the end of the chunk; returns the rest.
    fn scan_string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (run, rest) = bytes.split_at(memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len()));
        // No early exit: lets LLVM vectorise.
        if run.iter().fold(false, |control, &byte| control | (byte < 0x20)) {
            return self.fail();
        }
        self.match_key(run);
        let Some((&byte, after)) = rest.split_first() else { return rest };
        if byte == b'\\' {
            self.state = State::Escape;
        } else if self.in_key {
            self.is_errcode_value = self.key_matched == Some(KEY.len());
            self.key_matched = None;
            self.state = State::Colon;
        } else {
            self.state = State::CommaOrEnd;
        }
        after
    }

    fn match_key(&mut self, run: &[u8]) {
        if let Some(matched) = self.key_matched {
            self.key_matched = KEY[matched..].starts_with(run).then_some(matched + run.len());
        }
    }

    /// Scans a hexadecimal digit of a `\u` escape. A surrogate is no letter of the key.
    fn scan_unicode_escape(&mut self, left: u8, code: u32, byte: u8) -> Option<State> {
        let code = code << 4 | char::from(byte).to_digit(16)?;
        if left > 1 {
            return Some(State::Unicode { left: left - 1, code });
        }
        match u8::try_from(code) {
            Ok(letter) if letter.is_ascii() => self.match_key(&[letter]),
            _ => self.key_matched = None,
        }
        Some(State::String)
    }

    /// Ends the number before `after`, which must be allowed after a number.
    fn end_number(&mut self, after: u8) {
        self.state = State::CommaOrEnd;
        if self.is_errcode_value {
            let is_delimited = matches!(after, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r');
            self.verdict = match self.number.to_integer() {
                Some(errcode) if is_delimited => Verdict::Found(errcode),
                _ => Verdict::None,
            };
        }
    }
}

impl Default for ErrcodeScanner {
    fn default() -> Self {
        Self::new()
    }
}
