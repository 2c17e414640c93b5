//! Signature and encryption of callbacks, as documented at developer.work.weixin.qq.com/document/path/91144.
//!
//! The plaintext is `random(16) ‖ length(4, big-endian) ‖ message ‖ receiveid ‖ padding`, encrypted with AES-256-CBC. The
//! padding is PKCS#7 to 32 bytes, twice the block size of AES, so the cipher runs unpadded and the padding is removed here.

use std::ops::Range;

use aws_lc_rs::{
    cipher::{
        AES_256, AES_256_KEY_LEN, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
        UnboundCipherKey,
    },
    digest::{Context, SHA1_FOR_LEGACY_USE_ONLY},
    iv::FixedLength,
};
use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_STANDARD,
};
use zeroize::Zeroizing;

use crate::secret::{Masked, constant_time::constant_time_eq, hex};

/// The length of an EncodingAESKey.
pub const ENCODED_KEY_CHARS: usize = 43;
/// The padded length is a multiple of this.
const PADDING_BLOCK_BYTES: usize = 32;
const AES_BLOCK_BYTES: usize = 16;
const RANDOM_BYTES: usize = 16;
/// What stands before the message: the random bytes and the length.
const HEADER_BYTES: usize = RANDOM_BYTES + 4;

/// The 43rd character of an EncodingAESKey stands for 4 bits of the key and 2 that are lost; WeCom does not clear these.
const KEY_ENCODING: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// Token and EncodingAESKey of one receiver URL.
pub struct CallbackKeys {
    token: Masked,
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
    iv: Zeroizing<[u8; AES_BLOCK_BYTES]>,
}

/// Why a text with a valid signature could not be decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// Not base64, or no whole number of blocks.
    #[error("encrypted text malformed")]
    Malformed,
    /// The padding is not PKCS#7 to 32 bytes, as with another EncodingAESKey.
    #[error("padding wrong")]
    Padding,
    /// The length of the message is larger than what follows it.
    #[error("length wrong")]
    Length,
    /// The receiveid is not UTF-8.
    #[error("receiveid malformed")]
    ReceiveId,
}

/// A decrypted message and the receiveid that it names. No `Debug`: messages contain codes and tickets.
pub struct Decrypted {
    plaintext: Zeroizing<Vec<u8>>,
    message: Range<usize>,
    receive_id: Range<usize>,
}

impl Decrypted {
    /// The message, as WeCom wrote it.
    pub fn message(&self) -> &[u8] {
        &self.plaintext[self.message.clone()]
    }

    /// The receiveid; which one is expected depends on the kind of the receiver URL.
    pub fn receive_id(&self) -> &str {
        // Checked when it was decrypted.
        std::str::from_utf8(&self.plaintext[self.receive_id.clone()]).unwrap_or_default()
    }
}

/// The key of an EncodingAESKey: 43 characters of base64.
fn decode_key(encoded: &str) -> Option<Zeroizing<[u8; AES_256_KEY_LEN]>> {
    let mut key = Zeroizing::new([0; AES_256_KEY_LEN]);
    let length = KEY_ENCODING.decode_slice(encoded, &mut *key).ok()?;
    (encoded.len() == ENCODED_KEY_CHARS && length == AES_256_KEY_LEN).then_some(key)
}

impl CallbackKeys {
    /// The keys of a receiver URL. `None` if `encoding_aes_key` is not one.
    pub fn new(token: Masked, encoding_aes_key: &Masked) -> Option<Self> {
        let key = decode_key(encoding_aes_key.expose())?;
        let unbound = || UnboundCipherKey::new(&AES_256, &*key).ok();
        let mut iv = Zeroizing::new([0; AES_BLOCK_BYTES]);
        iv.copy_from_slice(&key[..AES_BLOCK_BYTES]);
        Some(Self {
            token,
            encrypting: EncryptingKey::cbc(unbound()?).ok()?,
            decrypting: DecryptingKey::cbc(unbound()?).ok()?,
            iv,
        })
    }

