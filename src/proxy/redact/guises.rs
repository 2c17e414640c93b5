//! What one secret looks like to whoever searches for it.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use foldhash::HashSet;
use zeroize::Zeroize;

use super::plain::{Plain, canonical_byte};

/// The shortest text that is searched for in a longer one, if nothing else tells that it is there.
pub(super) const SHORTEST: usize = 6;
/// The shortest secret that is searched for in base64 and in hexadecimal digits, so that enough of it is left.
const SHORTEST_ENCODED: usize = 9;

type Start = [u8; SHORTEST];

/// How some texts begin, wherever one looks into them: most secrets are in none of them, and that is soon seen.
#[derive(Default)]
pub(super) struct Starts(HashSet<Start>);

impl Starts {
    /// Takes in what can be found in a text.
    pub(super) fn add(&mut self, level: &Plain) {
        let canonical = level.canonical();
        self.0.extend(canonical.bytes.windows(SHORTEST).filter_map(|start| Start::try_from(start).ok()));
    }

    /// Whether a secret may be in one of the texts, in some guise.
    pub(super) fn may_hold(&self, secret: &str) -> bool {
        starts(secret.as_bytes()).into_iter().flatten().any(|start| self.0.contains(&start))
    }
}

/// How the guises of a secret begin. There may be very many secrets, so that nothing is allocated.
fn starts(secret: &[u8]) -> [Option<Start>; 5] {
    let mut starts = [first(secret), None, None, None, None];
    if secret.len() >= SHORTEST_ENCODED {
        for shift in 0..3 {
            let mut bytes = [0; SHORTEST_ENCODED + 2];
            bytes[shift..shift + SHORTEST_ENCODED].copy_from_slice(&secret[..SHORTEST_ENCODED]);
            let mut digits = [0; 16];
            // There is room for more than this.
            let _ = BASE64_STANDARD_NO_PAD.encode_slice(bytes, &mut digits);
            starts[1 + shift] = first(&digits[4 * shift.min(1)..]);
        }
        let mut digits = [0; SHORTEST];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(secret) {
            pair.copy_from_slice(&hex(*byte));
        }
        starts[4] = Some(digits);
    }
    starts
}

/// The first bytes, as they are looked for.
fn first(text: &[u8]) -> Option<Start> {
    let mut start = [0; SHORTEST];
    let mut bytes = text.iter().filter_map(|byte| canonical_byte(*byte));
    for place in &mut start {
        *place = bytes.next()?;
    }
    Some(start)
}

fn hex(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)])
}

/// One form of a secret.
pub(super) struct Guise {
    /// What is searched for.
    pub(super) text: Vec<u8>,
    /// So much on either side may be made of the secret too.
    pub(super) around: usize,
}

impl Drop for Guise {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

/// A secret in every form in which it is looked for: as it is, in base64 wherever in a longer text it begins, and in
/// hexadecimal digits.
pub(super) fn guises(secret: &[u8]) -> Vec<Guise> {
    let as_it_is = |text| Guise { text, around: 0 };
    let mut guises = vec![as_it_is(canonical(secret))];
    if secret.len() >= SHORTEST_ENCODED {
        guises.extend([0, 1, 2].map(|shift| Guise { text: in_base64(secret, shift), around: 4 }));
        guises.push(as_it_is(secret.iter().flat_map(|byte| hex(*byte)).collect()));
    }
    guises.retain(|guise| !guise.text.is_empty());
    guises
}

/// What base64 makes of a secret with so many bytes in front, without the digits that depend on its neighbours.
fn in_base64(secret: &[u8], shift: usize) -> Vec<u8> {
    let whole = BASE64_STANDARD_NO_PAD.encode([&b"xx"[..shift], secret].concat());
    canonical(&whole.as_bytes()[4 * shift.min(1)..whole.len() - 2])
}

fn canonical(text: &[u8]) -> Vec<u8> {
    text.iter().filter_map(|byte| canonical_byte(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guise_begins_as_it_is_said_to() {
        for secret in ["s3cret/of+hr-1", "Nine-Chrs", "with space\tand more", "ends in !?~"] {
            let begins: Vec<_> = starts(secret.as_bytes()).into_iter().flatten().map(Vec::from).collect();
            let guises = guises(secret.as_bytes());
            let expected: Vec<_> = guises.iter().map(|guise| guise.text[..SHORTEST].to_vec()).collect();
            assert_eq!(begins, expected, "{secret}");
        }
    }

    #[test]
    fn a_short_secret_has_no_guises() {
        assert_eq!(starts(b"short").into_iter().flatten().count(), 0);
        let [short] = &guises(b"Sh ort")[..] else { panic!("one") };
        assert_eq!(short.text, b"short");
        assert!(guises(b" ").is_empty());
    }

    #[test]
    fn what_is_not_there_is_soon_seen() {
        let mut texts = Starts::default();
        for text in ["x=s3cret%2Fof%2Bhr", "Basic YmlsbGluZzp0aGUta2V5LW9mLWJpbGxpbmc="] {
            Plain::levels(text).iter().for_each(|level| texts.add(level));
        }
        for held in ["s3cret/of+hr", "the-key-of-billing"] {
            assert!(texts.may_hold(held), "{held}");
        }
        for other in ["other-secret-of-ops", "another-key-of-crm", ""] {
            assert!(!texts.may_hold(other), "{other}");
        }
    }
}
