//! Text that must never be printed: secrets, keys and tokens, masked in every format and wiped when dropped.
//!
//! Ours: `secrecy`'s `SecretString` would take 10 lines of [`Masked`] (`Debug`, `Drop`) and need 12 for the equality
//! and hash that it does not have.

pub mod constant_time;
pub mod credential_scan;
pub mod hex;
pub mod http_basic;
pub(crate) mod seal;

use std::{cell::Cell, fmt, hash::BuildHasher, hint::black_box, ops::RangeInclusive, time::Instant};

use bytes::Bytes;
use foldhash::quality::RandomState;
use hmac::{Hmac, KeyInit};
use sha2::Sha256;
use zeroize::Zeroize;

/// A secret, key or token. `Debug` prints a mask, `Display` does not exist; [`Masked::expose`] is the only access to
/// the text, so that reviews can search for it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Masked(Box<str>);

impl Masked {
    /// Wraps `text` without validation.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself. The caller must make sure that it is not printed.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[masked]")
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The start of an HMAC under a key of any length.
pub(crate) fn hmac_with_key(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::new_from_slice(key) {
        Ok(mac) => mac,
        // RFC 2104 allows any length.
        Err(_) => unreachable!("HMAC refuses no key"),
    }
}

/// A random number for what must be unique rather than secret. The program does not start without a source of
/// randomness; should it fail later, the clock and a hash key of this process take its place.
pub fn random_u64() -> u64 {
    getrandom::u64().unwrap_or_else(|_| RandomState::default().hash_one(Instant::now()))
}

/// A random number from 0 to 1, from [`random_u64`].
pub fn random_fraction() -> f64 {
    f64::from(random_u64() as u32) / f64::from(u32::MAX)
}

/// Overwrites bytes that contained a secret. The barrier keeps the compiler from removing the dead writes; one volatile
/// write per byte would cost a small request more than parsing its head.
pub fn wipe(bytes: &mut [u8]) {
    if !bytes.is_empty() {
        bytes.fill(0);
        black_box(bytes);
    }
}

/// Capacity of a vector that its thread keeps for reuse. Freed among what connections keep, it would leave a hole that what
/// they keep then fills.
const SPARE_BYTES: RangeInclusive<usize> = 16 * 1024..=128 * 1024;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An empty vector with room for `length` bytes, for [`wipe_on_drop`].
pub fn vec_to_wipe(length: usize) -> Vec<u8> {
    if SPARE_BYTES.contains(&length) {
        let spare = SPARE.take();
        if spare.capacity() >= length {
            return spare;
        }
    }
    Vec::with_capacity(length)
}

/// Bytes that are wiped when the last reference is dropped. Memory that the vector outgrew before is not wiped.
pub fn wipe_on_drop(bytes: Vec<u8>) -> Bytes {
    Bytes::from_owner(WipeOnDrop(bytes))
}

struct WipeOnDrop(Vec<u8>);

impl AsRef<[u8]> for WipeOnDrop {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for WipeOnDrop {
    fn drop(&mut self) {
        wipe(&mut self.0);
        if SPARE_BYTES.contains(&self.0.capacity()) {
            let mut spare = std::mem::take(&mut self.0);
            spare.clear();
            let _ = SPARE.try_with(|kept| kept.set(spare));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_vector_is_wiped_and_reused() {
        let mut text = vec_to_wipe(20_000);
        text.extend_from_slice(&[b's'; 20_000]);
        let place = text.as_ptr();
        drop(wipe_on_drop(text));
        let mut reused = vec_to_wipe(18_000);
        assert!(reused.as_ptr() == place && reused.is_empty() && reused.capacity() >= 20_000);
        let other = vec_to_wipe(18_000);
        assert!(other.as_ptr() != place && reused.spare_capacity_mut().len() >= 20_000);
    }

    #[test]
    fn wipe_zeroes_bytes() {
        let mut bytes = *b"s3cret-of-hr";
        wipe(&mut bytes);
        assert_eq!(bytes, [0; 12]);
        let shared = wipe_on_drop(b"s3cret".to_vec());
        let part = shared.slice(2..);
        drop(shared);
        assert_eq!(&part[..], b"cret", "a slice keeps the bytes alive");
    }

    #[test]
    fn masked_debug_hides_text() {
        let masked = Masked::new("s3cret-of-hr");
        assert_eq!(format!("{masked:?}"), "[masked]");
        assert!(!format!("{:#?}", Some(&masked)).contains("s3cret"));
        assert_eq!(masked.expose(), "s3cret-of-hr");
    }
}
