//! Passes: verification does not panic, and accepts only unmodified passes of the same client within their lifetime.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use wecom_proxy::{
    config::{ClientKey, KeyHash},
    secret::{Masked, credential_scan::has_pass_prefix},
    tokens::passes::{DecodeBuf, PassError, PassKey, UnverifiedPass},
};

const ISSUED_AT: u64 = 1_790_000_000;
const AGES_SECS: [i64; 8] = [0, 7_200, 14_399, 14_400, -300, -301, 99_999, -1_790_000_000];

/// Input: five bytes that select a modification of a valid pass, then a text that is verified unchanged and after the prefix
/// of a pass.
pub fn check(data: &[u8]) {
    let [kind, position, byte, age_index, length, rest @ ..] = data else { return };
    let key = PassKey::derive("ww1234567890abcdef", &Masked::new("the-secret-of-the-agent"), 0);
    let client = ClientKey::new(KeyHash::of("the key of the client"));
    let name = |length: u8| "n".repeat(usize::from(length % 64) + 1);
    let (agent, client_name) = (name(*length), name(length / 2));
    let pass = key.issue(&agent, &client_name, Some(&client), ISSUED_AT);
    let now = ISSUED_AT.saturating_add_signed(AGES_SECS[usize::from(age_index % 8)]);

    let mut tampered = pass.expose().as_bytes().to_vec();
    let position = usize::from(*position) % tampered.len();
    match kind % 6 {
        0 => {}
        1 => tampered[position] = *byte,
        2 => tampered.insert(position, *byte),
        3 => drop(tampered.remove(position)),
        4 => tampered.truncate(position),
        _ => tampered.splice(position.., rest.iter().copied()).for_each(drop),
    }
    let tampered = String::from_utf8_lossy(&tampered);
    let expected = match () {
        () if now >= ISSUED_AT + 14_400 => Err(PassError::Expired),
        () => Ok((agent, client_name)),
    };
    let outcome = open_pass(&key, &tampered, Some(&client), now);
    match tampered == pass.expose() {
        true => assert_eq!(outcome, expected, "{tampered}"),
        false => {
            assert!(is_refused(&outcome) || is_genuine(&key, &tampered, &client), "{tampered}")
        }
    }
    assert!(is_refused(&open_pass(&key, &tampered, None, now)), "without the client's key");

    let text = String::from_utf8_lossy(rest);
    for text in
        [text.to_string(), format!("wp1-{text}"), format!("wp1-{}", BASE64_URL_SAFE_NO_PAD.encode(rest))]
    {
        let outcome = open_pass(&key, &text, Some(&client), now);
        assert!(is_refused(&outcome) || is_genuine(&key, &text, &client), "{text}");
    }
}

fn is_refused(outcome: &Result<(String, String), PassError>) -> bool {
    matches!(outcome, Err(PassError::Invalid | PassError::Unverified))
}

/// Whether a text is a pass that this target issued: the fuzzer may have learned one.
fn is_genuine(key: &PassKey, text: &str, client: &ClientKey) -> bool {
    let Ok((agent, client_name)) = open_pass(key, text, Some(client), ISSUED_AT) else { return false };
    has_pass_prefix(text) && text == key.issue(&agent, &client_name, Some(client), ISSUED_AT).expose()
}

fn open_pass(
    key: &PassKey,
    text: &str,
    client: Option<&ClientKey>,
    now: u64,
) -> Result<(String, String), PassError> {
    let mut scratch = DecodeBuf::default();
    let pass = UnverifiedPass::parse(text, &mut scratch).ok_or(PassError::Invalid)?;
    key.verify(&pass, client, now)?;
    Ok((pass.agent.to_owned(), pass.client.to_owned()))
}
