//! Decodes files that people write: UTF-8, with or without a byte order mark. Editors on Windows also save GBK and UTF-16.

use crate::text::Text;
use crate::{format_text, text};

/// Why a file is not text in UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8 {
    /// The first line with such bytes, counted from 1.
    pub line: usize,
    encoding: Option<&'static str>,
}

impl NotUtf8 {
    /// What is wrong, and what to do.
    pub fn message(&self) -> Text {
        match self.encoding {
            Some(encoding) => {
                format_text!(
                    "is {encoding}, not UTF-8; save it as UTF-8",
                    "是 {encoding}，不是 UTF-8；请另存为 UTF-8"
                )
            }
            None => text!("is not UTF-8; save it as UTF-8", "不是 UTF-8；请另存为 UTF-8"),
        }
    }
}

/// The text without its byte order mark.
pub fn decode_utf8(bytes: &[u8]) -> Result<&str, NotUtf8> {
    // ASCII in UTF-16 has a zero in its first two bytes.
    if bytes.starts_with(b"\xFF\xFE")
        || bytes.starts_with(b"\xFE\xFF")
        || matches!(bytes, [0, _, ..] | [_, 0, ..])
    {
        return Err(NotUtf8 { line: 1, encoding: Some("UTF-16") });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| NotUtf8 {
        line: memchr::memchr_iter(b'\n', &bytes[..error.valid_up_to()]).count() + 1,
        encoding: is_gbk(bytes).then_some("GBK"),
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Whether the bytes are valid GBK or GB18030.
fn is_gbk(mut bytes: &[u8]) -> bool {
    loop {
        bytes = match bytes {
            [] => return true,
            [..=0x80, rest @ ..] => rest,
            [0x81..=0xFE, 0x40..=0x7E | 0x80..=0xFE, rest @ ..] => rest,
            [0x81..=0xFE, b'0'..=b'9', 0x81..=0xFE, b'0'..=b'9', rest @ ..] => rest,
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_and_line_are_named() {
        assert_eq!(decode_utf8(b"\xEF\xBB\xBF# \xE4\xBA\xBA"), Ok("# 人"));
        assert_eq!(decode_utf8(b""), Ok(""));
        for (bytes, expected) in [
            (&b"a\nb # \xC8\xCB\xCA\xC2\n"[..], "2 is GBK, not UTF-8; save it as UTF-8"),
            (b"\xFF\xFEa\0\n\0", "1 is UTF-16, not UTF-8; save it as UTF-8"),
            (b"\xFE\xFF\0a", "1 is UTF-16, not UTF-8; save it as UTF-8"),
            (b"[\0a\0", "1 is UTF-16, not UTF-8; save it as UTF-8"),
            (b"a\n\n\xFF", "3 is not UTF-8; save it as UTF-8"),
        ] {
            let error = decode_utf8(bytes).unwrap_err();
            assert_eq!(format!("{} {}", error.line, error.message().english()), expected);
        }
    }
}
