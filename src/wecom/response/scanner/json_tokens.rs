//! Finds the ends of JSON strings, numbers and literals that lie whole in one chunk.
//!
//! Each function returns `None`, or an early end, for truncated and malformed tokens alike: those are scanned
//! again byte by byte, and judged there alone.

/// A word of eight equal bytes.
const fn splat(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

fn load_word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.first_chunk().map(|eight| u64::from_le_bytes(*eight))
}

/// Sets the high bit of quotes, backslashes and control characters. A borrow can set bits above the lowest one,
/// so only the lowest is reliable.
#[inline(always)]
const fn mark_special(word: u64) -> u64 {
    // With this bit flipped the quote comes right after the control characters.
    let quote_or_control = (word ^ splat(b'"' ^ 0x20)).wrapping_sub(splat(0x21));
    let backslash = (word ^ splat(b'\\')).wrapping_sub(splat(1));
    (quote_or_control | backslash) & !word & splat(0x80)
}

/// The index after the closing quote of the string that continues at `at`; an error is the index up to which the
/// string certainly continues.
#[inline(always)]
pub(super) fn string_end(bytes: &[u8], mut at: usize) -> Result<usize, usize> {
    while let Some(word) = load_word(bytes, at) {
        let marks = mark_special(word);
        if marks == 0 {
            at += 8;
            continue;
        }
        let lowest = marks.trailing_zeros();
        at += lowest as usize / 8;
        match (word >> (lowest - 7)) as u8 {
            b'"' => return Ok(at + 1),
            b'\\' => at = escapes_end(bytes, at)?,
            _ => break,
        }
    }
    Err(at)
}

/// The end of a run of escapes that starts at `at`. Text written in `\u` escapes has long runs.
fn escapes_end(bytes: &[u8], mut at: usize) -> Result<usize, usize> {
    loop {
        at += match bytes.get(at + 1) {
            Some(b'u') => match bytes.get(at + 2..at + 6).and_then(|digits| digits.first_chunk()) {
                Some(&[a, b, c, d])
                    if is_hex_digit(a) & is_hex_digit(b) & is_hex_digit(c) & is_hex_digit(d) =>
                {
                    6
                }
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

fn is_hex_digit(byte: u8) -> bool {
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
pub(super) fn scalar_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    match rest.first()? {
        b'1'..=b'9' => fraction_end(bytes, digits_end(bytes, at)?),
        b'0' => fraction_end(bytes, at + 1),
        b'-' => negative_end(bytes, at + 1),
        b't' => rest.starts_with(b"true").then_some(at + 4),
        b'f' => rest.starts_with(b"false").then_some(at + 5),
        b'n' => rest.starts_with(b"null").then_some(at + 4),
        _ => None,
    }
}

fn negative_end(bytes: &[u8], at: usize) -> Option<usize> {
    fraction_end(bytes, if bytes.get(at) == Some(&b'0') { at + 1 } else { digits_end(bytes, at)? })
}

/// The end of the number whose integer part ends at `at`. Nearly all are integers.
#[inline(always)]
fn fraction_end(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'.' => exponent_end(bytes, digits_end(bytes, at + 1)?),
        b'e' | b'E' => exponent_end(bytes, at),
        _ => Some(at),
    }
}

/// The end of the number whose fraction, if any, ends at `at`.
fn exponent_end(bytes: &[u8], at: usize) -> Option<usize> {
    if !matches!(bytes.get(at)?, b'e' | b'E') {
        return Some(at);
    }
    let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
    digits_end(bytes, at + 1 + usize::from(signed))
}

/// The end of the digits that start at `at`; `None` without a digit.
#[inline(always)]
fn digits_end(bytes: &[u8], at: usize) -> Option<usize> {
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
        fn lowest_mark_is_the_first_special_byte(bytes in prop::array::uniform8(prop_oneof![
            any::<u8>(),
            prop::sample::select(&b"\"\\ !#[]\x00\x1F\x7F\x80\xA2\xDC\xFF"[..]),
        ])) {
            let first = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
            let marks = mark_special(u64::from_le_bytes(bytes));
            prop_assert_eq!((marks != 0).then(|| marks.trailing_zeros() as usize / 8), first);
        }

        #[test]
        fn scalar_end_accepts_only_json_numbers(text in "-?[0-9.eE+-]{0,8}") {
            let is_number = |text: &str| serde_json::from_str::<IgnoredAny>(text).is_ok();
            match scalar_end(format!("{text},").as_bytes(), 0) {
                Some(end) => prop_assert!(is_number(&text[..end]), "{}", text),
                None => prop_assert!(!is_number(&text), "{}", text),
            }
        }
    }
}
