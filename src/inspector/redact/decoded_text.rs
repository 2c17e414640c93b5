//! A text with escapes decoded and a map from each byte to its source range.

use std::ops::Range;

use crate::secret::wipe;

/// Length of the longest escape without its last byte: `&#x10ffff`.
const MAX_PARTIAL_ESCAPE_BYTES: usize = 9;
/// Maximum decoding depth: a URL inside a URL inside JSON inside JSON.
const MAX_DECODE_DEPTH: usize = 4;

/// Bytes, and the source range of each.
#[derive(Default)]
pub(super) struct DecodedText {
    pub(super) bytes: Vec<u8>,
    source_ranges: Vec<(usize, usize)>,
}

impl Drop for DecodedText {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
    }
}

impl DecodedText {
    /// The text as given, then with one more level of escapes decoded each, until none is left or the depth is
    /// reached.
    pub(super) fn decode_levels(text: &str) -> Vec<Self> {
        let mut levels = vec![Self {
            bytes: text.as_bytes().to_vec(),
            source_ranges: (0..text.len()).map(|at| (at, at + 1)).collect(),
        }];
        while levels.len() <= MAX_DECODE_DEPTH
            && let Some(next) = levels.last().and_then(Self::decode_once)
        {
            levels.push(next);
        }
        levels
    }

    /// Source range of a range of this text.
    pub(super) fn source_range(&self, part: Range<usize>) -> Range<usize> {
        let (from, to) =
            (self.source_ranges.get(part.start), self.source_ranges.get(part.end.wrapping_sub(1)));
        from.zip(to).map_or(0..0, |((from, _), (_, to))| *from..*to)
    }

    /// Canonical form: lower case, one base64 alphabet, no white space.
    pub(super) fn canonicalize(&self) -> Self {
        let mut canonical = Self::default();
        for (byte, source_range) in self.bytes.iter().zip(&self.source_ranges) {
            if let Some(byte) = canonical_byte(*byte) {
                canonical.bytes.push(byte);
                canonical.source_ranges.push(*source_range);
            }
        }
        canonical
    }

    /// Decodes one level of escapes; `None` if there are none.
    fn decode_once(&self) -> Option<Self> {
        let (mut decoded, mut at, mut found_escape) = (Self::default(), 0, false);
        while let Some(byte) = self.bytes.get(at) {
            let escape = if b"%\\&".contains(byte) { parse_escape(&self.bytes[at..]) } else { None };
            found_escape |= escape.is_some();
            let (value, length) = escape.unwrap_or((Unescaped::Byte(*byte), 1));
            let source_range = self.source_range(at..at + length);
            let mut buf = [0; 4];
            let bytes = match value {
                Unescaped::Byte(byte) => {
                    buf[0] = byte;
                    &buf[..1]
                }
                Unescaped::Char(char) => char.encode_utf8(&mut buf).as_bytes(),
            };
            decoded.bytes.extend_from_slice(bytes);
            decoded.source_ranges.extend(bytes.iter().map(|_| (source_range.start, source_range.end)));
            at += length;
        }
        found_escape.then_some(decoded)
    }
}

/// Canonical form of a byte; `None` for white space.
pub(super) fn canonical_byte(byte: u8) -> Option<u8> {
    match byte {
        b'-' => Some(b'+'),
        b'_' => Some(b'/'),
        _ if byte.is_ascii_whitespace() => None,
        _ => Some(byte.to_ascii_lowercase()),
    }
}

/// The decoded value of an escape.
enum Unescaped {
    Byte(u8),
    Char(char),
}

