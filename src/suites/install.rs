//! Install links, and the `state` in them: authenticated, valid for a day, good once. It carries the caller's own state.

use std::{sync::LazyLock, time::Duration};

use hmac::Mac;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::Suites;
use crate::{
    directory::{Agent, Suite},
    secret::{Masked, constant_time::constant_time_eq, hex, hmac_with_key},
    state::{Collection, Precondition, Write, WriteError},
    tokens::{
        FetchError, PathKey,
        kinds::json_call::{JsonCall, call_error, call_with_suite_token},
    },
    wecom::response::parse_ok_response,
};

/// Longest state of a caller.
const MAX_CALLER_STATE_CHARS: usize = 48;
/// How long an install link can be used.
const STATE_TTL: Duration = Duration::from_secs(24 * 3600);
const EXPIRY_BYTES: usize = 4;
const NONCE_BYTES: usize = 8;
const MAC_BYTES: usize = 16;
/// The alphabet of base32 (RFC 4648 §6) in small letters: WeCom allows letters and digits, at most 128.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

static PATH_KEY: LazyLock<PathKey> =
    LazyLock::new(|| PathKey::from_path("/cgi-bin/service/get_pre_auth_code"));

/// Why there is no install link.
#[derive(Debug, thiserror::Error)]
pub enum InstallLinkError {
    /// The caller's state is too long.
    #[error("state must have at most {MAX_CALLER_STATE_CHARS} characters, visible ASCII")]
    State,
    /// WeCom gave no pre_auth_code.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// Why a `state` is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum InstallStateError {
    /// No install link of this suite made it, or it is too old, or it was used before.
    #[error("state is not from an install link of this suite, or was used before")]
    Invalid,
    /// Its use could not be recorded.
    #[error(transparent)]
    State(#[from] WriteError),
}

/// A `state` that an install link of the suite made, and that is not used yet.
pub struct OpenedInstallState {
    /// The state of the link's maker.
    pub caller_state: String,
    nonce: String,
    expires_at: u64,
}

impl Suites {
    /// The link under which an administrator installs the suite. `now` is in seconds since 1970.
    pub async fn install_link(
        &self,
        suite_agent: &std::sync::Arc<Agent>,
        redirect_uri: &str,
        caller_state: &str,
        now: u64,
    ) -> Result<Masked, InstallLinkError> {
        let Some(suite) = suite_agent.suite() else { return Err(InstallLinkError::State) };
        let is_visible = caller_state.bytes().all(|byte| byte.is_ascii_graphic());
        if caller_state.len() > MAX_CALLER_STATE_CHARS || !is_visible {
            return Err(InstallLinkError::State);
        }
        let state =
            seal(suite, caller_state, now).map_err(|_| InstallLinkError::Fetch(FetchError::Cancelled))?;
        let path = "/cgi-bin/service/get_pre_auth_code";
        let suite_token = suite.token();
        let call = |token: &_| JsonCall::get_with_suite_token(&suite_token, path, token);
        let response = call_with_suite_token(&suite_token, *PATH_KEY, call).await?;
        let members = parse_ok_response(&response).map_err(|error| call_error(error, &[]))?;
        let code = members.get("pre_auth_code").and_then(serde_json::Value::as_str).unwrap_or_default();
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        Ok(Masked::new(format!(
            "https://open.work.weixin.qq.com/3rdapp/install?suite_id={}&pre_auth_code={}&redirect_uri={}&state={state}",
            encode(&suite.config.suite_id),
            encode(code),
            encode(redirect_uri),
        )))
    }

    /// Checks a `state`; `now` is in seconds since 1970.
    pub fn open_install_state(
        &self,
        suite: &Suite,
        state: &str,
        now: u64,
    ) -> Result<OpenedInstallState, InstallStateError> {
        open(suite, state, now).ok_or(InstallStateError::Invalid)
    }

    /// Marks a `state` as used, for all replicas; fails if it was used before.
    pub async fn use_install_state(
        &self,
        suite: &Suite,
        opened: &OpenedInstallState,
    ) -> Result<(), InstallStateError> {
        let name = format!("{}/{}", suite.config.suite_id, opened.nonce);
        let write = Write::put(Collection::InstallStates, name, Vec::new())
            .when(Precondition::Absent)
            .expires_at(opened.expires_at);
        match self.write(vec![write]).await {
            Err(WriteError::Conflict { .. }) => Err(InstallStateError::Invalid),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

fn seal(suite: &Suite, caller_state: &str, now: u64) -> Result<String, getrandom::Error> {
    let expires_at = u32::try_from(now + STATE_TTL.as_secs()).unwrap_or(u32::MAX);
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)?;
    let mut bytes = expires_at.to_be_bytes().to_vec();
    bytes.extend_from_slice(&nonce);
    bytes.extend_from_slice(caller_state.as_bytes());
    let mac = mac(suite, &bytes);
    bytes.extend_from_slice(&mac);
    Ok(to_base32(&bytes))
}

fn open(suite: &Suite, state: &str, now: u64) -> Option<OpenedInstallState> {
    let bytes = from_base32(state)?;
    let (claims, shown) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
    if !constant_time_eq(shown, &mac(suite, claims)) {
        return None;
    }
    let (expires_at, rest) = claims.split_at_checked(EXPIRY_BYTES)?;
    let (nonce, caller_state) = rest.split_at_checked(NONCE_BYTES)?;
    let expires_at = u64::from(u32::from_be_bytes(expires_at.try_into().ok()?));
    let caller_state = String::from_utf8(caller_state.to_vec()).ok()?;
    (now < expires_at).then(|| OpenedInstallState { caller_state, nonce: hex::encode(nonce), expires_at })
}

/// A MAC under a key derived from the suite's secret, so that every replica accepts it.
fn mac(suite: &Suite, claims: &[u8]) -> [u8; MAC_BYTES] {
    let mut derivation = hmac_with_key(suite.config.secret.expose().as_bytes());
    derivation.update(b"wecom-proxy install state v1\0");
    derivation.update(suite.config.suite_id.as_bytes());
    let mut mac = hmac_with_key(&derivation.finalize().into_bytes());
    mac.update(claims);
    let digest = mac.finalize().into_bytes();
    std::array::from_fn(|nth| digest[nth])
}

fn to_base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut buffer, mut bits) = (0u32, 0);
    for byte in bytes {
        buffer = buffer << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(BASE32[(buffer >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(BASE32[(buffer << (5 - bits) & 31) as usize]));
    }
    text
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut buffer, mut bits) = (0u32, 0);
    for letter in text.bytes() {
        let digit = BASE32.iter().position(|known| *known == letter)?;
        buffer = buffer << 5 | u32::try_from(digit).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits & 255) as u8);
        }
    }
    // One text for each content: what is left over is less than a digit, and zero.
    (bits < 5 && buffer & ((1 << bits) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn base32_round_trips_in_one_spelling(bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            let text = to_base32(&bytes);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
            prop_assert_eq!(from_base32(&text), Some(bytes));
        }

        #[test]
        fn garbage_is_no_base32_or_has_one_spelling(text in "[a-z2-7]{0,60}|\\PC{0,20}") {
            if let Some(bytes) = from_base32(&text) {
                prop_assert_eq!(to_base32(&bytes), text);
            }
        }
    }

    #[test]
    fn longest_state_fits_wecoms_limit() {
        let bytes = vec![0xff; EXPIRY_BYTES + NONCE_BYTES + MAX_CALLER_STATE_CHARS + MAC_BYTES];
        assert!(to_base32(&bytes).len() <= 128);
    }
}
