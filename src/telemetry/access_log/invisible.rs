//! Characters that are invisible in a log viewer or change how it shows the rest of a line.

/// Whether a character is escaped in the log: control characters (C0, DEL, C1), bidirectional controls, zero-width
/// characters, characters that look like a space, line and paragraph separators, and tags.
pub(crate) fn is_invisible(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Appends a JSON escape such as `\u202e`; a surrogate pair above U+FFFF.
pub(crate) fn escape_json(out: &mut Vec<u8>, char: char) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for unit in char.encode_utf16(&mut [0; 2]) {
        out.extend_from_slice(b"\\u");
        out.extend([12, 8, 4, 0].map(|shift| HEX[usize::from(*unit >> shift & 15)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_invisible_matches_controls_but_not_letters() {
        for char in "aé张🙂~ \u{a0}".chars() {
            assert!(!is_invisible(char), "{char:?}");
        }
        for code in [
            0, 0x1b, 0x7f, 0x85, 0x9b, 0x200b, 0x200d, 0x2028, 0x2029, 0x202a, 0x202e, 0x2066, 0x2069,
            0xfeff, 0xe0041,
        ] {
            assert!(char::from_u32(code).is_some_and(is_invisible), "{code:x}");
        }
    }

    #[test]
    fn escape_json_round_trips() {
        for char in ['\u{7f}', '\u{85}', '\u{202e}', '\u{feff}', '\u{e0041}'] {
            let mut out = b"\"".to_vec();
            escape_json(&mut out, char);
            out.push(b'"');
            assert!(out.is_ascii());
            assert_eq!(serde_json::from_slice::<String>(&out).expect("JSON"), char.to_string());
        }
    }
}
