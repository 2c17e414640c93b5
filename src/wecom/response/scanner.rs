//! Finds the top-level `errcode` of a JSON reply while its bytes arrive: no allocation, constant memory, no I/O.

use memchr::{memchr, memchr2};

use super::number::{JsonNumber, NumberStep};

mod fast_path;
#[cfg(test)]
mod tests;

/// How deep a reply may nest before it is given up: one bit of memory a level.
pub const MAX_DEPTH: usize = 1024;

/// Pieces shorter than this are read byte by byte: hardly a key and its value would lie whole in them.
const MIN_FAST_PATH_BYTES: usize = 16;

const KEY: &[u8] = b"errcode";
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// What is known of a reply's errcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More of the body is needed.
    Undecided,
    /// The top-level errcode.
    Found(i64),
    /// There is none, whatever follows.
    None,
}

/// Finds the top-level `errcode` of a JSON object whose bytes arrive in pieces; where they are cut makes no difference.
///
/// - The **first** `errcode` key of the top-level object decides, escapes in it resolved. (A parser that lets the last of
///   two equal keys win has to read the whole body; WeCom never sends two.) It counts if its value is a number that is
///   mathematically an integer and fits an `i64`: `40014`, `4.0014e4` and `40014.0` are the same, `"40014"` is none.
/// - What is found stands, even if the body is malformed further on. What is malformed before that has no errcode:
///   brackets, commas, colons, literals, numbers, escapes and control characters are checked as in RFC 8259, nesting goes
///   to [`MAX_DEPTH`]. Not checked: UTF-8, and whether surrogate escapes come in pairs; neither can hide or forge a key.
/// - A byte order mark and white space may lead. A body that is no object is decided at its first byte, an object without
///   an errcode at its closing brace.
#[derive(Clone, Debug)]
pub struct ErrcodeScanner {
    verdict: Verdict,
    state: State,
    nesting: NestingStack,
    /// Whether the string being read is a key.
    in_key: bool,
    /// How much of `errcode` the key being read has matched; `None` when it is another key, a nested one, or no key.
    key_matched: Option<usize>,
    /// Whether the value that comes next, or the number being read, is the errcode's.
    is_errcode_value: bool,
    number: JsonNumber,
}

/// What may come next.
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

/// Those of the states in which [`ErrcodeScanner::stride`] goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FastPathState {
    Key,
    Value,
    CommaOrEnd,
}

impl ErrcodeScanner {
    /// A scanner at the start of a body.
    pub const fn new() -> Self {
        Self {
            verdict: Verdict::Undecided,
            state: State::Bom(0),
            nesting: NestingStack { objects: [0; MAX_DEPTH / 64], depth: 0 },
            in_key: false,
            key_matched: None,
            is_errcode_value: false,
            number: JsonNumber::new(),
        }
    }

