//! Passes: what a client gets in place of a token. A pass names its agent and client and when it was issued; it
//! is authenticated and contains nothing secret. No I/O; callers supply the time.
//!
//! The text is `wp1-` and base64url of: the issue time (8 bytes, seconds since 1970), the agent's name and the
//! client's (each after a length byte), and an HMAC-SHA-256 over all that and the client's key hash, with its id if it
//! is one of the state. The HMAC
//! key is derived from the agent's corpid and `tokens.pass_key`, or else the agent's secret, so every replica with
//! the same configuration accepts the pass, and a changed client key voids it.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{
    config::ClientKey,
    secret::{Masked, credential_scan::PASS_PREFIX, hmac_with_key},
};

/// The `expires_in` that clients get, as for real tokens.
pub const ADVERTISED_TTL: Duration = Duration::from_secs(7200);
/// How long a pass is accepted: some programs keep a token for two hours by their own clock.
pub const MAX_AGE: Duration = Duration::from_secs(2 * 7200);
/// Longest name of an agent or client, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Longest name of an authorised corp: a suite's name, a colon, and a corpid.
const MAX_CORP_NAME_BYTES: usize = 2 * MAX_NAME_BYTES + 1;
/// Longest pass before encoding, in bytes.
const MAX_PASS_BYTES: usize = 8 + (1 + MAX_CORP_NAME_BYTES) + (1 + MAX_NAME_BYTES) + MAC_BYTES;
const MAC_BYTES: usize = 32;
const TIME_BYTES: usize = 8;

/// What the key of passes under an agent's secret is derived with.
const SECRET_LABEL: &[u8] = b"wecom-proxy pass v1\0";

/// The HMAC key for the passes of one agent.
#[derive(Clone)]
pub struct PassKey(Hmac<Sha256>);

/// The key under a secret as it is kept for hours: a tenth of what makes and verifies passes.
#[derive(Clone)]
pub struct KeptPassKey(Zeroizing<[u8; 32]>);

impl KeptPassKey {
    /// See [`PassKey::derive`].
    pub fn derive(corpid: &str, secret: &Masked, generation: u64) -> Self {
        Self(derive_bytes(SECRET_LABEL, corpid, secret, generation))
    }

    /// What verifies passes.
    pub fn to_pass_key(&self) -> PassKey {
        PassKey(hmac_with_key(&*self.0))
    }
}

/// Why a text is not a valid pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassError {
    /// It is an authentic pass, but too old.
    Expired,
    /// It has the form of a pass, but was not issued under the present secret and key.
    Unverified,
    /// It is no pass of a configured agent and client.
    Invalid,
}

/// The unverified claims of a pass. No `Debug`: it contains the pass.
pub struct UnverifiedPass<'a> {
    bytes: &'a [u8],
    issued_at: u64,
    /// The claimed agent.
    pub agent: &'a str,
    /// The claimed client; empty if it was issued to a caller without a key.
    pub client: &'a str,
}

/// Buffer for a decoded pass.
pub struct DecodeBuf([u8; MAX_PASS_BYTES]);

impl Default for DecodeBuf {
    fn default() -> Self {
        Self([0; MAX_PASS_BYTES])
    }
}

impl PassKey {
    /// Derives the key from the agent's credentials. `generation` tells an agent of the state from a deleted one of its
    /// name; 0 for an agent of a file.
    pub fn derive(corpid: &str, secret: &Masked, generation: u64) -> Self {
        Self::derive_with_label(SECRET_LABEL, corpid, secret, generation)
    }

    /// Derives the key from `tokens.pass_key`, so that a changed secret of the agent voids no pass.
    pub fn derive_from_pass_key(corpid: &str, pass_key: &Masked, generation: u64) -> Self {
        Self::derive_with_label(b"wecom-proxy pass_key v1\0", corpid, pass_key, generation)
    }

    fn derive_with_label(label: &[u8], corpid: &str, secret: &Masked, generation: u64) -> Self {
        Self(hmac_with_key(&*derive_bytes(label, corpid, secret, generation)))
    }

