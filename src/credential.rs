//! Recognises passes, and keys that a request has shown, where they are repeated in other text. Pure.

use std::{borrow::Cow, sync::LazyLock};

use memchr::{memchr, memchr_iter, memmem::Finder};
use percent_encoding::percent_decode;
use zeroize::Zeroizing;

/// What every pass begins with; a real token does not.
pub const PASS_MARK: &str = "wp1-";
/// The mark and the first digits of the time a pass was made: its upper bytes are zero, which random text hardly ever
/// has behind the mark.
static PASS_START: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("wp1-AAAA"));
/// Digits behind the mark from which on a text is a pass; of a shorter beginning more than half of the MAC is missing.
const MIN_PASS_DIGITS: usize = 32;
/// Shortest key that is looked for inside of longer text. A shorter one may be part of an ordinary word.
const MIN_CONTAINED_KEY: usize = 16;
/// Most times that percent-encoding is resolved.
const MAX_DECODINGS: usize = 4;

/// Whether a text begins as a pass does, good or bad.
pub fn is_marked(text: &str) -> bool {
    text.starts_with(PASS_MARK)
}

/// Whether a pass stands anywhere in a text, also percent-encoded.
pub fn holds_pass(text: &[u8]) -> bool {
    text.len() >= PASS_MARK.len() + MIN_PASS_DIGITS && any_decoding(text, contains_pass)
}

/// Whether a value is this key, or holds it if it is too long to occur by chance; also percent-encoded.
pub fn repeats_key(value: &[u8], key: &[u8]) -> bool {
    if key.is_empty() || value.len() < key.len() {
        return false;
    }
    any_decoding(value, |value| value == key || (key.len() >= MIN_CONTAINED_KEY && contains(value, key)))
}

/// The same for any part of a path or a query.
pub fn target_repeats_key(target: &str, key: &[u8]) -> bool {
    if target.len() < key.len() {
        return false;
    }
    if key.len() >= MIN_CONTAINED_KEY {
        return repeats_key(target.as_bytes(), key);
    }
    target.as_bytes().split(|byte| b"/&=;?".contains(byte)).any(|part| repeats_key(part, key))
}

fn contains_pass(text: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let digits = |at: usize| text[at + PASS_MARK.len()..].iter().take(MIN_PASS_DIGITS);
    PASS_START.find_iter(text).any(|at| digits(at).filter(|byte| is_digit(byte)).count() == MIN_PASS_DIGITS)
}

/// Whether `text` holds `part`. A searcher is not built: it costs more than most targets and header lines take.
fn contains(text: &[u8], part: &[u8]) -> bool {
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
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASS: &str = "wp1-AAAAAGqxO4ACaHIHYmlsbGluZ2FiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6MDE";

    fn percent(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02x}")).collect()
    }

    #[test]
    fn passes_are_found_glued_and_encoded_and_only_whole() {
        let encoded = percent(PASS);
        for text in [
            PASS.to_owned(),
            format!("x{PASS}y"),
            format!("a={PASS}&b=1"),
            PASS.replace('-', "%2D"),
            PASS.replace("wp1", "%77p%31"),
            encoded.clone(),
            encoded.replace('%', "%25"),
            encoded.replace('%', "%252525"),
            format!("wp1-AAAA {PASS}"),
            PASS[..36].to_owned(),
        ] {
            assert!(holds_pass(text.as_bytes()), "{text}");
        }
        let media_id = format!("{}wp1-{}", "q7".repeat(40), "Zk".repeat(40));
        for text in ["", "wp1-", "wp1-AAAAAGqxO4A", &PASS[..35], &PASS[1..], &media_id, "%", "%%%41%4"] {
            assert!(!holds_pass(text.as_bytes()), "{text}");
        }
        assert!(is_marked("wp1-x") && !is_marked("xwp1-"));
    }

    #[test]
    fn keys_are_found_in_longer_text_unless_they_are_short() {
        let long = "key-of-crm-0000000000";
        for text in [long.to_owned(), format!("x{long}"), percent(long), percent(long).replace('%', "%25")] {
            assert!(repeats_key(text.as_bytes(), long.as_bytes()), "{text}");
            assert!(target_repeats_key(&format!("a=1&b={text}"), long.as_bytes()), "{text}");
        }
        assert!(repeats_key(b"hr1", b"hr1") && repeats_key(b"h%721", b"hr1"));
        assert!(!repeats_key(b"hr12", b"hr1") && !repeats_key(b"", b"") && !repeats_key(b"x", b""));
        assert!(target_repeats_key("a=1&hr1", b"hr1") && target_repeats_key("/x/%68r1", b"hr1"));
        assert!(!target_repeats_key("/x/hr12?a=xhr1", b"hr1"));
    }

    proptest! {
        #[test]
        fn contains_is_what_a_naive_search_finds(text in "[ab]{0,20}", part in "[ab]{1,4}") {
            prop_assert_eq!(contains(text.as_bytes(), part.as_bytes()), text.contains(&part));
        }
    }
}
