//! How values lie in the store: encrypted, and bound to their name.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::secret::Masked;

/// The layout of a sealed value: this byte, the key's id, the nonce, the encrypted text with its tag.
const VERSION: u8 = 1;
const KEY_ID_LEN: usize = 4;
const HEAD_LEN: usize = 1 + KEY_ID_LEN + NONCE_LEN;

/// Seals with one key; opens what was sealed with that or with another one.
pub(super) struct Sealer(Vec<SealingKey>);

struct SealingKey {
    id: [u8; KEY_ID_LEN],
    key: RandomizedNonceKey,
}

impl Sealer {
    /// `key` seals; `old_key` is understood too.
    pub(super) fn new(key: &Masked, old_key: Option<&Masked>) -> Option<Self> {
        [Some(key), old_key].into_iter().flatten().map(SealingKey::of).collect::<Option<_>>().map(Self)
    }

    /// Encrypts; the value can be opened only under the same name.
    pub(super) fn seal(&self, name: &str, text: &[u8]) -> Option<Vec<u8>> {
        let sealing = self.0.first()?;
        let mut sealed = Zeroizing::new(text.to_vec());
        let nonce = sealing.key.seal_in_place_append_tag(Aad::from(name), &mut *sealed).ok()?;
        Some([&[VERSION], &sealing.id[..], nonce.as_ref(), &sealed[..]].concat())
    }

    /// What was sealed under this name. None for anything else, another version's or another key's value too.
    pub(super) fn open(&self, name: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (head, text) = sealed.split_at_checked(HEAD_LEN)?;
        let (version, head) = head.split_first()?;
        let (id, nonce) = head.split_at(KEY_ID_LEN);
        let opening = self.0.iter().find(|key| *version == VERSION && key.id == id)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(text.to_vec());
        let length = opening.key.open_in_place(nonce, Aad::from(name), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

impl SealingKey {
    fn of(key: &Masked) -> Option<Self> {
        let bytes =
            Zeroizing::new(<[u8; 32]>::from(mac(key, b"wecom-proxy store: values")?.finalize().into_bytes()));
        let id = mac(key, b"wecom-proxy store: key id")?.finalize().into_bytes();
        let id = id[..KEY_ID_LEN].try_into().ok()?;
        Some(Self { id, key: RandomizedNonceKey::new(&AES_256_GCM, &*bytes).ok()? })
    }
}

fn mac(key: &Masked, purpose: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose().as_bytes()).ok()?;
    mac.update(purpose);
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(key: &str, old_key: Option<&str>) -> Sealer {
        let masked = |text: &str| Masked::new(text);
        Sealer::new(&masked(key), old_key.map(masked).as_ref()).expect("the keys serve")
    }

    const ONE: &str = "one-store-key-of-32-characters-xx";
    const TWO: &str = "two-store-key-of-32-characters-xx";

    #[test]
    fn what_was_sealed_is_opened_under_its_name_only() {
        let sealer = sealer(ONE, None);
        let sealed = sealer.seal("a", b"token").expect("sealed");
        assert_eq!(&sealer.open("a", &sealed).expect("opened")[..], b"token");
        assert!(sealer.open("b", &sealed).is_none());
        assert!(!sealed.windows(5).any(|part| part == b"token"));
        assert_ne!(sealed, sealer.seal("a", b"token").expect("sealed"), "a nonce is used once");
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(sealer.open("a", &bent).is_none(), "byte {at}");
            assert!(sealer.open("a", &sealed[..at]).is_none(), "{at} bytes");
        }
    }

    #[test]
    fn a_key_is_changed_without_a_gap() {
        // First every replica learns the new key, then it seals with that, then the old one is dropped.
        let steps = [(ONE, None), (ONE, Some(TWO)), (TWO, Some(ONE)), (TWO, None)];
        let steps = steps.map(|(key, old_key)| sealer(key, old_key));
        for pair in steps.windows(2) {
            for (from, to) in [(0, 1), (1, 0)] {
                let sealed = pair[from].seal("a", b"token").expect("sealed");
                assert!(pair[to].open("a", &sealed).is_some());
            }
        }
        assert!(steps[3].open("a", &steps[0].seal("a", b"token").expect("sealed")).is_none());
    }
}
