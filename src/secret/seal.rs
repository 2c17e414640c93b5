//! Encrypts values with AES-256-GCM, bound to their place (AAD), and signs notifications with HMAC-SHA-256. Each
//! domain, such as the store and the state, has keys of its own, derived from the configured secret.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Masked, hex, hmac_with_key};

/// The first byte of a sealed value; key id, nonce, ciphertext and tag follow.
const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_LEN;
const SIGNATURE_BYTES: usize = 16;

/// Seals and signs with the first key; opens and verifies with any of them.
pub(crate) struct Sealer(Vec<SealingKey>);

struct SealingKey {
    id: [u8; KEY_ID_BYTES],
    key: RandomizedNonceKey,
    signing_mac: Hmac<Sha256>,
}

impl Sealer {
    /// `key` seals and signs; values of `old_key` are accepted too. `None` if a key cannot be derived.
    pub(crate) fn new(domain: &str, key: &Masked, old_key: Option<&Masked>) -> Option<Self> {
        let keys = [Some(key), old_key].into_iter().flatten();
        keys.map(|key| SealingKey::derive(domain, key)).collect::<Option<_>>().map(Self)
    }

    /// Whether the value is sealed under the first key, that of new values.
    pub(crate) fn is_current(&self, sealed: &[u8]) -> bool {
        self.0.first().is_some_and(|key| key.has_sealed(sealed))
    }

    /// Whether the value is sealed under one of the keys; if it does not open nevertheless, it is damaged.
    pub(crate) fn has_key_of(&self, sealed: &[u8]) -> bool {
        self.0.iter().any(|key| key.has_sealed(sealed))
    }

    /// Encrypts `plaintext`; it opens only with the same `aad`.
    pub(crate) fn seal(&self, aad: &str, plaintext: &[u8]) -> Option<Vec<u8>> {
        let sealing = self.0.first()?;
        let mut sealed = Zeroizing::new(plaintext.to_vec());
        let nonce = sealing.key.seal_in_place_append_tag(Aad::from(aad), &mut *sealed).ok()?;
        Some([&[VERSION], &sealing.id[..], nonce.as_ref(), &sealed[..]].concat())
    }

    /// The plaintext of a value sealed with this `aad`. `None` for anything else, also for a value of another
    /// version or key.
    pub(crate) fn open(&self, aad: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (head, plaintext) = sealed.split_at_checked(HEADER_BYTES)?;
        let (version, head) = head.split_first()?;
        let (id, nonce) = head.split_at(KEY_ID_BYTES);
        let opening = self.0.iter().find(|key| *version == VERSION && key.id == id)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plaintext = Zeroizing::new(plaintext.to_vec());
        let length = opening.key.open_in_place(nonce, Aad::from(aad), &mut plaintext).ok()?.len();
        plaintext.truncate(length);
        Some(plaintext)
    }

    /// Appends a space and the signature in hex.
    pub(crate) fn sign(&self, plaintext: &str) -> Option<String> {
        let mut mac = self.0.first()?.signing_mac.clone();
        mac.update(plaintext.as_bytes());
        let signature = hex::encode(&mac.finalize().into_bytes()[..SIGNATURE_BYTES]);
        Some(format!("{plaintext} {signature}"))
    }

    /// The signed text; `None` if no key made the signature.
    pub(crate) fn verify<'a>(&self, signed: &'a str) -> Option<&'a str> {
        let (plaintext, signature) = signed.rsplit_once(' ')?;
        let bytes = hex::decode::<SIGNATURE_BYTES>(signature.as_bytes())?;
        let verifies = |key: &SealingKey| {
            let mut mac = key.signing_mac.clone();
            mac.update(plaintext.as_bytes());
            mac.verify_truncated_left(&bytes).is_ok()
        };
        self.0.iter().any(verifies).then_some(plaintext)
    }
}

impl SealingKey {
    fn derive(domain: &str, key: &Masked) -> Option<Self> {
        let derived = |purpose: &str| {
            let mut mac = hmac_with_key(key.expose().as_bytes());
            mac.update(format!("wecom-proxy {domain}: {purpose}").as_bytes());
            Zeroizing::new(<[u8; 32]>::from(mac.finalize().into_bytes()))
        };
        let bytes = derived("values");
        let id = derived("key id")[..KEY_ID_BYTES].try_into().ok()?;
        let signing_mac = hmac_with_key(&*derived("news"));
        Some(Self { id, key: RandomizedNonceKey::new(&AES_256_GCM, &*bytes).ok()?, signing_mac })
    }

    fn has_sealed(&self, sealed: &[u8]) -> bool {
        sealed.split_first().is_some_and(|(version, rest)| *version == VERSION && rest.starts_with(&self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(key: &str, old_key: Option<&str>) -> Sealer {
        let masked = |plaintext: &str| Masked::new(plaintext);
        Sealer::new("store", &masked(key), old_key.map(masked).as_ref()).expect("valid keys")
    }

    const KEY_ONE: &str = "one-store-key-of-32-characters-xx";
    const KEY_TWO: &str = "two-store-key-of-32-characters-xx";

    #[test]
    fn sealed_value_opens_only_with_its_aad() {
        let sealer = sealer(KEY_ONE, None);
        let sealed = sealer.seal("a", b"token").expect("sealed");
        assert_eq!(&sealer.open("a", &sealed).expect("opened")[..], b"token");
        assert!(sealer.open("b", &sealed).is_none());
        assert!(!sealed.windows(5).any(|part| part == b"token"));
        assert_ne!(sealed, sealer.seal("a", b"token").expect("sealed"), "a nonce is used once");
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(sealer.open("a", &altered).is_none(), "byte {at}");
            assert!(sealer.open("a", &sealed[..at]).is_none(), "{at} bytes");
        }
    }

    #[test]
    fn signed_text_verifies_and_altered_text_does_not() {
        let sealer = sealer(KEY_ONE, None);
        let signed = sealer.sign("renewed 17 a").expect("signed");
        assert_eq!(sealer.verify(&signed), Some("renewed 17 a"));
        for at in 0..signed.len() {
            let mut altered = signed.clone().into_bytes();
            altered[at] ^= 1;
            let altered = String::from_utf8(altered).expect("ASCII");
            assert_eq!(sealer.verify(&altered), None, "{altered}");
            assert_eq!(sealer.verify(&signed[..at]), None, "{at} bytes");
        }
        for unsigned in ["", " ", "renewed 17 a", "renewed 17 a ", "\u{e9} \u{e9}"] {
            assert_eq!(sealer.verify(unsigned), None, "{unsigned}");
        }
        assert_eq!(sealer.verify(&format!("{signed}00")), None);
    }

    #[test]
    fn key_rotation_keeps_values_readable() {
        // Rotation: every replica gets the new key as the old one, then seals with it, then drops the former.
        let steps = [(KEY_ONE, None), (KEY_ONE, Some(KEY_TWO)), (KEY_TWO, Some(KEY_ONE)), (KEY_TWO, None)];
        let steps = steps.map(|(key, old_key)| sealer(key, old_key));
        for pair in steps.windows(2) {
            for (from, to) in [(0, 1), (1, 0)] {
                let sealed = pair[from].seal("a", b"token").expect("sealed");
                assert!(pair[to].open("a", &sealed).is_some());
                let signed = pair[from].sign("news").expect("signed");
                assert_eq!(pair[to].verify(&signed), Some("news"));
            }
        }
        assert!(steps[3].open("a", &steps[0].seal("a", b"token").expect("sealed")).is_none());
        assert_eq!(steps[3].verify(&steps[0].sign("news").expect("signed")), None);
    }
}