    /// Issues a pass. `client_key` is the client's key; `None` for a caller without one. `now` is in
    /// seconds since 1970.
    pub fn issue(&self, agent: &str, client: &str, client_key: Option<&ClientKey>, now: u64) -> Masked {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PASS_BYTES));
        bytes.extend_from_slice(&now.to_be_bytes());
        for name in [agent, client] {
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name.as_bytes());
        }
        let mac = self.mac_over(&bytes, client_key).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        // Allocated at full length: memory of a smaller buffer that is outgrown would not be wiped.
        let mut pass = String::with_capacity(PASS_PREFIX.len() + 2 * MAX_PASS_BYTES);
        pass.push_str(PASS_PREFIX);
        BASE64_URL_SAFE_NO_PAD.encode_string(&*bytes, &mut pass);
        Masked::new(pass)
    }

    /// Verifies a pass. `now` is in seconds since 1970; a pass issued later is valid, because the clock may have been
    /// set back.
    pub fn verify(
        &self,
        pass: &UnverifiedPass<'_>,
        client_key: Option<&ClientKey>,
        now: u64,
    ) -> Result<(), PassError> {
        let (claims, mac) = pass.bytes.split_at(pass.bytes.len() - MAC_BYTES);
        self.mac_over(claims, client_key).verify_slice(mac).map_err(|_| PassError::Unverified)?;
        if now.saturating_sub(pass.issued_at) >= MAX_AGE.as_secs() { Err(PassError::Expired) } else { Ok(()) }
    }

    fn mac_over(&self, claims: &[u8], client_key: Option<&ClientKey>) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(claims);
        client_key.into_iter().flat_map(ClientKey::pass_binding).for_each(|part| mac.update(part));
        mac
    }
}

impl<'a> UnverifiedPass<'a> {
    /// Parses the claims of a pass; `None` for a text of another form.
    pub fn parse(text: &str, scratch: &'a mut DecodeBuf) -> Option<Self> {
        let encoded = text.strip_prefix(PASS_PREFIX)?;
        let length = BASE64_URL_SAFE_NO_PAD.decode_slice(encoded, &mut scratch.0).ok()?;
        let bytes = &scratch.0[..length];
        let claims = &bytes[..length.checked_sub(MAC_BYTES)?];
        let (issued_at, names) = claims.split_at_checked(TIME_BYTES)?;
        let issued_at = u64::from_be_bytes(issued_at.try_into().ok()?);
        let (agent, rest) = split_name(names)?;
        let (client, rest) = split_name(rest)?;
        (rest.is_empty() && !agent.is_empty()).then_some(Self { bytes, issued_at, agent, client })
    }
}

fn derive_bytes(label: &[u8], corpid: &str, secret: &Masked, generation: u64) -> Zeroizing<[u8; 32]> {
    let mut derivation = hmac_with_key(secret.expose().as_bytes());
    derivation.update(label);
    derivation.update(corpid.as_bytes());
    // Replicas of earlier versions know agents of files only.
    if generation != 0 {
        derivation.update(b"\0");
        derivation.update(&generation.to_be_bytes());
    }
    Zeroizing::new(derivation.finalize().into_bytes().into())
}

