//! Finds the secrets that can occur in one exchange, in any case, in part, and in base64 or hexadecimal digits.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use zeroize::Zeroizing;

use crate::secret::hex;

/// Maximum secrets of one exchange. More is taken for an attack on the redaction's time.
pub(super) const MAX_SECRETS: usize = 64;
/// Maximum bytes of a secret that are searched for. A token has at most 512.
const MAX_SECRET_BYTES: usize = 1024;
/// A secret is found by any part that contains one of its consecutive windows: by any part of twice this length.
const WINDOW_BYTES: usize = 8;
/// Minimum length of a secret that is searched for in base64 and hexadecimal digits, so that a window of unambiguous
/// digits remains.
const MIN_ENCODED_SECRET_BYTES: usize = 9;
/// The prefix of every pass, plain and in hexadecimal digits.
const PASS_PREFIXES: [&[u8]; 2] = [b"wp1+", b"7770312d"];

/// An automaton over the secrets of one exchange, built for it. No `Debug`: it contains the secrets, byte by byte in
/// its states and in no readable order.
pub(super) struct KnownSecrets(AhoCorasick);

impl KnownSecrets {
    /// `None` if there are too many secrets.
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let secrets: BTreeSet<_> = secrets.into_iter().collect();
        let forms: Vec<_> = secrets.iter().flat_map(|secret| encodings(secret.as_bytes())).collect();
        let windows = forms.iter().flat_map(|form| windows(form)).chain(PASS_PREFIXES);
        let mut builder = AhoCorasick::builder();
        // The fastest to build: an automaton serves for one exchange. A prefilter would copy the windows as they are.
        builder.kind(Some(AhoCorasickKind::NoncontiguousNFA)).prefilter(false);
        (secrets.len() <= MAX_SECRETS).then(|| builder.build(windows).ok()).flatten().map(Self)
    }

    /// Whether a secret continues over a separator between words, so that masking words would leave some of it.
    pub(super) fn span_words(&self, text: &str, is_separator: impl Fn(char) -> bool) -> bool {
        let count = |part: &str| self.0.find_overlapping_iter(&*canonicalize(part.as_bytes())).count();
        count(text) != text.split(is_separator).map(count).sum::<usize>()
    }

    /// Whether a text contains a secret, or enough of one.
    pub(super) fn occur_in(&self, text: &[u8]) -> bool {
        self.0.is_match(&*canonicalize(text))
    }
}

/// The searched parts of an encoded secret; a short one is searched for as a whole.
fn windows(form: &[u8]) -> impl Iterator<Item = &[u8]> {
    let windows = form.chunks(WINDOW_BYTES).enumerate();
    windows.filter(|(nth, window)| *nth == 0 || window.len() == WINDOW_BYTES).map(|(_, window)| window)
}

/// All searched forms of a secret: plain, base64 at each of the three alignments, hexadecimal digits.
fn encodings(secret: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let secret = &secret[..secret.len().min(MAX_SECRET_BYTES)];
    let mut forms = vec![canonicalize(secret)];
    if secret.len() >= MIN_ENCODED_SECRET_BYTES {
        forms.extend([0, 1, 2].map(|shift| base64_infix(secret, shift)));
        forms.push(Zeroizing::new(secret.iter().flat_map(|byte| hex::digits(*byte)).collect()));
    }
    forms.retain(|form| !form.is_empty());
    forms
}

/// base64 of a secret preceded by `shift` bytes, without the digits that depend on its neighbours.
fn base64_infix(secret: &[u8], shift: usize) -> Zeroizing<Vec<u8>> {
    let shifted = Zeroizing::new([&b"xx"[..shift], secret].concat());
    let encoded = Zeroizing::new(BASE64_STANDARD_NO_PAD.encode(&*shifted));
    canonicalize(&encoded.as_bytes()[4 * shift.min(1)..encoded.len() - 2])
}

/// Lower case, one base64 alphabet, no white space.
fn canonicalize(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut canonical = Zeroizing::new(Vec::with_capacity(text.len()));
    canonical.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other.to_ascii_lowercase(),
    }));
    canonical
}
