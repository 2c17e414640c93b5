//! The fast path: skips whole keys, values and separators, for a quarter of what single bytes cost.
//!
//! It stops before anything that is not certain to be well formed and no errcode: a truncated or malformed token, or the
//! key itself. Single bytes decide those. So no verdict is implemented twice, and chunks too short for the fast path give
//! the same one.

use memchr::memchr;

use super::{ErrcodeScanner, KEY, State, json_tokens};

/// The states in which the fast path can start and go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FastPathState {
    Key,
    Value,
    CommaOrEnd,
}

/// The result of [`ErrcodeScanner::skip_value`].
enum SkippedValue {
    /// The value ends here; the closing bracket of an empty container counts as the end of a value before it.
    Ended(usize),
    /// A container was opened; its first key or value starts here.
    Opened(usize, FastPathState),
    /// The fast path ends here, and single bytes go on in this state.
    Stopped(usize, State),
    /// Not a whole value, or white space before it.
    Unknown,
}

impl FastPathState {
    #[inline(always)]
    fn from_state(state: State) -> Self {
        match state {
            State::Key => Self::Key,
            State::Value => Self::Value,
            _ => Self::CommaOrEnd,
        }
    }

    #[inline(always)]
    fn into_state(self) -> State {
        match self {
            Self::Key => State::Key,
            Self::Value => State::Value,
            Self::CommaOrEnd => State::CommaOrEnd,
        }
    }
}

impl ErrcodeScanner {
    /// Skips whole tokens; returns the number of bytes, and leaves the state that follows them.
    // Not inlined, so that a response that begins with its errcode does not pay for the registers this needs.
    #[inline(never)]
    pub(super) fn scan_fast(&mut self, bytes: &[u8]) -> usize {
        let (mut at, mut next) = (0, FastPathState::from_state(self.state));
        let mut in_object = self.nesting.in_object();
        self.state = loop {
            if next == FastPathState::Key
                && let Some(end) = self.skip_key(bytes, at)
            {
                (at, next) = (end, FastPathState::Value);
            }
            if next == FastPathState::Value {
                match self.skip_value(bytes, at, &mut in_object) {
                    SkippedValue::Ended(end) => (at, next) = (end, FastPathState::CommaOrEnd),
                    SkippedValue::Opened(inside, first) => {
                        (at, next) = (inside, first);
                        continue;
                    }
                    SkippedValue::Stopped(end, state) => {
                        at = end;
                        break state;
                    }
                    SkippedValue::Unknown => {}
                }
            }
            if next == FastPathState::CommaOrEnd
                && let Some(following) = self.skip_separator(bytes, at, &mut in_object)
            {
                (at, next) = (at + 1, following);
                continue;
            }
            let token = skip_whitespace(bytes, at);
            if token == at {
                break next.into_state();
            }
            at = token;
        };
        at
    }

    /// Skips a key and its colon, unless it is or can be the top-level errcode.
    #[inline(always)]
    fn skip_key(&self, bytes: &[u8], at: usize) -> Option<usize> {
        if bytes.get(at) == Some(&b'"')
            && let Ok(end) = json_tokens::string_end(bytes, at + 1)
            && bytes.get(end) == Some(&b':')
            && (self.nesting.depth > 1 || is_other_key(&bytes[at + 1..end - 1]))
        {
            return Some(end + 1);
        }
        None
    }

    /// Skips a string, number or literal, or opens a container.
    #[inline(always)]
    fn skip_value(&mut self, bytes: &[u8], at: usize, in_object: &mut bool) -> SkippedValue {
        let byte = bytes.get(at).copied().unwrap_or_default();
        if byte == b'"' {
            match json_tokens::string_end(bytes, at + 1) {
                Ok(end) => SkippedValue::Ended(end),
                Err(inside) => {
                    self.in_key = false;
                    SkippedValue::Stopped(inside, State::String)
                }
            }
        } else if byte == b'{' || byte == b'[' {
            if !self.nesting.push(byte == b'{') {
                return SkippedValue::Stopped(at, State::Value);
            }
            *in_object = byte == b'{';
            let inside = skip_whitespace(bytes, at + 1);
            match (*in_object, bytes.get(inside)) {
                (true, Some(b'"')) => SkippedValue::Opened(inside, FastPathState::Key),
                (true, Some(b'}')) | (false, Some(b']')) => SkippedValue::Ended(inside),
                (true, _) => SkippedValue::Stopped(inside, State::KeyOrEnd),
                (false, Some(_)) => SkippedValue::Opened(inside, FastPathState::Value),
                (false, None) => SkippedValue::Stopped(inside, State::ValueOrEnd),
            }
        } else {
            json_tokens::scalar_end(bytes, at).map_or(SkippedValue::Unknown, SkippedValue::Ended)
        }
    }

    /// Skips a comma, or the bracket that closes a nested container; each is one byte. Returns what follows.
    #[inline(always)]
    fn skip_separator(&mut self, bytes: &[u8], at: usize, in_object: &mut bool) -> Option<FastPathState> {
        let byte = bytes.get(at).copied().unwrap_or_default();
        if byte == b',' {
            return Some(if *in_object { FastPathState::Key } else { FastPathState::Value });
        }
        if byte == (if *in_object { b'}' } else { b']' }) && self.nesting.depth > 1 {
            self.nesting.depth -= 1;
            *in_object = self.nesting.in_object();
            return Some(FastPathState::CommaOrEnd);
        }
        None
    }
}

/// Whether a top-level key, escapes unresolved, is certain not to be `errcode`.
fn is_other_key(key: &[u8]) -> bool {
    key != KEY && memchr(b'\\', key).is_none()
}

/// The first index from `at` on that is not white space.
#[inline]
fn skip_whitespace(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at) {
        Some(..=b' ') => {
            let blank = bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
            at + blank.count()
        }
        _ => at,
    }
}
