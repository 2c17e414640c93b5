//! Encoded forms of a secret, and a prefix index that rules most secrets out.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use foldhash::HashSet;
use zeroize::Zeroize;

use super::decoded_text::{DecodedText, canonical_byte};

/// Minimum length of a search text without further evidence.
pub(super) const MIN_SEARCH_BYTES: usize = 6;
/// Minimum length of a secret that is searched in base64 and hexadecimal digits, so that enough unambiguous digits
/// remain.
const MIN_ENCODED_SECRET_BYTES: usize = 9;

type Prefix = [u8; MIN_SEARCH_BYTES];

/// Prefixes that occur anywhere in the indexed texts; rules out most secrets cheaply.
#[derive(Default)]
pub(super) struct PrefixSet(HashSet<Prefix>);

impl PrefixSet {
    /// Indexes every position of a text.
    pub(super) fn insert_text(&mut self, level: &DecodedText) {
        let canonical = level.canonicalize();
        self.0.extend(
            canonical.bytes.windows(MIN_SEARCH_BYTES).filter_map(|window| Prefix::try_from(window).ok()),
        );
    }

    /// Whether a secret may occur in an indexed text, in any encoding.
    pub(super) fn may_contain(&self, secret: &str) -> bool {
        encoded_prefixes(secret.as_bytes()).into_iter().flatten().any(|prefix| self.0.contains(&prefix))
    }
}

/// Prefixes of a secret's encoded forms. No allocation: there may be very many secrets.
fn encoded_prefixes(secret: &[u8]) -> [Option<Prefix>; 5] {
    let mut prefixes = [canonical_prefix(secret), None, None, None, None];
    if secret.len() >= MIN_ENCODED_SECRET_BYTES {
        for shift in 0..3 {
            let mut bytes = [0; MIN_ENCODED_SECRET_BYTES + 2];
            bytes[shift..shift + MIN_ENCODED_SECRET_BYTES]
                .copy_from_slice(&secret[..MIN_ENCODED_SECRET_BYTES]);
            let mut digits = [0; 16];
            // The buffer is larger than the encoded prefix.
            let _ = BASE64_STANDARD_NO_PAD.encode_slice(bytes, &mut digits);
            prefixes[1 + shift] = canonical_prefix(&digits[4 * shift.min(1)..]);
        }
        let mut digits = [0; MIN_SEARCH_BYTES];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(secret) {
            pair.copy_from_slice(&hex_digits(*byte));
        }
        prefixes[4] = Some(digits);
    }
    prefixes
}

/// The first bytes in canonical form.
fn canonical_prefix(text: &[u8]) -> Option<Prefix> {
    let mut prefix = [0; MIN_SEARCH_BYTES];
    let mut bytes = text.iter().filter_map(|byte| canonical_byte(*byte));
    for slot in &mut prefix {
        *slot = bytes.next()?;
    }
    Some(prefix)
}

fn hex_digits(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)])
}

/// One encoded form of a secret.
pub(super) struct EncodedForm {
    /// Canonical text to search for.
    pub(super) text: Vec<u8>,
    /// Bytes on either side that may encode parts of the secret too.
    pub(super) margin_bytes: usize,
}

impl Drop for EncodedForm {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

/// All searched forms of a secret: plain, base64 at each of the three alignments, hexadecimal digits.
pub(super) fn encodings(secret: &[u8]) -> Vec<EncodedForm> {
    let without_margin = |text| EncodedForm { text, margin_bytes: 0 };
    let mut forms = vec![without_margin(canonicalize(secret))];
    if secret.len() >= MIN_ENCODED_SECRET_BYTES {
        forms.extend(
            [0, 1, 2].map(|shift| EncodedForm { text: base64_infix(secret, shift), margin_bytes: 4 }),
        );
        forms.push(without_margin(secret.iter().flat_map(|byte| hex_digits(*byte)).collect()));
    }
    forms.retain(|form| !form.text.is_empty());
    forms
}

/// base64 of a secret preceded by `shift` bytes, without the digits that depend on its neighbours.
fn base64_infix(secret: &[u8], shift: usize) -> Vec<u8> {
    let encoded = BASE64_STANDARD_NO_PAD.encode([&b"xx"[..shift], secret].concat());
    canonicalize(&encoded.as_bytes()[4 * shift.min(1)..encoded.len() - 2])
}

fn canonicalize(text: &[u8]) -> Vec<u8> {
    text.iter().filter_map(|byte| canonical_byte(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_prefixes_match_encodings() {
        for secret in ["s3cret/of+hr-1", "Nine-Chrs", "with space\tand more", "ends in !?~"] {
            let prefixes: Vec<_> =
                encoded_prefixes(secret.as_bytes()).into_iter().flatten().map(Vec::from).collect();
            let forms = encodings(secret.as_bytes());
            let expected: Vec<_> = forms.iter().map(|form| form.text[..MIN_SEARCH_BYTES].to_vec()).collect();
            assert_eq!(prefixes, expected, "{secret}");
        }
    }

    #[test]
    fn short_secret_has_only_the_plain_form() {
        assert_eq!(encoded_prefixes(b"short").into_iter().flatten().count(), 0);
        let [short] = &encodings(b"Sh ort")[..] else { panic!("one") };
        assert_eq!(short.text, b"short");
        assert!(encodings(b" ").is_empty());
    }

    #[test]
    fn absent_secret_is_ruled_out_by_prefix() {
        let mut texts = PrefixSet::default();
        for text in ["x=s3cret%2Fof%2Bhr", "Basic YmlsbGluZzp0aGUta2V5LW9mLWJpbGxpbmc="] {
            DecodedText::decode_levels(text).iter().for_each(|level| texts.insert_text(level));
        }
        for present in ["s3cret/of+hr", "the-key-of-billing"] {
            assert!(texts.may_contain(present), "{present}");
        }
        for absent in ["other-secret-of-ops", "another-key-of-crm", ""] {
            assert!(!texts.may_contain(absent), "{absent}");
        }
    }
}
