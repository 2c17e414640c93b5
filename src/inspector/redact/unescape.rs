//! Decodes escapes of URLs, JSON and HTML, one level at a time.

use zeroize::Zeroizing;

/// Decodes one level of escapes; `None` if there are none.
pub(super) fn unescape(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    // Decoded text is never longer: memory that the vector outgrew would not be wiped.
    let (mut decoded, mut at, mut found) = (Zeroizing::new(Vec::with_capacity(text.len())), 0, false);
    while let Some(byte) = text.get(at) {
        let escape = if b"%\\&".contains(byte) { parse_escape(&text[at..]) } else { None };
        match escape {
            Some((char, length)) => {
                // A percent escape is a byte of a character, the others are characters.
                match u8::try_from(char) {
                    Ok(byte) if text[at] == b'%' => decoded.push(byte),
                    _ => decoded.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
                }
                (found, at) = (true, at + length);
            }
            None => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    found.then_some(decoded)
}

/// Parses the escape at the start; returns its character and its length.
fn parse_escape(text: &[u8]) -> Option<(char, usize)> {
    match text {
        [b'%', digits @ ..] => Some((parse_hex(digits.get(..2)?)?, 3)),
        [b'\\', b'u', digits @ ..] => Some((parse_hex(digits.get(..4)?)?, 6)),
        [b'\\', b'x', digits @ ..] => Some((parse_hex(digits.get(..2)?)?, 4)),
        [b'\\', b'n' | b'r' | b't' | b'b' | b'f', ..] => Some((' ', 2)),
        [b'\\', byte @ (b'"' | b'\'' | b'/' | b'\\'), ..] => Some((char::from(*byte), 2)),
        [b'&', rest @ ..] => {
            let end = rest.iter().take(9).position(|byte| *byte == b';')?;
            let char = match &rest[..end] {
                b"amp" => '&',
                b"quot" => '"',
                b"lt" => '<',
                b"gt" => '>',
                [b'#', b'x' | b'X', digits @ ..] => parse_hex(digits)?,
                [b'#', digits @ ..] => char::from_u32(str::from_utf8(digits).ok()?.parse().ok()?)?,
                _ => return None,
            };
            Some((char, end + 2))
        }
        _ => None,
    }
}

fn parse_hex(digits: &[u8]) -> Option<char> {
    // `from_str_radix` accepts a sign, an escape does not.
    let digits =
        str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|it| it.is_ascii_hexdigit()))?;
    char::from_u32(u32::from_str_radix(digits, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_escapes_are_decoded() {
        for (text, expected) in [
            ("a%2Fb", "a/b"),
            ("%E5%BC%A0", "张"),
            ("a%252Fb", "a/b"),
            (r"a\/b\u002fc\\/d", "a/b/c/d"),
            (r#"{\"k\":\"\u5f20\"}"#, "{\"k\":\"张\"}"),
            ("a&amp;b&#47;c&#x2F;d", "a&b/c/d"),
            ("%2%zz\\q&;&#;&#x;%u", "%2%zz\\q&;&#;&#x;%u"),
            ("\\ud800\\u+123%+1", "\\ud800\\u+123%+1"),
            ("100%", "100%"),
        ] {
            let mut decoded = Zeroizing::new(text.as_bytes().to_vec());
            while let Some(next) = unescape(&decoded) {
                decoded = next;
            }
            assert_eq!(String::from_utf8_lossy(&decoded), expected, "{text}");
        }
    }
}
