//! Finds passes, keys that a request has presented, and what could be a credential, inside other text.

use std::{borrow::Cow, sync::LazyLock};

use memchr::{memchr, memchr_iter, memmem::Finder};
use percent_encoding::percent_decode;
use zeroize::Zeroizing;

/// Prefix of every pass; a real token does not have it.
pub const PASS_PREFIX: &str = "wp1-";
/// The prefix and the first characters of the creation time, whose upper bytes are zero: random text hardly ever
/// contains this.
static PASS_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("wp1-AAAA"));
/// Characters after the prefix from which on a text counts as a pass; a shorter fragment lacks more than half of the
/// MAC.
const MIN_PASS_CHARS: usize = 32;
/// Shortest key that is searched for in its request. A shorter one may be a userid, a number or a word of a path.
pub const MIN_KEY_BYTES: usize = 12;
/// Maximum number of percent-decodings. A text that is encoded more often counts as a match.
const MAX_DECODINGS: usize = 8;

/// Whether a text consists of letters, digits, `-` and `_`, the characters of base64url (RFC 4648 §5), as keys in a path,
/// agent names and WeCom's secrets do. An empty one does not.
pub fn is_base64url(text: &str) -> bool {
    !text.is_empty() && text.as_bytes().iter().all(is_base64url_char)
}

/// Whether a character may stand in base64url.
pub fn is_base64url_char(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Whether a text has the prefix of a pass, valid or not.
pub fn has_pass_prefix(text: &str) -> bool {
    text.starts_with(PASS_PREFIX)
}

/// Whether a text contains a pass, also percent-encoded.
pub fn contains_pass(text: &[u8]) -> bool {
    text.len() >= PASS_PREFIX.len() + MIN_PASS_CHARS && any_decoding(text, contains_unencoded_pass)
}

/// Whether a text contains this key, also percent-encoded. A key shorter than [`MIN_KEY_BYTES`] is not searched for.
pub fn contains_key(text: &[u8], key: &[u8]) -> bool {
    key.len() >= MIN_KEY_BYTES
        && text.len() >= key.len()
        && any_decoding(text, |text| contains_bytes(text, key))
}

/// Whether a path, a segment of one or a word may contain a credential: at least 16 bytes, with more than two digits, capitals or
/// percent signs. WeCom's own paths have lower-case letters and underscores, with a digit at most.
#[inline]
pub fn may_be_credential(text: &[u8]) -> bool {
    let is_common_in_credentials =
        |byte: &&u8| byte.is_ascii_digit() | byte.is_ascii_uppercase() | (**byte == b'%');
    text.len() >= 16 && text.iter().filter(is_common_in_credentials).nth(2).is_some()
}

fn contains_unencoded_pass(text: &[u8]) -> bool {
    let chars = |at: usize| text[at + PASS_PREFIX.len()..].iter().take(MIN_PASS_CHARS);
    PASS_FINDER
        .find_iter(text)
        .any(|at| chars(at).filter(|byte| is_base64url_char(byte)).count() == MIN_PASS_CHARS)
}

/// Whether `text` contains `part`. Building a `memmem` searcher would cost more than searching most targets and
/// headers.
fn contains_bytes(text: &[u8], part: &[u8]) -> bool {
    let (Some(last_start), Some(first)) = (text.len().checked_sub(part.len()), part.first()) else {
        return false;
    };
    memchr_iter(*first, &text[..=last_start]).any(|at| &text[at..at + part.len()] == part)
}

/// Whether the text, or the result of percent-decoding it repeatedly, matches.
pub fn any_decoding(text: &[u8], is_match: impl Fn(&[u8]) -> bool) -> bool {
    if is_match(text) {
        return true;
    }
    if memchr(b'%', text).is_none() {
        return false;
    }
    let mut text = Zeroizing::new(text.to_vec());
    for _ in 0..MAX_DECODINGS {
        let Cow::Owned(decoded) = Cow::from(percent_decode(&text)) else { return false };
        text = Zeroizing::new(decoded);
        if is_match(&text) {
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