    /// What is known so far.
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Takes the next piece of the body. Once there is a verdict, it stays, and further pieces cost nothing.
    pub fn feed(&mut self, bytes: &[u8]) -> Verdict {
        let mut rest = self.skip_common_prefix(bytes);
        while let (Verdict::Undecided, Some((&byte, after))) = (self.verdict, rest.split_first()) {
            if let State::Key | State::Value | State::CommaOrEnd = self.state
                && rest.len() >= MIN_FAST_PATH_BYTES
                && !self.is_errcode_value
            {
                let taken = self.scan_fast(rest);
                if taken > 0 {
                    rest = &rest[taken..];
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

    /// Goes over the way in which most replies begin.
    fn skip_common_prefix<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match (self.state, bytes.strip_prefix(br#"{"errcode":"#)) {
            (State::Bom(0), Some(rest)) if self.nesting.push(true) => {
                (self.state, self.in_key, self.is_errcode_value) = (State::Value, true, true);
                rest
            }
            _ => bytes,
        }
    }

    /// Goes over whole keys, values and what stands between them, for a quarter of what single bytes cost; says how many
    /// bytes that was.
    ///
    /// It stops before whatever is not certain to be well formed and without an errcode, be it cut, malformed, or the key
    /// itself: single bytes decide. So nothing is judged in two places, and pieces too short for it give the same verdict.
    // Not inlined, so that a reply that begins with its errcode does not pay for the registers this needs.
    #[inline(never)]
    fn scan_fast(&mut self, bytes: &[u8]) -> usize {
        let (mut at, mut next) = (
            0,
            match self.state {
                State::Key => FastPathState::Key,
                State::Value => FastPathState::Value,
                _ => FastPathState::CommaOrEnd,
            },
        );
        let mut object = self.nesting.in_object();
        self.state = loop {
            if next == FastPathState::Key
                && bytes.get(at) == Some(&b'"')
                && let Ok(end) = fast_path::string_end(bytes, at + 1)
                && bytes.get(end) == Some(&b':')
                && (self.nesting.depth > 1 || is_other_key(&bytes[at + 1..end - 1]))
            {
                (at, next) = (end + 1, FastPathState::Value);
            }
            if next == FastPathState::Value {
                let byte = bytes.get(at).copied().unwrap_or_default();
                if byte == b'"' {
                    match fast_path::string_end(bytes, at + 1) {
                        Ok(end) => (at, next) = (end, FastPathState::CommaOrEnd),
                        Err(inside) => {
                            self.in_key = false;
                            at = inside;
                            break State::String;
                        }
                    }
                } else if byte == b'{' || byte == b'[' {
                    if !self.nesting.push(byte == b'{') {
                        break State::Value;
                    }
                    object = byte == b'{';
                    at = skip_whitespace(bytes, at + 1);
                    match (object, bytes.get(at)) {
                        (true, Some(b'"')) => {
                            next = FastPathState::Key;
                            continue;
                        }
                        // The end is taken below.
                        (true, Some(b'}')) | (false, Some(b']')) => next = FastPathState::CommaOrEnd,
                        (true, _) => break State::KeyOrEnd,
                        (false, Some(_)) => continue,
                        (false, None) => break State::ValueOrEnd,
                    }
                } else if let Some(end) = fast_path::scalar_end(bytes, at) {
                    (at, next) = (end, FastPathState::CommaOrEnd);
                }
            }
            if next == FastPathState::CommaOrEnd {
                let byte = bytes.get(at).copied().unwrap_or_default();
                if byte == b',' {
                    at += 1;
                    next = if object { FastPathState::Key } else { FastPathState::Value };
                    continue;
                }
                if byte == (if object { b'}' } else { b']' }) && self.nesting.depth > 1 {
                    at += 1;
                    self.nesting.depth -= 1;
                    object = self.nesting.in_object();
                    continue;
                }
            }
            let text = skip_whitespace(bytes, at);
            if text == at {
                break match next {
                    FastPathState::Key => State::Key,
                    FastPathState::Value => State::Value,
                    FastPathState::CommaOrEnd => State::CommaOrEnd,
                };
            }
            at = text;
        };
        at
    }

    /// The body has ended: what is undecided by now has no errcode, for its object was never closed.
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

    /// What may follow `byte`; `None` where there can be no errcode any more.
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

    /// Leaves an object or array; `None` when it was the top-level one, which then had no errcode.
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

    /// Reads a string up to its end, an escape, or the end of the piece; gives what comes after.
    fn scan_string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (run, rest) = bytes.split_at(memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len()));
        // Without an early exit, so that it compiles to vector instructions.
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

    /// A hexadecimal digit of a `\u` escape. A surrogate is simply no letter of the key.
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

    /// The number ended before `after`, which must be able to follow one for the number to be whole.
    fn end_number(&mut self, after: u8) {
        self.state = State::CommaOrEnd;
        if self.is_errcode_value {
            let whole = matches!(after, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r');
            self.verdict = match self.number.to_integer() {
                Some(errcode) if whole => Verdict::Found(errcode),
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

/// Whether a key of the top-level object, as it is spelled, is certain not to be the errcode.
fn is_other_key(key: &[u8]) -> bool {
    key != KEY && memchr(b'\\', key).is_none()
}

/// Where, from `at` on, there is no more white space.
fn skip_whitespace(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at) {
        Some(..=b' ') => {
            let blank = bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
            at + blank.count()
        }
        _ => at,
    }
}

/// The open brackets: a bit each, set for an object.
#[derive(Clone, Debug)]
struct NestingStack {
    objects: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl NestingStack {
    /// Whether there was room.
    fn push(&mut self, object: bool) -> bool {
        let Some(word) = self.objects.get_mut(self.depth / 64) else { return false };
        let bit = 1 << (self.depth % 64);
        *word = if object { *word | bit } else { *word & !bit };
        self.depth += 1;
        true
    }

    fn in_object(&self) -> bool {
        let top = self.depth - 1; // asked only after a value, which is inside of something
        self.objects[top / 64] >> (top % 64) & 1 == 1
    }
}
