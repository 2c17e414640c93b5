//! Recognises passes, and keys that a request has shown, where they are repeated in other text. Pure.

use std::{borrow::Cow, sync::LazyLock};

use memchr::{memchr, memchr_iter, memmem::Finder};
use percent_encoding::percent_decode;
use zeroize::Zeroizing;

/// What every pass begins with; a real token does not.
pub const PASS_PREFIX: &str = "wp1-";
/// The mark and the first digits of the time a pass was made: its upper bytes are zero, which random text hardly ever
/// has behind the mark.
static PASS_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("wp1-AAAA"));
/// Digits behind the mark from which on a text is a pass; of a shorter beginning more than half of the MAC is missing.
const MIN_PASS_CHARS: usize = 32;
/// Shortest key that is looked for elsewhere in its request. A shorter one may be a userid, a number or a word of a path.
pub const MIN_KEY_BYTES: usize = 12;
/// Most times that percent-encoding is resolved. A text that is encoded more often is taken for what is looked for.
const MAX_DECODINGS: usize = 8;

/// Whether a text begins as a pass does, good or bad.
pub fn has_pass_prefix(text: &str) -> bool {
    text.starts_with(PASS_PREFIX)
}

/// Whether a pass stands anywhere in a text, also percent-encoded.
pub fn contains_pass(text: &[u8]) -> bool {
    text.len() >= PASS_PREFIX.len() + MIN_PASS_CHARS && any_decoding(text, contains_unencoded_pass)
}

/// Whether a text holds this key, also percent-encoded. A key that is too short to tell from an ordinary word is not looked
/// for.
pub fn contains_key(text: &[u8], key: &[u8]) -> bool {
    key.len() >= MIN_KEY_BYTES
        && text.len() >= key.len()
        && any_decoding(text, |text| contains_bytes(text, key))
}

fn contains_unencoded_pass(text: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let digits = |at: usize| text[at + PASS_PREFIX.len()..].iter().take(MIN_PASS_CHARS);
    PASS_FINDER.find_iter(text).any(|at| digits(at).filter(|byte| is_digit(byte)).count() == MIN_PASS_CHARS)
}

/// Whether `text` holds `part`. A searcher is not built: it costs more than most targets and header lines take.
fn contains_bytes(text: &[u8], part: &[u8]) -> bool {
    let (Some(last), Some(first)) = (text.len().checked_sub(part.len()), part.first()) else { return false };
    memchr_iter(*first, &text[..=last]).any(|at| &text[at..at + part.len()] == part)
}

/// Whether something is found in a text, or in what it means once its percent-encoding is resolved, repeatedly.
fn any_decoding(text: &[u8], found: impl Fn(&[u8]) -> bool) -> bool {
    if found(text) {
        return true;
    }
    if memchr(b'%', text).is_none() {
        return false;
    }
    let mut text = Zeroizing::new(text.to_vec());
    for _ in 0..MAX_DECODINGS {
        let Cow::Owned(decoded) = Cow::from(percent_decode(&text)) else { return false };
        text = Zeroizing::new(decoded);
        if found(&text) {
            return true;
        }
    }
    matches!(Cow::from(percent_decode(&text)), Cow::Owned(_))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASS: &str = "wp1-AAAAAGqxO4ACaHIHYmlsbGluZ2FiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6MDE";

    fn percent_encode(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02x}")).collect()
    }

    #[test]
    fn contains_pass_finds_embedded_and_encoded_passes() {
        let encoded = percent_encode(PASS);
        for text in [
            PASS.to_owned(),
            format!("x{PASS}y"),
            format!("a={PASS}&b=1"),
            PASS.replace('-', "%2D"),
            PASS.replace("wp1", "%77p%31"),
            encoded.clone(),
            encoded.replace('%', "%25"),
            encoded.replace('%', "%252525"),
            encoded.replace('%', "%25252525"),
            encoded.replace('%', &format!("%{}", "25".repeat(40))),
            format!("wp1-AAAA {PASS}"),
            PASS[..36].to_owned(),
        ] {
            assert!(contains_pass(text.as_bytes()), "{text}");
        }
        let media_id = format!("{}wp1-{}", "q7".repeat(40), "Zk".repeat(40));
        for text in ["", "wp1-", "wp1-AAAAAGqxO4A", &PASS[..35], &PASS[1..], &media_id, "%", "%%%41%4"] {
            assert!(!contains_pass(text.as_bytes()), "{text}");
        }
        assert!(has_pass_prefix("wp1-x") && !has_pass_prefix("xwp1-"));
    }

    #[test]
    fn contains_key_ignores_short_keys() {
        let long = "key-of-crm-0000000000";
        for text in [
            long.to_owned(),
            format!("x{long}"),
            percent_encode(long),
            percent_encode(long).replace('%', "%25"),
        ] {
            assert!(contains_key(text.as_bytes(), long.as_bytes()), "{text}");
            assert!(contains_key(format!("a=1&b={text}").as_bytes(), long.as_bytes()), "{text}");
        }
        for short in ["zhangsan", "1000002", "file", "1", ""] {
            assert!(!contains_key(format!("{short}?userid={short}").as_bytes(), short.as_bytes()), "{short}");
        }
    }

    proptest! {
        #[test]
        fn contains_bytes_matches_naive_search(text in "[ab]{0,20}", part in "[ab]{1,4}") {
            prop_assert_eq!(contains_bytes(text.as_bytes(), part.as_bytes()), text.contains(&part));
        }
    }
}
