//! Text that must never be printed: secrets, keys and tokens, masked in every format and wiped when dropped.

pub mod constant_time;
pub mod credential_scan;

use std::{fmt, hint::black_box};

use bytes::Bytes;
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

/// Overwrites bytes that contained a secret. The barrier keeps the compiler from removing the dead writes; one volatile
/// write per byte would cost a small request more than parsing its head.
pub fn wipe(bytes: &mut [u8]) {
    if !bytes.is_empty() {
        bytes.fill(0);
        black_box(bytes);
    }
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
