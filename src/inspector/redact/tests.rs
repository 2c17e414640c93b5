use super::*;

const EXCHANGE_SECRETS: [&str; 2] = ["s3cret/of+hr", "the-token-0123456789"];
const OTHER_SECRETS: [&str; 2] = ["secret-of-ops_0123", "a-ticket-of-ops~1"];
const GENERATED_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn redact_up_to(text: &str, max_bytes: usize) -> String {
    let is_key = |word: &str| word == "a-clients-key" || word == GENERATED_KEY;
    let others = |visit: &mut dyn FnMut(&str)| OTHER_SECRETS.iter().for_each(|other| visit(other));
    Redactor::new(&[text], &EXCHANGE_SECRETS, others, &is_key).redact(text, max_bytes)
}

fn redact_all(text: &str) -> String {
    redact_up_to(text, 1 << 20)
}

#[test]
fn named_secret_is_masked() {
    for (text, expected) in [
        (r#"{"errcode":0,"access_token":"abc","n":1}"#, r#"{"errcode":0,"access_token":"[masked]","n":1}"#),
        (r#"{"Ticket" : "a\"b,c", "n":1}"#, r#"{"Ticket" : "[masked]", "n":1}"#),
        (r#"{"secret":"ends in \\","n":1}"#, r#"{"secret":"[masked]","n":1}"#),
        (r#"{"key":12345,"n":1}"#, r#"{"key":[masked],"n":1}"#),
        (r#"{"password":{"a":["b"]},"n":1}"#, r#"{"password":[masked],"n":1}"#),
        (r#"{"secret":"cut o"#, r#"{"secret":"[masked]"#),
        (r#"{"secret":"","n":1}"#, r#"{"secret":"","n":1}"#),
        (r#"{"se\u0063ret":"x","\u006b":1}"#, r#"{"se\u0063ret":"[masked]","\u006b":1}"#),
        (r#"{"in":"{\"secret\":\"a b\",\"n\":1}"}"#, r#"{"in":"{\"secret\":\"[masked]\",\"n\":1}"}"#),
        ("a=1&corpsecret=x%20y&b=2", "a=1&corpsecret=[masked]&b=2"),
        (
            "in=%7B%22secret%22%3A%22a%20b%22%2C%22n%22%3A1%7D",
            "in=%7B%22secret%22%3A%22[masked]%22%2C%22n%22%3A1%7D",
        ),
        (
            "to=https%3A%2F%2Fx%2F%3Faccess_token%3Dabc%26n%3D1",
            "to=https%3A%2F%2Fx%2F%3Faccess_token%3D[masked]%26n%3D1",
        ),
        (r#"{"secretary":"Li","ticket_id":"7"}"#, r#"{"secretary":"Li","ticket_id":"7"}"#),
        (r#"{"query":"access_token=","n":1}"#, r#"{"query":"access_token=","n":1}"#),
        (r#"[["x-my-token","a"],["n","b"]]"#, r#"[["x-my-token","[masked]"],["n","b"]]"#),
        (r#"secret="a b" n=1"#, r#"secret="[masked]" n=1"#),
        ("Authorization: Bearer abc\r\nn: 1", "Authorization: [masked]\r\nn: 1"),
        ("<Secret>a b</Secret><n>1</n>", "<Secret>[masked]</Secret><n>1</n>"),
        (
            "--x\r\nContent-Disposition: form-data; name=\"secret\"\r\n\r\na\r\nb\r\n--x\r\nn",
            "--x\r\nContent-Disposition: form-data; name=\"secret\"\r\n\r\n[masked]\r\n--x\r\nn",
        ),
        (r#"{"userid":"张三"}"#, r#"{"userid":"张三"}"#),
        (r#"{"a":"b\\u0041"}"#, r#"{"a":"b\\u0041"}"#),
    ] {
        assert_eq!(redact_all(text), expected, "{text}");
    }
}

#[test]
fn known_secret_is_masked_anywhere() {
    for (text, expected) in [
        ("xs3cret/of+hry", "x[masked]y"),
        (r#"{"v":"s3cret\/of+hr"}"#, r#"{"v":"[masked]"}"#),
        ("v=s3cret%2Fof%2Bhr;w", "v=[masked];w"),
        ("v=s3cret%252fof%252Bhr;w", "v=[masked];w"),
        ("v=%73%33cret%2Fof%2Bhr", "v=[masked]"),
        (r#"{"v":"\u0074he-token-0123456789"}"#, r#"{"v":"[masked]"}"#),
        ("THE-TOKEN-0123456789", "[masked]"),
        ("the-tok\r\n en-0123456789", "[masked]"),
        ("密钥secret-of-ops_0123是", "密钥[masked]是"),
        ("x&#115;ecret-of-ops_0123", "x[masked]"),
        (r#"{"a-ticket-of-ops~1":1}"#, r#"{"[masked]":1}"#),
        ("jsapi_ticket=a-ticket-of-ops~1&n=1", "jsapi_ticket=[masked]&n=1"),
        ("v=a-ticket-of-ops%7E1&n=1", "v=[masked]&n=1"),
        ("k: a-clients-key!", "k: [masked]!"),
        ("k: xa-clients-key", "k: xa-clients-key"),
        ("k: a-clients-key,x=a-clients-key", "k: [masked],x=[masked]"),
        ("see wp1-AAAA_b-c.", "see [masked]."),
        ("userwp1%2DAAAA", "user[masked]"),
    ] {
        assert_eq!(redact_all(text), expected, "{text}");
    }
    let glued = format!("ab{GENERATED_KEY}cdX");
    assert_eq!(redact_all(&glued), "ab[masked]cdX");
    let hex: String = EXCHANGE_SECRETS[1].bytes().map(|byte| format!("{byte:02X}")).collect();
    assert_eq!(redact_all(&format!("x {hex}")), "x [masked]");
}

#[test]
fn secret_in_base64_is_masked() {
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    for before in ["", "a", "ab", "crm:"] {
        for secret in [EXCHANGE_SECRETS[0], EXCHANGE_SECRETS[1], OTHER_SECRETS[0]] {
            let text = format!("{before}{secret} and more");
            for encoded in [BASE64_STANDARD.encode(&text), BASE64_URL_SAFE_NO_PAD.encode(&text)] {
                let redacted = redact_all(&format!("glued{encoded}glued"));
                let (head, tail) = (before.len() * 4 / 3, (before.len() + secret.len()) * 4 / 3);
                let digits = &encoded[head..tail];
                let parts = digits.as_bytes().windows(4).map(|part| str::from_utf8(part).expect("digits"));
                let leaked: Vec<_> = parts.filter(|part| redacted.contains(part)).collect();
                assert!(redacted.contains(MASK) && leaked.is_empty(), "{text}: {redacted} leaks {leaked:?}");
            }
        }
    }
    let encoded = BASE64_STANDARD.encode("crm:a-clients-key");
    assert_eq!(redact_all(&format!("x: Basic {encoded}")), "x: Basic [masked]");
    let encoded = BASE64_URL_SAFE_NO_PAD.encode(r#"{"n":1,"secret":"x"}"#);
    assert_eq!(redact_all(&format!("x={encoded}&y")), "x=[masked]&y");
    let harmless = BASE64_STANDARD.encode("harmless words only");
    assert_eq!(redact_all(&harmless), harmless);
}

#[test]
fn secret_across_the_limit_is_masked() {
    let text = "0123 the-token-0123456789 and more";
    assert_eq!(redact_up_to(text, 8), "0123 [masked]");
    assert_eq!(redact_up_to(text, 4), "0123");
    assert_eq!(redact_up_to("ééé", 3), "é");
    // The rest of the secret was never captured.
    assert_eq!(redact_all("n=1&x=the-token-01234"), "n=1&x=[masked]");
    assert_eq!(redact_all("n=1&x=secret-o"), "n=1&x=[masked]");
}

#[test]
fn secret_query_param_is_masked_however_encoded() {
    let query = "a=1&%61ccess_token=x%2Fy&debug=1&access_token=z&code=c&CorpSecret=s";
    assert_eq!(
        redact_query(query),
        "a=1&%61ccess_token=[masked]&debug=1&access_token=[masked]&code=[masked]&CorpSecret=[masked]"
    );
    assert_eq!(secret_param_values(query).collect::<Vec<_>>(), ["x/y", "z", "c", "s"]);
}

proptest::proptest! {
    #[test]
    fn encoded_secret_never_survives_redaction(before in ".{0,30}", behind in ".{0,30}", nth in 0usize..4, how in 0usize..5) {
        let secret = [EXCHANGE_SECRETS[0], EXCHANGE_SECRETS[1], OTHER_SECRETS[0], OTHER_SECRETS[1]][nth];
        let encoded: String = match how {
            0 => secret.to_owned(),
            1 => secret.bytes().map(|byte| format!("%{byte:02x}")).collect(),
            2 => secret.bytes().map(|byte| format!("%25{byte:02X}")).collect(),
            3 => secret.bytes().map(|byte| format!("\\u{byte:04x}")).collect(),
            _ => secret.to_uppercase(),
        };
        let redacted = redact_all(&format!("{before}{encoded}{behind}"));
        proptest::prop_assert!(!redacted.contains(&encoded), "{redacted}");
    }
}

fn percent_encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Encodings of a text as programs write them, each with its name.
fn encoded_variants(text: &str) -> Vec<(&'static str, String)> {
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    let each = |form: fn(u32) -> String| text.chars().map(|char| form(u32::from(char))).collect::<String>();
    let json = each(|code| format!("\\u{code:04X}"));
    vec![
        ("plain", text.to_owned()),
        ("upper", text.to_uppercase()),
        ("percent", percent_encode(text)),
        ("percent twice", percent_encode(text).replace('%', "%25")),
        ("percent three times", percent_encode(text).replace('%', "%2525")),
        ("percent four times", percent_encode(text).replace('%', "%252525")),
        ("json", json.clone()),
        ("json twice", json.replace('\\', "\\\\")),
        ("hex escapes", each(|code| format!("\\x{code:02x}"))),
        ("entities", each(|code| format!("&#{code};"))),
        ("hex entities", each(|code| format!("&#x{code:X};"))),
        ("hex", text.bytes().map(|byte| format!("{byte:02x}")).collect()),
        ("upper hex", text.bytes().map(|byte| format!("{byte:02X}")).collect()),
        ("base64", BASE64_STANDARD.encode(text)),
        ("base64 behind one", BASE64_STANDARD.encode(format!("x{text}"))[4..].to_owned()),
        ("base64 behind two", BASE64_URL_SAFE_NO_PAD.encode(format!("xy{text}"))[4..].to_owned()),
        ("percent base64", percent_encode(&BASE64_STANDARD.encode(text))),
        ("base64 percent", BASE64_STANDARD.encode(percent_encode(text))),
    ]
}

/// Whether more of an encoded secret is shown than a short run at its ends.
fn reveals(redacted: &str, encoded: &str) -> bool {
    let max_run = if encoded.contains(['%', '\\', '&']) { 26 } else { 8 };
    encoded.as_bytes().windows(max_run).any(|part| memmem::find(redacted.as_bytes(), part).is_some())
}

#[test]
fn secret_in_any_encoding_is_masked_even_truncated() {
    let long = "q7ZkT2wVbN4mXc9LrJ0sHd8FgPy5AeUiR1oKj3Bt6WvYxMzQnCfDhGlSpEaIuO";
    let is_key = |_: &str| false;
    for secret in [long, "key-of-crm-0000000000", "s3cret/of+hr-0123"] {
        for (how, encoded) in encoded_variants(secret) {
            for (before, behind) in
                [("", ""), ("glued", "glued"), ("{\"note\":\"", "\"}"), ("a=1&b=", "&c=2")]
            {
                if how.starts_with("base64") && before == "glued" {
                    // Glued text shifts the digits: this is no longer base64 of the secret.
                    continue;
                }
                let text = format!("{before}{encoded}{behind}");
                let others = |visit: &mut dyn FnMut(&str)| visit(secret);
                let redacted = Redactor::new(&[&text], &[], others, &is_key).redact(&text, text.len());
                assert!(
                    redacted.contains(MASK) && !reveals(&redacted, &encoded),
                    "{how}: {text}: {redacted}"
                );
                // Truncated as a captured body is, at every position.
                let max_bytes = before.len() + encoded.len() / 2;
                for end in (max_bytes..text.len()).step_by(if before.is_empty() { 2 } else { 23 }) {
                    let cut = &text[..end];
                    let others = |visit: &mut dyn FnMut(&str)| visit(secret);
                    let redacted = Redactor::new(&[cut], &[], others, &is_key).redact(cut, max_bytes);
                    assert!(!reveals(&redacted, &encoded), "{how}: {cut}: {redacted}");
                }
            }
        }
    }
}

#[test]
fn redaction_beyond_its_budget_is_abandoned() {
    let others = |_: &mut dyn FnMut(&str)| {};
    let is_key = |_: &str| false;
    let many: Vec<_> = (0..=MAX_EXCHANGE_SECRETS).map(|nth| format!("key-number-{nth}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(
        Redactor::new(&["text"], &many, others, &is_key).is_budget_exhausted(),
        "more secrets than one client presents"
    );
    assert!(!Redactor::new(&["text"], &many[1..], others, &is_key).is_budget_exhausted());
    // Duplicates count once.
    assert!(!Redactor::new(&["text"], &["key-000000"; 2000], others, &is_key).is_budget_exhausted());
    let text =
        format!("{} ", base64::prelude::BASE64_STANDARD.encode("harmless words, repeated")).repeat(1500);
    let secrets = Redactor::new(&[&text], &many[1..], others, &is_key);
    secrets.redact(&text, text.len());
    assert!(secrets.is_budget_exhausted());
    let others = |visit: &mut dyn FnMut(&str)| (0..400_000).for_each(|_| visit("secret-of-an-agent"));
    assert!(Redactor::new(&["text"], &[], others, &is_key).is_budget_exhausted(), "too many agents");
}

#[test]
fn passes_and_keys_in_hexadecimal_digits_are_taken_out() {
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let pass = hex("wp1-AAAAAGqxO4ACaHIHYmlsbGluZ2FiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6MDE");
    let key = hex("a-clients-key");
    for secret in [&pass, &pass.to_uppercase(), &pass[..40].to_owned(), &key, &key.to_uppercase()] {
        assert_eq!(redact_all(&format!("{{\"v\":\"{secret}\"}}")), r#"{"v":"[masked]"}"#, "{secret}");
        assert_eq!(redact_all(&format!("v: {secret}\r\nn: 1")), "v: [masked]\r\nn: 1", "{secret}");
    }
    assert_eq!(redact_all(&format!("0x{pass}g")), "0x[masked]g");
    assert_eq!(redact_all("deadbeefdeadbeefdeadbeef"), "deadbeefdeadbeefdeadbeef");
}
