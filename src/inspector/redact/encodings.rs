//! What one secret looks like to whoever searches for it.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use foldhash::HashSet;
use zeroize::Zeroize;

use super::decoded_text::{DecodedText, canonical_byte};

/// The shortest text that is searched for in a longer one, if nothing else tells that it is there.
pub(super) const MIN_SEARCH_BYTES: usize = 6;
/// The shortest secret that is searched for in base64 and in hexadecimal digits, so that enough of it is left.
const MIN_ENCODED_SECRET_BYTES: usize = 9;

type Prefix = [u8; MIN_SEARCH_BYTES];

/// How some texts begin, wherever one looks into them: most secrets are in none of them, and that is soon seen.
#[derive(Default)]
pub(super) struct PrefixSet(HashSet<Prefix>);

impl PrefixSet {
    /// Takes in what can be found in a text.
    pub(super) fn insert_text(&mut self, level: &DecodedText) {
        let canonical = level.canonicalize();
        self.0.extend(
            canonical.bytes.windows(MIN_SEARCH_BYTES).filter_map(|start| Prefix::try_from(start).ok()),
        );
    }

    /// Whether a secret may be in one of the texts, in some guise.
    pub(super) fn may_contain(&self, secret: &str) -> bool {
        encoded_prefixes(secret.as_bytes()).into_iter().flatten().any(|start| self.0.contains(&start))
    }
}

/// How the guises of a secret begin. There may be very many secrets, so that nothing is allocated.
fn encoded_prefixes(secret: &[u8]) -> [Option<Prefix>; 5] {
    let mut starts = [canonical_prefix(secret), None, None, None, None];
    if secret.len() >= MIN_ENCODED_SECRET_BYTES {
        for shift in 0..3 {
            let mut bytes = [0; MIN_ENCODED_SECRET_BYTES + 2];
            bytes[shift..shift + MIN_ENCODED_SECRET_BYTES]
                .copy_from_slice(&secret[..MIN_ENCODED_SECRET_BYTES]);
            let mut digits = [0; 16];
            // There is room for more than this.
            let _ = BASE64_STANDARD_NO_PAD.encode_slice(bytes, &mut digits);
            starts[1 + shift] = canonical_prefix(&digits[4 * shift.min(1)..]);
        }
        let mut digits = [0; MIN_SEARCH_BYTES];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(secret) {
            pair.copy_from_slice(&hex_digits(*byte));
        }
        starts[4] = Some(digits);
    }
    starts
}

/// The first bytes, as they are looked for.
fn canonical_prefix(text: &[u8]) -> Option<Prefix> {
    let mut start = [0; MIN_SEARCH_BYTES];
    let mut bytes = text.iter().filter_map(|byte| canonical_byte(*byte));
    for place in &mut start {
        *place = bytes.next()?;
    }
    Some(start)
}

fn hex_digits(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)])
}

/// One form of a secret.
pub(super) struct EncodedForm {
    /// What is searched for.
    pub(super) text: Vec<u8>,
    /// So much on either side may be made of the secret too.
    pub(super) margin_bytes: usize,
}

impl Drop for EncodedForm {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

/// A secret in every form in which it is looked for: as it is, in base64 wherever in a longer text it begins, and in
/// hexadecimal digits.
pub(super) fn encodings(secret: &[u8]) -> Vec<EncodedForm> {
    let as_it_is = |text| EncodedForm { text, margin_bytes: 0 };
    let mut guises = vec![as_it_is(canonicalize(secret))];
    if secret.len() >= MIN_ENCODED_SECRET_BYTES {
        guises.extend(
            [0, 1, 2].map(|shift| EncodedForm { text: base64_infix(secret, shift), margin_bytes: 4 }),
        );
        guises.push(as_it_is(secret.iter().flat_map(|byte| hex_digits(*byte)).collect()));
    }
    guises.retain(|guise| !guise.text.is_empty());
    guises
}

/// What base64 makes of a secret with so many bytes in front, without the digits that depend on its neighbours.
fn base64_infix(secret: &[u8], shift: usize) -> Vec<u8> {
    let whole = BASE64_STANDARD_NO_PAD.encode([&b"xx"[..shift], secret].concat());
    canonicalize(&whole.as_bytes()[4 * shift.min(1)..whole.len() - 2])
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
            let begins: Vec<_> =
                encoded_prefixes(secret.as_bytes()).into_iter().flatten().map(Vec::from).collect();
            let guises = encodings(secret.as_bytes());
            let expected: Vec<_> =
                guises.iter().map(|guise| guise.text[..MIN_SEARCH_BYTES].to_vec()).collect();
            assert_eq!(begins, expected, "{secret}");
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
        for held in ["s3cret/of+hr", "the-key-of-billing"] {
            assert!(texts.may_contain(held), "{held}");
        }
        for other in ["other-secret-of-ops", "another-key-of-crm", ""] {
            assert!(!texts.may_contain(other), "{other}");
        }
    }
}
