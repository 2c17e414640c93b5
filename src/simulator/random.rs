//! Random tokens and ids that look like WeCom's; not cryptographically secure.

use std::hash::{BuildHasher, RandomState};

const URL_SAFE_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Random text of `chars` URL-safe characters.
pub(super) fn url_safe_text(chars: usize) -> String {
    std::iter::repeat_with(number)
        .flat_map(u64::to_le_bytes)
        .map(|byte| URL_SAFE_ALPHABET[usize::from(byte & 63)] as char)
        .take(chars)
        .collect()
}

/// A random number: the standard library gives each hasher another seed.
pub(super) fn number() -> u64 {
    RandomState::new().hash_one(0)
}
