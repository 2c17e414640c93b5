//! Passes: nothing panics, and what is opened is letter for letter what was sealed, for that client, within its time.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use wecom_proxy::{
    config::KeyHash,
    credential::is_marked,
    passes::{BadPass, Claim, PassKey, Scratch},
    secret::Masked,
};

const MADE: u64 = 1_790_000_000;
const TIMES: [i64; 8] = [0, 7_200, 14_399, 14_400, -300, -301, 99_999, -1_790_000_000];

/// The input is five bytes that say how to tamper with a good pass, and a text that is tried as it is and behind the
/// beginning of one.
pub fn check(data: &[u8]) {
    let [kind, at, byte, time, length, rest @ ..] = data else { return };
    let key = PassKey::derive("ww1234567890abcdef", &Masked::new("the-secret-of-the-agent"));
    let client = KeyHash::of("the key of the client");
    let name = |length: u8| "n".repeat(usize::from(length % 64) + 1);
    let (agent, caller) = (name(*length), name(length / 2));
    let pass = key.issue(&agent, &caller, Some(&client), MADE);
    let now = MADE.saturating_add_signed(TIMES[usize::from(time % 8)]);

    let mut tampered = pass.expose().as_bytes().to_vec();
    let at = usize::from(*at) % tampered.len();
    match kind % 6 {
        0 => {}
        1 => tampered[at] = *byte,
        2 => tampered.insert(at, *byte),
        3 => drop(tampered.remove(at)),
        4 => tampered.truncate(at),
        _ => tampered.splice(at.., rest.iter().copied()).for_each(drop),
    }
    let tampered = String::from_utf8_lossy(&tampered);
    let expected = match () {
        () if now + 300 < MADE => Err(BadPass::Forged),
        () if now >= MADE + 14_400 => Err(BadPass::Expired),
        () => Ok((agent, caller)),
    };
    let outcome = opened(&key, &tampered, Some(&client), now);
    match tampered == pass.expose() {
        true => assert_eq!(outcome, expected, "{tampered}"),
        false => {
            assert!(outcome == Err(BadPass::Forged) || is_sealed(&key, &tampered, &client), "{tampered}")
        }
    }
    assert_eq!(opened(&key, &tampered, None, now), Err(BadPass::Forged), "without the client's key");

    let text = String::from_utf8_lossy(rest);
    for text in
        [text.to_string(), format!("wp1-{text}"), format!("wp1-{}", BASE64_URL_SAFE_NO_PAD.encode(rest))]
    {
        let outcome = opened(&key, &text, Some(&client), now);
        assert!(outcome == Err(BadPass::Forged) || is_sealed(&key, &text, &client), "{text}");
    }
}

/// Whether a text is a pass that was sealed here: the fuzzer has seen some, and may hand one back.
fn is_sealed(key: &PassKey, text: &str, client: &KeyHash) -> bool {
    let Ok((agent, caller)) = opened(key, text, Some(client), MADE) else { return false };
    is_marked(text) && text == key.issue(&agent, &caller, Some(client), MADE).expose()
}

fn opened(
    key: &PassKey,
    text: &str,
    client: Option<&KeyHash>,
    now: u64,
) -> Result<(String, String), BadPass> {
    let mut scratch = Scratch::default();
    let claim = Claim::read(text, &mut scratch).ok_or(BadPass::Forged)?;
    key.verify(&claim, client, now)?;
    Ok((claim.agent.to_owned(), claim.client.to_owned()))
}