    /// The signature of an encrypted text: SHA-1 in hex, in lower case.
    pub fn sign(&self, timestamp: &str, nonce: &str, encrypted: &str) -> String {
        let mut parts = [self.token.expose(), timestamp, nonce, encrypted];
        parts.sort_unstable();
        let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        parts.iter().for_each(|part| digest.update(part.as_bytes()));
        hex::encode(digest.finish().as_ref())
    }

    /// Whether `signature` is the one of [`Self::sign`], compared in constant time.
    pub fn verify(&self, signature: &str, timestamp: &str, nonce: &str, encrypted: &str) -> bool {
        constant_time_eq(signature.as_bytes(), self.sign(timestamp, nonce, encrypted).as_bytes())
    }

    /// Decrypts a text whose signature was verified.
    pub fn decrypt(&self, encrypted: &str) -> Result<Decrypted, DecryptError> {
        let mut plaintext =
            Zeroizing::new(BASE64_STANDARD.decode(encrypted).map_err(|_| DecryptError::Malformed)?);
        if plaintext.is_empty() || !plaintext.len().is_multiple_of(AES_BLOCK_BYTES) {
            return Err(DecryptError::Malformed);
        }
        let iv = DecryptionContext::Iv128(FixedLength::from(&*self.iv));
        self.decrypting.decrypt(&mut plaintext, iv).map_err(|_| DecryptError::Malformed)?;
        let unpadded = unpadded_len(&plaintext).ok_or(DecryptError::Padding)?;
        let header = plaintext[..unpadded].first_chunk::<HEADER_BYTES>().ok_or(DecryptError::Length)?;
        let [.., a, b, c, d] = *header;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| DecryptError::Length)?;
        let message_end = HEADER_BYTES.checked_add(length).filter(|end| *end <= unpadded);
        let message_end = message_end.ok_or(DecryptError::Length)?;
        let (message, receive_id) = (HEADER_BYTES..message_end, message_end..unpadded);
        std::str::from_utf8(&plaintext[receive_id.clone()]).map_err(|_| DecryptError::ReceiveId)?;
        Ok(Decrypted { plaintext, message, receive_id })
    }

    /// Encrypts a message. `None` if there is no source of randomness, or the message is larger than 4 GiB.
    pub fn encrypt(&self, message: &[u8], receive_id: &str) -> Option<String> {
        let mut random = [0; RANDOM_BYTES];
        getrandom::fill(&mut random).ok()?;
        self.encrypt_with(random, message, receive_id)
    }

    fn encrypt_with(&self, random: [u8; RANDOM_BYTES], message: &[u8], receive_id: &str) -> Option<String> {
        let length = u32::try_from(message.len()).ok()?.to_be_bytes();
        let unpadded = HEADER_BYTES + message.len() + receive_id.len();
        let padding = PADDING_BLOCK_BYTES - unpadded % PADDING_BLOCK_BYTES;
        let mut text = Zeroizing::new(Vec::with_capacity(unpadded + padding));
        for part in [&random[..], &length, message, receive_id.as_bytes()] {
            text.extend_from_slice(part);
        }
        text.resize(unpadded + padding, padding as u8);
        let iv = EncryptionContext::Iv128(FixedLength::from(&*self.iv));
        self.encrypting.less_safe_encrypt(&mut text, iv).ok()?;
        Some(BASE64_STANDARD.encode(&*text))
    }
}