/// Parses the escape at the start (URL, JSON or HTML); returns its value and length.
fn parse_escape(text: &[u8]) -> Option<(Unescaped, usize)> {
    match text {
        [b'%', high, low, ..] => Some((Unescaped::Byte(parse_hex(&[*high, *low])? as u8), 3)),
        [b'\\', b'u', digits @ ..] => {
            char::from_u32(parse_hex(digits.get(..4)?)?).map(|char| (Unescaped::Char(char), 6))
        }
        [b'\\', b'x', digits @ ..] => {
            Some((Unescaped::Char(char::from_u32(parse_hex(digits.get(..2)?)?)?), 4))
        }
        [b'\\', b'n' | b'r' | b't' | b'b' | b'f', ..] => Some((Unescaped::Byte(b' '), 2)),
        [b'\\', byte @ (b'"' | b'\'' | b'/' | b'\\'), ..] => Some((Unescaped::Byte(*byte), 2)),
        [b'&', rest @ ..] => {
            let end = rest.iter().take(9).position(|byte| *byte == b';')?;
            let value = match &rest[..end] {
                b"amp" => Unescaped::Byte(b'&'),
                b"quot" => Unescaped::Byte(b'"'),
                b"lt" => Unescaped::Byte(b'<'),
                b"gt" => Unescaped::Byte(b'>'),
                [b'#', b'x' | b'X', digits @ ..] => Unescaped::Char(char::from_u32(parse_hex(digits)?)?),
                [b'#', digits @ ..] => {
                    let number = str::from_utf8(digits).ok()?.parse().ok()?;
                    Unescaped::Char(char::from_u32(number)?)
                }
                _ => return None,
            };
            Some((value, end + 2))
        }
        _ => None,
    }
}

/// Length of a truncated escape at the end of a canonical text.
pub(super) fn partial_escape_len(text: &[u8]) -> usize {
    let is_hex = |digits: &[u8]| digits.iter().all(u8::is_ascii_hexdigit);
    let distance = text.iter().rev().take(MAX_PARTIAL_ESCAPE_BYTES).position(|byte| b"%\\&".contains(byte));
    let tail = distance.map_or(&[][..], |distance| &text[text.len() - distance - 1..]);
    let is_truncated = match tail {
        [b'%', digits @ ..] => digits.len() < 2 && is_hex(digits),
        [b'\\'] | [b'\\', b'u' | b'x'] => true,
        [b'\\', b'u', digits @ ..] => digits.len() < 4 && is_hex(digits),
        [b'\\', b'x', digits @ ..] => digits.len() < 2 && is_hex(digits),
        [b'&', name @ ..] => name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'#'),
        _ => false,
    };
    if is_truncated { tail.len() } else { 0 }
}

fn parse_hex(digits: &[u8]) -> Option<u32> {
    // `from_str_radix` accepts a sign, an escape does not.
    let digits =
        str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|it| it.is_ascii_hexdigit()))?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_escapes_are_decoded() {
        for (text, expected) in [
            ("a%2Fb", "a/b"),
            ("a%252Fb", "a/b"),
            (r"a\/b\u002fc\\/d", "a/b/c/d"),
            (r#"{\"k\":\"\u5f20\"}"#, "{\"k\":\"张\"}"),
            ("a&amp;b&#47;c&#x2F;d", "a&b/c/d"),
            ("%2%zz\\q&;&#;&#x;%u", "%2%zz\\q&;&#;&#x;%u"),
            ("\\ud800\\u+123%+1", "\\ud800\\u+123%+1"),
            ("100%", "100%"),
        ] {
            let levels = DecodedText::decode_levels(text);
            let deepest = levels.last().expect("a level");
            assert_eq!(String::from_utf8_lossy(&deepest.bytes), expected, "{text}");
        }
    }

    #[test]
    fn decoded_range_maps_back_to_source() {
        let text = r"x张%25\u0032\/y";
        let levels = DecodedText::decode_levels(text);
        for level in &levels {
            assert_eq!(level.source_range(0..level.bytes.len()), 0..text.len());
            assert_eq!(level.source_range(1..4), 1..4);
        }
        let last = levels.last().expect("a level");
        let at = last.bytes.iter().position(|byte| *byte == b'2').expect("the digit");
        assert_eq!(&text[last.source_range(at..at + 1)], r"\u0032");
        assert_eq!(levels[0].source_range(3..3), 3..3);
        assert_eq!(levels[0].source_range(0..0), 0..0);
    }

    #[test]
    fn decode_depth_is_bounded() {
        let text = format!("%{}41", "25".repeat(50));
        assert_eq!(DecodedText::decode_levels(&text).len(), MAX_DECODE_DEPTH + 1);
    }
}