fn split_name(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(name).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::KeyHash;

    const NOW: u64 = 1_790_000_000;

    fn pass_key(secret: &str) -> PassKey {
        PassKey::derive("ww1234567890abcdef", &Masked::new(secret), 0)
    }

    fn parse_and_verify(
        key: &PassKey,
        text: &str,
        client_key: Option<&ClientKey>,
        now: u64,
    ) -> Result<(String, String), PassError> {
        let mut scratch = DecodeBuf::default();
        let pass = UnverifiedPass::parse(text, &mut scratch).ok_or(PassError::Invalid)?;
        key.verify(&pass, client_key, now)?;
        Ok((pass.agent.to_owned(), pass.client.to_owned()))
    }

    #[test]
    fn pass_verifies_for_twice_its_ttl_and_only_with_its_keys() {
        let key = |text: &str| ClientKey::new(KeyHash::of(text));
        let (billing, other) = (key("key of billing"), key("another key"));
        let in_state = |id: &str| ClientKey { id: Some(id.into()), ..billing.clone() };
        let pass = pass_key("s").issue("hr", "billing", Some(&billing), NOW);
        let text = pass.expose();
        let good = Ok(("hr".to_owned(), "billing".to_owned()));
        assert_eq!(parse_and_verify(&pass_key("s"), text, Some(&billing), NOW), good);
        assert_eq!(parse_and_verify(&pass_key("s"), text, Some(&billing), NOW + 14_399), good);
        assert_eq!(
            parse_and_verify(&pass_key("s"), text, Some(&billing), NOW + 14_400),
            Err(PassError::Expired)
        );
        for set_back in [301, 7_200, 30 * 24 * 3600] {
            assert_eq!(parse_and_verify(&pass_key("s"), text, Some(&billing), NOW - set_back), good);
        }
        let unverified = Err(PassError::Unverified);
        assert_eq!(parse_and_verify(&pass_key("t"), text, Some(&billing), NOW), unverified);
        assert_eq!(parse_and_verify(&pass_key("s"), text, Some(&other), NOW), unverified);
        assert_eq!(parse_and_verify(&pass_key("s"), text, None, NOW), unverified);
        let of_state = pass_key("s").issue("hr", "billing", Some(&in_state("a1")), NOW);
        assert_eq!(parse_and_verify(&pass_key("s"), of_state.expose(), Some(&in_state("a1")), NOW), good);
        for again in [in_state("a2"), billing.clone()] {
            let outcome = parse_and_verify(&pass_key("s"), of_state.expose(), Some(&again), NOW);
            assert_eq!(outcome, unverified, "{again:?}");
        }
        assert_eq!(parse_and_verify(&pass_key("t"), text, None, NOW + 99_999), unverified);
        let shared = PassKey::derive_from_pass_key("ww1234567890abcdef", &Masked::new("s"), 0);
        assert_eq!(parse_and_verify(&shared, text, Some(&billing), NOW), unverified);
        let later = PassKey::derive("ww1234567890abcdef", &Masked::new("s"), 1);
        assert_eq!(parse_and_verify(&later, text, Some(&billing), NOW), unverified);
    }

    #[test]
    fn pass_with_longest_names_fits_512_bytes() {
        let name = "n".repeat(MAX_NAME_BYTES);
        let pass = pass_key("s").issue(&name, &name, None, NOW);
        assert!(pass.expose().len() <= 512, "{}", pass.expose().len());
        assert!(pass.expose().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert_eq!(
            parse_and_verify(&pass_key("s"), pass.expose(), None, NOW),
            Ok((name.clone(), name.clone()))
        );
        let corp = format!("{name}:{name}");
        let pass = pass_key("s").issue(&corp, &name, None, NOW);
        assert!(pass.expose().len() <= 512, "{}", pass.expose().len());
        assert_eq!(parse_and_verify(&pass_key("s"), pass.expose(), None, NOW), Ok((corp, name)));
    }

    proptest! {
        #[test]
        fn pass_with_a_changed_letter_is_invalid(at in 0usize..100, letter in "[A-Za-z0-9_-]") {
            let pass = pass_key("s").issue("hr", "billing", None, NOW);
            let mut text = pass.expose().to_owned();
            let at = at % text.len();
            prop_assume!(text[at..=at] != letter);
            text.replace_range(at..=at, &letter);
            let outcome = parse_and_verify(&pass_key("s"), &text, None, NOW);
            prop_assert!(matches!(outcome, Err(PassError::Invalid | PassError::Unverified)), "{:?}", outcome);
        }

        #[test]
        fn garbage_is_invalid_and_never_panics(text in "(wp1-)?.{0,400}", now in any::<u32>()) {
            let outcome = parse_and_verify(&pass_key("s"), &text, None, u64::from(now));
            prop_assert!(matches!(outcome, Err(PassError::Invalid | PassError::Unverified)), "{:?}", outcome);
        }
    }
}
