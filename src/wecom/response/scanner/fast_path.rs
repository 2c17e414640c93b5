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
                && bytes.get(at) == Some(&b'"')
                && let Ok(end) = json_tokens::string_end(bytes, at + 1)
                && bytes.get(end) == Some(&b':')
                && (self.nesting.depth > 1 || is_other_key(&bytes[at + 1..end - 1]))
            {
                (at, next) = (end + 1, FastPathState::Value);
            }
            if next == FastPathState::Value {
                let byte = bytes.get(at).copied().unwrap_or_default();
                if byte == b'"' {
                    match json_tokens::string_end(bytes, at + 1) {
                        Ok(end) => (at, next) = (end, FastPathState::CommaOrEnd),
                        Err(inside) => {
                            (at, self.in_key) = (inside, false);
                            break State::String;
                        }
                    }
                } else if byte == b'{' || byte == b'[' {
                    if !self.nesting.push(byte == b'{') {
                        break State::Value;
                    }
                    in_object = byte == b'{';
                    at = skip_whitespace(bytes, at + 1);
                    match state_in_container(in_object, bytes.get(at)) {
                        Ok(FastPathState::CommaOrEnd) => next = FastPathState::CommaOrEnd,
                        Ok(first) => {
                            next = first;
                            continue;
                        }
                        Err(state) => break state,
                    }
                } else if let Some(end) = json_tokens::scalar_end(bytes, at) {
                    (at, next) = (end, FastPathState::CommaOrEnd);
                }
            }
            if next == FastPathState::CommaOrEnd {
                let byte = bytes.get(at).copied().unwrap_or_default();
                if byte == b',' {
                    (at, next) = (at + 1, if in_object { FastPathState::Key } else { FastPathState::Value });
                    continue;
                }
                if byte == (if in_object { b'}' } else { b']' }) && self.nesting.depth > 1 {
                    (at, self.nesting.depth) = (at + 1, self.nesting.depth - 1);
                    in_object = self.nesting.in_object();
                    continue;
                }
            }
            let token = skip_whitespace(bytes, at);
            if token == at {
                break next.into_state();
            }
            at = token;
        };
        at
    }
}

/// What follows the bracket that opens a container, by the next byte that is not white space; the closing bracket of an
/// empty container counts as the end of a value before it. Error: single bytes go on in this state.
#[inline(always)]
fn state_in_container(in_object: bool, byte: Option<&u8>) -> Result<FastPathState, State> {
    match (in_object, byte) {
        (true, Some(b'"')) => Ok(FastPathState::Key),
        (true, Some(b'}')) | (false, Some(b']')) => Ok(FastPathState::CommaOrEnd),
        (true, _) => Err(State::KeyOrEnd),
        (false, Some(_)) => Ok(FastPathState::Value),
        (false, None) => Err(State::ValueOrEnd),
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
