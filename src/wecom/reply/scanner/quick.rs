//! Whole strings and numbers at a time, where they lie in one piece.
//!
//! Each function gives `None`, or an early stop, for what is cut or malformed alike: that is read again byte by byte, and
//! judged there alone.

/// Every byte of a word the same.
const fn all(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.first_chunk().map(|eight| u64::from_le_bytes(*eight))
}

/// Marks the high bit of quotes, backslashes and control characters. A borrow can mark bytes above the lowest that is
/// marked, and so only that one can be relied on.
#[inline(always)]
const fn special(word: u64) -> u64 {
    // With this bit turned the quote comes right behind the control characters.
    let quote_or_control = (word ^ all(b'"' ^ 0x20)).wrapping_sub(all(0x21));
    let backslash = (word ^ all(b'\\')).wrapping_sub(all(1));
    (quote_or_control | backslash) & !word & all(0x80)
}

/// The end of the string that goes on at `at`, behind its quote; an error says how far it is certain to go on.
#[inline(always)]
pub(super) fn text(bytes: &[u8], mut at: usize) -> Result<usize, usize> {
    while let Some(word) = word(bytes, at) {
        let marks = special(word);
        if marks == 0 {
            at += 8;
            continue;
        }
        let lowest = marks.trailing_zeros();
        at += lowest as usize / 8;
        match (word >> (lowest - 7)) as u8 {
            b'"' => return Ok(at + 1),
            b'\\' => at = escapes(bytes, at)?,
            _ => break,
        }
    }
    Err(at)
}

/// The end of a row of escapes, the first of which is at `at`. What is written in `\u` escapes has many in a row.
fn escapes(bytes: &[u8], mut at: usize) -> Result<usize, usize> {
    loop {
        at += match bytes.get(at + 1) {
            Some(b'u') => match bytes.get(at + 2..at + 6).and_then(|digits| digits.first_chunk()) {
                Some(&[a, b, c, d]) if hex(a) & hex(b) & hex(c) & hex(d) => 6,
                _ => return Err(at),
            },
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            _ => return Err(at),
        };
        if bytes.get(at) != Some(&b'\\') {
            return Ok(at);
        }
    }
}

fn hex(byte: u8) -> bool {
    const HEX: [bool; 256] = {
        let (mut hex, mut byte) = ([false; 256], 0);
        while byte < 256 {
            hex[byte] = (byte as u8).is_ascii_hexdigit();
            byte += 1;
        }
        hex
    };
    HEX[usize::from(byte)]
}

/// The end of the number, `true`, `false` or `null` that starts at `at`.
#[inline(always)]
pub(super) fn bare(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    match rest.first()? {
        b'1'..=b'9' => fraction(bytes, digits(bytes, at)?),
        b'0' => fraction(bytes, at + 1),
        b'-' => negative(bytes, at + 1),
        b't' => rest.starts_with(b"true").then_some(at + 4),
        b'f' => rest.starts_with(b"false").then_some(at + 5),
        b'n' => rest.starts_with(b"null").then_some(at + 4),
        _ => None,
    }
}

fn negative(bytes: &[u8], at: usize) -> Option<usize> {
    fraction(bytes, if bytes.get(at) == Some(&b'0') { at + 1 } else { digits(bytes, at)? })
}

/// The end of the number whose integer part ends at `at`. Nearly all are integers.
#[inline(always)]
fn fraction(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'.' => exponent(bytes, digits(bytes, at + 1)?),
        b'e' | b'E' => exponent(bytes, at),
        _ => Some(at),
    }
}

/// The same, where a fraction can only have been before.
fn exponent(bytes: &[u8], at: usize) -> Option<usize> {
    if !matches!(bytes.get(at)?, b'e' | b'E') {
        return Some(at);
    }
    let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
    digits(bytes, at + 1 + usize::from(signed))
}

/// The end of the digits that start at `at`, of which there is one at least.
#[inline(always)]
fn digits(bytes: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    while bytes.get(end)?.is_ascii_digit() {
        end += 1;
    }
    (end > at).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    proptest! {
        #[test]
        fn the_lowest_mark_is_right(bytes in prop::array::uniform8(prop_oneof![
            any::<u8>(),
            prop::sample::select(&b"\"\\ !#[]\x00\x1F\x7F\x80\xA2\xDC\xFF"[..]),
        ])) {
            let first = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
            let marks = special(u64::from_le_bytes(bytes));
            prop_assert_eq!((marks != 0).then(|| marks.trailing_zeros() as usize / 8), first);
        }

        #[test]
        fn what_is_taken_for_a_number_is_one(text in "-?[0-9.eE+-]{0,8}") {
            let is_number = |text: &str| serde_json::from_str::<IgnoredAny>(text).is_ok();
            match bare(format!("{text},").as_bytes(), 0) {
                Some(end) => prop_assert!(is_number(&text[..end]), "{}", text),
                None => prop_assert!(!is_number(&text), "{}", text),
            }
        }
    }
}