/// The length without the padding; `None` if the padding is not PKCS#7 to 32 bytes.
fn unpadded_len(plaintext: &[u8]) -> Option<usize> {
    let padding = usize::from(*plaintext.last()?);
    let is_valid = (1..=PADDING_BLOCK_BYTES).contains(&padding);
    let unpadded = plaintext.len().checked_sub(padding).filter(|_| is_valid)?;
    plaintext[unpadded..].iter().all(|byte| usize::from(*byte) == padding).then_some(unpadded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "QDG6eK";
    const KEY: &str = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C";
    const ENCRYPTED: &str =
        "P9nAzCzyDtyTWESHep1vC5X9xho/qYX3Zpb4yKa9SKld1DsH3Iyt3tP3zNdtp+4RPcs8TgAE7OaBO+FZXvnaqQ==";

    fn keys(encoding_aes_key: &str) -> CallbackKeys {
        CallbackKeys::new(Masked::new(TOKEN), &Masked::new(encoding_aes_key)).expect("a key")
    }

    fn encrypt_raw(keys: &CallbackKeys, mut plaintext: Vec<u8>) -> String {
        let iv = EncryptionContext::Iv128(FixedLength::from(&*keys.iv));
        keys.encrypting.less_safe_encrypt(&mut plaintext, iv).expect("whole blocks");
        BASE64_STANDARD.encode(plaintext)
    }

    /// The sample of the official page 91144 for the verification of a URL.
    #[test]
    fn official_verification_sample_decrypts() {
        let keys = keys(KEY);
        let signature = keys.sign("1409659589", "263014780", ENCRYPTED);
        assert_eq!(signature, "5c45ff5e21c57e6ad56bac8758b79b1d9ac89fd3");
        assert!(keys.verify(&signature, "1409659589", "263014780", ENCRYPTED));
        let decrypted = keys.decrypt(ENCRYPTED).expect("the official sample");
        assert_eq!(decrypted.message(), b"1616140317555161061");
        assert_eq!(decrypted.receive_id(), "wx5823bf96d3bd56c7");
    }

    /// The sample of the official page 91144 for a message; its padding has 30 bytes.
    #[test]
    fn official_message_sample_decrypts() {
        let encrypted = "RypEvHKD8QQKFhvQ6QleEB4J58tiPdvo+rtK1I9qca6aM/wvqnLSV5zEPeusUiX5L5X/0lWfrf0QADHHhGd3QczcdCUpj911L3vg3W/sYYvuJTs3TUUkSUXxaccAS0qhxchrRYt66wiSpGLYL42aM6A8dTT+6k4aSknmPj48kzJs8qLjvd4Xgpue06DOdnLxAUHzM6+kDZ+HMZfJYuR+LtwGc2hgf5gsijff0ekUNXZiqATP7PF5mZxZ3Izoun1s4zG4LUMnvw2r+KqCKIw+3IQH03v+BCA9nMELNqbSf6tiWSrXJB3LAVGUcallcrw8V2t9EL4EhzJWrQUax5wLVMNS0+rUPA3k22Ncx4XXZS9o0MBH27Bo6BpNelZpS+/uh9KsNlY6bHCmJU9p8g7m3fVKn28H3KDYA5Pl/T8Z1ptDAVe0lXdQ2YoyyH2uyPIGHBZZIs2pDBS8R07+qN+E7Q==";
        let keys = keys(KEY);
        let decrypted = keys.decrypt(encrypted).expect("the official sample");
        assert!(decrypted.message().starts_with(b"<xml><ToUserName><![CDATA[wx5823bf96d3bd56c7]]>"));
        assert!(decrypted.message().ends_with(b"</xml>"));
        assert_eq!(decrypted.receive_id(), "wx5823bf96d3bd56c7");
        assert_eq!(
            keys.sign("1409659813", "1372623149", encrypted),
            "477715d11cdb4164915debcba66cb864d751f3e6"
        );
    }

    #[test]
    fn wrong_signature_is_refused() {
        let keys = keys(KEY);
        let signature = "5c45ff5e21c57e6ad56bac8758b79b1d9ac89fd3";
        for (signature, timestamp, nonce, encrypted) in [
            ("", "1409659589", "263014780", ENCRYPTED),
            ("5C45FF5E21C57E6AD56BAC8758B79B1D9AC89FD3", "1409659589", "263014780", ENCRYPTED),
            (&signature[1..], "1409659589", "263014780", ENCRYPTED),
            (signature, "1409659588", "263014780", ENCRYPTED),
            (signature, "1409659589", "263014781", ENCRYPTED),
            (signature, "1409659589", "263014780", &ENCRYPTED[1..]),
        ] {
            assert!(!keys.verify(signature, timestamp, nonce, encrypted), "{signature} {timestamp} {nonce}");
        }
    }

    #[test]
    fn malformed_texts_are_refused() {
        let keys = keys(KEY);
        for text in ["", "AAAA", "AAAAAAAAAAAAAAAAAAAAA", "%", &ENCRYPTED[..40], &format!(" {ENCRYPTED}")] {
            assert_eq!(keys.decrypt(text).err(), Some(DecryptError::Malformed), "{text}");
        }
        // Sixteen bytes of padding alone: no header.
        assert_eq!(keys.decrypt(&encrypt_raw(&keys, vec![16; 16])).err(), Some(DecryptError::Length));
        assert_eq!(keys.decrypt(&encrypt_raw(&keys, vec![32; 32])).err(), Some(DecryptError::Length));
        for last in [0, 33, 255] {
            let plaintext = [&[b'x'; 63][..], &[last]].concat();
            assert_eq!(keys.decrypt(&encrypt_raw(&keys, plaintext)).err(), Some(DecryptError::Padding));
        }
        let mut inconsistent = [&[b'x'; 32][..], &[32; 32]].concat();
        inconsistent[40] = 31;
        assert_eq!(keys.decrypt(&encrypt_raw(&keys, inconsistent)).err(), Some(DecryptError::Padding));
        let invalid_id = [&[b'r'; 16][..], &[0, 0, 0, 1], b"m", &[0xff; 3], &[8; 8]].concat();
        assert_eq!(keys.decrypt(&encrypt_raw(&keys, invalid_id)).err(), Some(DecryptError::ReceiveId));
    }

    #[test]
    fn only_43_characters_of_base64_are_a_key() {
        for encoded in
            ["", "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2", &format!("{KEY}="), &format!("{KEY}A")]
        {
            assert!(decode_key(encoded).is_none(), "{encoded}");
        }
        assert!(decode_key(&KEY.replace('j', "-")).is_none());
        assert!(decode_key(KEY).is_some());
    }

    proptest! {
        /// Whatever its length, and so the length of its padding, a message is decrypted to itself; so it is with a key
        /// whose last character has other bits that do not count.
        #[test]
        fn encrypted_message_decrypts(
            key in "[A-Za-z0-9+/]{42}",
            last in 0usize..16,
            stray in 0usize..4,
            message in prop::collection::vec(any::<u8>(), 0..100),
            receive_id in "[a-zA-Z0-9人]{0,20}",
        ) {
            const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let ending = |stray: usize| char::from(ALPHABET[last * 4 + stray]);
            let encrypted = keys(&format!("{key}{}", ending(0))).encrypt(&message, &receive_id).expect("random");
            let decrypted = keys(&format!("{key}{}", ending(stray))).decrypt(&encrypted);
            let decrypted = decrypted.unwrap_or_else(|error| panic!("{error}"));
            prop_assert_eq!(decrypted.message(), &message[..]);
            prop_assert_eq!(decrypted.receive_id(), receive_id);
        }

        /// Each padding from 1 to 32 is accepted, with each length field that fits and with no other.
        #[test]
        fn each_padding_and_length_field_decrypts(content in 0usize..96, length: u32, small in 0u32..120) {
            let keys = keys(KEY);
            for length in [length, small] {
                let unpadded = HEADER_BYTES + content;
                let padding = 32 - unpadded % 32;
                let mut plaintext = [&[b'r'; 16][..], &length.to_be_bytes(), &vec![b'm'; content]].concat();
                plaintext.resize(unpadded + padding, padding as u8);
                let decrypted = keys.decrypt(&encrypt_raw(&keys, plaintext));
                if length as usize <= content {
                    let decrypted = decrypted.unwrap_or_else(|error| panic!("{error}"));
                    prop_assert_eq!(decrypted.message().len(), length as usize);
                    prop_assert_eq!(decrypted.receive_id().len(), content - length as usize);
                } else {
                    prop_assert_eq!(decrypted.err(), Some(DecryptError::Length));
                }
            }
        }

        #[test]
        fn decrypt_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = keys(KEY).decrypt(&BASE64_STANDARD.encode(&bytes));
            let mut blocks = bytes;
            blocks.truncate(blocks.len() / 16 * 16);
            let _ = keys(KEY).decrypt(&encrypt_raw(&keys(KEY), blocks));
        }
    }
}
