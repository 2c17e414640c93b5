//! The hash of a client's key, so that the file need not contain the key.

use std::fmt;

use sha2::{Digest, Sha256};

use super::error::Error;
use super::reader::ConfigValue;
use crate::secret::{constant_time::constant_time_eq, hex};
use crate::text::Text;
use crate::{format_text, text};

pub(super) const EXPECTED: Text = text!(
    "the key's SHA-256 in 64 hex digits, as \"wecom-proxy key NAME\" prints it",
    "密钥的 SHA-256，64 位十六进制，由 \"wecom-proxy key NAME\" 打印"
);

/// The SHA-256 of a key. `==` takes constant time.
#[derive(Clone, Copy, Eq)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of `key`.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// The bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether all hex digits are the same, as in examples.
    fn is_placeholder(&self) -> bool {
        self.0.iter().all(|byte| *byte == self.0[0] && byte >> 4 == byte & 0xF)
    }

    /// Parses 64 hex digits.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        hex::decode(text.as_bytes()).map(Self)
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        constant_time_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for KeyHash {
    /// Shows nothing of the hash: a short key can be guessed from it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hash]")
    }
}

/// Reads a `key_sha256`. No error shows the value: it may be the key itself by mistake.
pub(super) fn read(item: &ConfigValue<'_>) -> Result<KeyHash, Error> {
    let text = item.string(EXPECTED)?;
    let hash = KeyHash::from_hex(text)
        .ok_or_else(|| item.error(format_text!("must be {}", "应为：{}", EXPECTED)))?;
    if hash.is_placeholder() {
        return Err(item.error(text!(
            "is a placeholder, not the hash of a key; replace it with what \"wecom-proxy key NAME\" prints",
            "是占位文字，不是密钥的哈希；请换成 \"wecom-proxy key NAME\" 打印的值"
        )));
    }
    if hash == KeyHash::of("") {
        return Err(item.error(text!(
            "is the hash of an empty key; \"wecom-proxy key NAME\" generates one",
            "是空密钥的哈希；请用 \"wecom-proxy key NAME\" 生成"
        )));
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_hex_accepts_64_hex_digits_only() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyHash::from_hex(hex), Some(KeyHash::of("abc")));
        assert_eq!(KeyHash::from_hex(&hex.to_uppercase()), Some(KeyHash::of("abc")));
        for text in [
            "",
            "abc",
            &hex[1..],
            &format!("{hex}0"),
            &format!("{hex}00"),
            &hex.replace('b', "g"),
            &hex.replace('b', "é"),
        ] {
            assert_eq!(KeyHash::from_hex(text), None, "{text}");
        }
        assert_eq!(format!("{:?}", KeyHash::of("abc")), "[hash]");
    }

    #[test]
    fn repeated_digit_is_placeholder() {
        let is_placeholder = |hex: &str| KeyHash::from_hex(hex).unwrap().is_placeholder();
        assert!(is_placeholder(&"0".repeat(64)) && is_placeholder(&"f".repeat(64)));
        assert!(!is_placeholder(&"01".repeat(32)) && !is_placeholder(&format!("{}1", "0".repeat(63))));
    }
}
