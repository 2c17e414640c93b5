//! Random text that looks like WeCom's. Good enough for things that protect nothing.

use std::hash::{BuildHasher, RandomState};

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// This many URL-safe characters.
pub(super) fn text(chars: usize) -> String {
    std::iter::repeat_with(number)
        .flat_map(u64::to_le_bytes)
        .map(|byte| LETTERS[usize::from(byte & 63)] as char)
        .take(chars)
        .collect()
}

/// A random number: the standard library seeds each hasher anew.
pub(super) fn number() -> u64 {
    RandomState::new().hash_one(0)
}
