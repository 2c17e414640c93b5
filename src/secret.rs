//! Text that must never be shown: secrets, keys and tokens, masked in every printed form and wiped when dropped.

pub mod credential_scan;

use std::{fmt, hint::black_box};

use bytes::Bytes;
use zeroize::Zeroize;

/// A secret, key or token. `Debug` prints a mask, `Display` does not exist; [`Masked::expose`] is the only way to the
/// text, and is meant to be searched for in reviews.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Masked(Box<str>);

impl Masked {
    /// Wraps `text`, which is not looked at.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself. Whoever calls this answers for where it goes.
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

/// Overwrites bytes that held a secret. The barrier keeps the compiler from dropping writes that nothing reads; a volatile
/// write for each byte would cost a small request more than its head does.
pub fn wipe(bytes: &mut [u8]) {
    if !bytes.is_empty() {
        bytes.fill(0);
        black_box(bytes);
    }
}

/// Bytes that are wiped when the last reference to them goes. Memory that the vector had before it grew is not.
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
    }
}

/// Wipes a text and leaves an empty one.
pub fn wipe_string(text: &mut String) {
    wipe(&mut std::mem::take(text).into_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wipe_zeroes_bytes() {
        let mut bytes = *b"s3cret-of-hr";
        wipe(&mut bytes);
        assert_eq!(bytes, [0; 12]);
        let mut text = "s3cret".to_owned();
        wipe_string(&mut text);
        assert!(text.is_empty());
        let shared = wipe_on_drop(b"s3cret".to_vec());
        let part = shared.slice(2..);
        drop(shared);
        assert_eq!(&part[..], b"cret", "a part of it keeps it whole");
    }

    #[test]
    fn masked_debug_hides_text() {
        let masked = Masked::new("s3cret-of-hr");
        assert_eq!(format!("{masked:?}"), "[masked]");
        assert!(!format!("{:#?}", Some(&masked)).contains("s3cret"));
        assert_eq!(masked.expose(), "s3cret-of-hr");
    }
}
