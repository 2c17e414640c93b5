//! Which bytes a path or a query has, so that one pass over it answers most of what is asked of a target. A target differs
//! from the one before in most requests, so this is a part of nearly each.

/// Bytes that must be percent-encoded in a path.
pub(super) const NOT_IN_PATH: u16 = 1;
/// Bytes that must be percent-encoded in a query.
pub(super) const NOT_IN_QUERY: u16 = 1 << 1;
/// `%`.
pub(super) const PERCENT: u16 = 1 << 2;
/// `.`.
pub(super) const DOT: u16 = 1 << 3;
/// `_`.
pub(super) const UNDERSCORE: u16 = 1 << 4;
/// What a path has only if some of it may have to be masked: digits and capitals, `&` and `=`, and the letter `k`.
pub(super) const PERHAPS_MASKED: u16 = 1 << 5;
const SLASH: u16 = 1 << 6;
/// Two slashes, one after the other.
pub(super) const DOUBLED_SLASH: u16 = SLASH << 1;

const CLASSES: [u16; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < classes.len() {
        classes[byte] = classes_of(byte as u8);
        byte += 1;
    }
    classes
};

const fn classes_of(byte: u8) -> u16 {
    let not_in_query = match byte {
        0..=b' ' | 0x7f | b'#' => NOT_IN_QUERY,
        _ => 0,
    };
    let not_in_path = match byte {
        0..=b' ' | 0x7f.. | b'\\' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | b'#' => {
            NOT_IN_PATH
        }
        _ => 0,
    };
    let other = match byte {
        b'%' => PERCENT,
        b'.' => DOT,
        b'_' => UNDERSCORE,
        b'0'..=b'9' | b'A'..=b'Z' | b'&' | b'=' | b'k' => PERHAPS_MASKED,
        b'/' => SLASH,
        _ => 0,
    };
    not_in_query | not_in_path | other
}

/// The classes that occur in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ByteClasses(u16);

impl ByteClasses {
    pub(super) fn of(text: &str) -> Self {
        let (mut found, mut previous) = (0, 0);
        for byte in text.as_bytes() {
            let classes = CLASSES[usize::from(*byte)];
            found |= classes | (classes & previous & SLASH) << 1;
            previous = classes;
        }
        Self(found)
    }

    /// Whether any of these classes occurs.
    pub(super) fn contains(self, classes: u16) -> bool {
        self.0 & classes != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_texts() {
        let contains = |text: &str, classes| ByteClasses::of(text).contains(classes);
        for text in ["//", "/a//b", "a//"] {
            assert!(contains(text, DOUBLED_SLASH), "{text}");
        }
        assert!(!contains("/a/b/", DOUBLED_SLASH | NOT_IN_PATH | NOT_IN_QUERY | PERHAPS_MASKED));
        for byte in 0..=u8::MAX {
            let text = char::from(byte).to_string();
            let in_path = byte.is_ascii_graphic() && !b"\\\"<>^`{|}#".contains(&byte);
            assert_eq!(contains(&text, NOT_IN_PATH), !in_path, "{byte}");
            let in_query = byte > b' ' && byte != 0x7f && byte != b'#';
            assert_eq!(contains(&text, NOT_IN_QUERY), !in_query, "{byte}");
        }
        assert!(contains("a%b", PERCENT) && contains("a.b", DOT) && contains("a_b", UNDERSCORE));
        for text in ["hr2", "Hr", "k", "K", "a&b", "a=b"] {
            assert!(contains(text, PERHAPS_MASKED), "{text}");
        }
    }
}
