use super::*;

/// Secrets of the exchange, and of other agents: the latter have WeCom's form, and the redactor is not told them.
const EXCHANGE_SECRETS: [&str; 3] = ["s3cret/of+hr", "the-token-0123456789", "a-ticket-of-hr~1"];
const OTHER_SECRETS: [&str; 2] = ["q7ZkT2wVbN4mXc9LrJ0sHd8FgPy5AeUiR1oKj3Bt6Wv", "secret-of-ops_0123"];
const GENERATED_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn redact(text: &str, truncated: bool) -> String {
    let is_key = |word: &str| word == "a-clients-key" || word == GENERATED_KEY;
    Redactor::new(EXCHANGE_SECRETS, &is_key).expect("few secrets").redact(text, truncated)
}

fn redact_all(text: &str) -> String {
    redact(text, false)
}

#[test]
fn named_secret_is_masked() {
    for (text, expected) in [
        (r#"{"errcode":0,"access_token":"abc","n":1}"#, r#"{"errcode":0,"access_token":"[masked]","n":1}"#),
        (r#"{"Ticket" : "a\"b,c", "n":1}"#, r#"{"Ticket" : "[masked]", "n":1}"#),
        (r#"{"secret":"ends in \\","n":1}"#, r#"{"secret":"[masked]","n":1}"#),
        (r#"{"key":12345,"n":1}"#, r#"{"key":"[masked]","n":1}"#),
        (r#"{"password":{"a":["b}"]},"n":1}"#, r#"{"password":"[masked]","n":1}"#),
        (r#"{"secret":"cut o"#, r#"{"secret":[masked]"#),
        (r#"{"secret":"","n":1}"#, r#"{"secret":"","n":1}"#),
        (r#"{"se\u0063ret":"x","\u006b":1}"#, r#"{"se\u0063ret":"[masked]","\u006b":1}"#),
        (r#"{"in":"{\"secret\":\"a b\",\"n\":1}"}"#, r#"{"in":"{\"secret\":\"[masked]\",\"n\":1}"}"#),
        (r#"{secret: "x", "n": 1}"#, "[masked]"),
        (r#"{'secret': 'x'}"#, "[masked]"),
        ("a=1&corpsecret=x%20y&b=2", "a=1&corpsecret=[masked]&b=2"),
        ("in=%7B%22secret%22%3A%22a%20b%22%2C%22n%22%3A1%7D", "in=[masked]"),
        ("to=https%3A%2F%2Fx%2F%3Faccess_token%3Dabc%26n%3D1", "to=[masked]"),
        (r#"{"to":"https://x/?access_token=abc&n=1"}"#, r#"{"to":"https://x/?access_token=[masked]&n=1"}"#),
        (r#"{"secretary":"Li","ticket_id":"7"}"#, r#"{"secretary":"Li","ticket_id":"7"}"#),
        (r#"{"query":"access_token=","n":1}"#, r#"{"query":"access_token=","n":1}"#),
        (r#"[["x-my-token","a"],["n","b"]]"#, r#"[["x-my-token","[masked]"],["n","b"]]"#),
        // A text that is neither JSON nor parameters is cut short.
        (r#"n=1 secret="a&b" m=2"#, "n=1 secret=[masked]"),
        ("n: 1\r\nAuthorization: Bearer abc\r\nm: 2", "n: 1\r\nAuthorization:[masked]"),
        ("<n>1</n><Secret>a b</Secret>", "<n>1</n><Secret>[masked]"),
        (
            "--x\r\nContent-Disposition: form-data; name=\"secret\"\r\n\r\na\r\nb\r\n--x\r\nn",
            "--x\r\nContent-Disposition: form-data; name=\"secret\"\r[masked]",
        ),
        (r#"{"userid":"张三","n":-1.5e3,"ok":true}"#, r#"{"userid":"张三","n":-1.5e3,"ok":true}"#),
        (r#"{"a":"b\\u0041"}"#, r#"{"a":"b\\u0041"}"#),
        (
            "https://open.work.weixin.qq.com/api/doc/90000/90135",
            "https://open.work.weixin.qq.com/api/doc/90000/90135",
        ),
        ("name=%E5%BC%A0%E4%B8%89&n=1", "name=%E5%BC%A0%E4%B8%89&n=1"),
        ("token;dur=0.000, upstream;dur=12.345", "token;dur=0.000, upstream;dur=12.345"),
    ] {
        assert_eq!(redact_all(text), expected, "{text}");
    }
}

#[test]
fn known_secret_is_masked_anywhere() {
    for (text, expected) in [
        ("xs3cret/of+hry z", "[masked] z"),
        (r#"{"v":"s3cret\/of+hr"}"#, r#"{"v":"[masked]"}"#),
        ("v=s3cret%2Fof%2Bhr;w", "v=[masked];w"),
        ("v=s3cret%252fof%252Bhr;w", "v=[masked];w"),
        ("v=%73%33cret%2Fof%2Bhr", "v=[masked]"),
        (r#"{"v":"\u0074he-token-0123456789","n":1}"#, r#"{"v":"[masked]","n":1}"#),
        ("THE-TOKEN-0123456789", "[masked]"),
        // Only the text as a whole shows that it is a secret.
        ("the-tok\r\n en-0123456789", "[masked]"),
        ("oken-0123 the-tok en-0123456789", "[masked]"),
        ("x&#115;3cret/of+hr y", "[masked]"),
        ("密钥secret-of-ops_0123是", "密钥[masked]是"),
        (r#"{"a-ticket-of-hr~1":1}"#, r#"{"[masked]":1}"#),
        ("jsapi_ticket=a-ticket-of-hr~1&n=1", "jsapi_ticket=[masked]&n=1"),
        ("v=a-ticket-of-hr%7E1&n=1", "v=[masked]&n=1"),
        ("k: a-clients-key!", "k: [masked]"),
        ("k: xa-clients-key", "k: xa-clients-key"),
        ("k: a-clients-key,x=a-clients-key", "k: [masked],x=[masked]"),
        ("see wp1-AAAA_b-c.", "see [masked]"),
        ("userwp1%2DAAAA", "[masked]"),
    ] {
        assert_eq!(redact_all(text), expected, "{text}");
    }
    let hex: String = EXCHANGE_SECRETS[1].bytes().map(|byte| format!("{byte:02X}")).collect();
    assert_eq!(redact_all(&format!("x {hex}")), "x [masked]");
}

#[test]
fn secret_in_base64_is_masked() {
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
    for before in ["", "a", "ab", "crm:"] {
        for secret in EXCHANGE_SECRETS.into_iter().chain(OTHER_SECRETS) {
            let text = format!("{before}{secret} and more");
            for encoded in [BASE64_STANDARD.encode(&text), BASE64_URL_SAFE_NO_PAD.encode(&text)] {
                let glued = redact_all(&format!("x glued{encoded}glued"));
                assert!(glued.starts_with("x [masked]") && !reveals(&glued, &encoded), "{text}: {glued}");
            }
        }
    }
}

#[test]
fn header_is_shown_only_if_it_is_listed() {
    let is_key = |_: &str| false;
    let redactor = Redactor::new(EXCHANGE_SECRETS, &is_key).expect("few secrets");
    for (name, value, expected) in [
        ("Content-Type", "application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("user-agent", "the-token-0123456789", "[masked]"),
        ("location", "https://x/?access_token=abc&n=1", "https://x/?access_token=[masked]&n=1"),
        ("cookie", "a=b", "[masked]"),
        ("x-shop", "7", "[masked]"),
    ] {
        assert_eq!(redactor.redact_header(name, value), expected, "{name}");
    }
}

#[test]
fn secret_across_the_end_is_masked() {
    assert_eq!(redact("0123 the-token-0123456789", true), "0123 [masked]");
    assert_eq!(redact("0123 the-to", true), "0123 [masked]");
    assert_eq!(redact("张三李", true), "张三李[masked]");
    assert_eq!(redact(r#"{"errcode":0,"v":"the-to"#, true), r#"{"errcode":0,"v"[masked]"#);
    // A client sent a part of the secret.
    assert_eq!(redact_all("n=1&x=the-token-01234"), "n=1&x=[masked]");
    assert_eq!(redact_all("n=1&x=oken-0123456789"), "n=1&x=[masked]");
}

#[test]
fn secret_query_param_is_masked_however_encoded() {
    let query = "a=1&%61ccess_token=x%2Fy&debug=1&access_token=z&code=c&CorpSecret=s";
    let is_key = |_: &str| false;
    assert_eq!(
        Redactor::new([], &is_key).expect("no secrets").redact_query(query, false),
        "a=1&%61ccess_token=[masked]&debug=1&access_token=[masked]&code=[masked]&CorpSecret=[masked]"
    );
    assert_eq!(secret_param_values(query).collect::<Vec<_>>(), ["x/y", "z", "c", "s"]);
}

proptest::proptest! {
    #[test]
    fn encoded_secret_never_survives_redaction(before in ".{0,30}", behind in ".{0,30}", nth in 0usize..5, how in 0usize..6) {
        let secret = EXCHANGE_SECRETS.into_iter().chain(OTHER_SECRETS).nth(nth).expect("a secret");
        let encoded: String = match how {
            0 => secret.to_owned(),
            1 => secret.bytes().map(|byte| format!("%{byte:02x}")).collect(),
            2 => secret.bytes().map(|byte| format!("%25{byte:02X}")).collect(),
            3 => secret.bytes().map(|byte| format!("\\u{byte:04x}")).collect(),
            4 => secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
            _ => secret.to_uppercase(),
        };
        for text in [format!("{before}{encoded}{behind}"), format!("{{\"{before}\":\"{encoded}{behind}\"}}")] {
            let redacted = redact_all(&text);
            proptest::prop_assert!(!redacted.contains(&encoded), "{redacted}");
        }
    }
}

fn percent_encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Encodings of a text as programs write them, each with its name.
fn encoded_variants(text: &str) -> Vec<(&'static str, String)> {
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
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
    encoded.as_bytes().windows(max_run).any(|part| memchr::memmem::find(redacted.as_bytes(), part).is_some())
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
                let redactor = Redactor::new([secret], &is_key).expect("one secret");
                let redacted = redactor.redact(&text, false);
                assert!(
                    redacted.contains(MASK) && !reveals(&redacted, &encoded),
                    "{how}: {text}: {redacted}"
                );
                // Truncated as a captured body is, at every position; or sent like this by the client.
                for end in (before.len() + encoded.len() / 2..text.len()).step_by(if before.is_empty() {
                    2
                } else {
                    23
                }) {
                    for truncated in [true, false] {
                        let redacted = redactor.redact(&text[..end], truncated);
                        assert!(!reveals(&redacted, &encoded), "{how}: {}: {redacted}", &text[..end]);
                    }
                }
            }
        }
    }
}

#[test]
fn secrets_of_other_agents_are_masked_in_any_encoding() {
    for secret in OTHER_SECRETS {
        for (how, encoded) in encoded_variants(secret) {
            for (before, behind) in
                [("", ""), ("glued", "glued"), ("{\"note\":\"", "\"}"), ("a=1&b=", "&c=2")]
            {
                let redacted = redact_all(&format!("{before}{encoded}{behind}"));
                assert!(redacted.contains(MASK) && !reveals(&redacted, &encoded), "{how}: {redacted}");
            }
        }
    }
}

#[test]
fn more_secrets_than_one_client_presents_are_refused() {
    let is_key = |_: &str| false;
    let many: Vec<_> = (0..=known_secrets::MAX_SECRETS).map(|nth| format!("key-number-{nth}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(Redactor::new(many.iter().copied(), &is_key).is_none());
    assert!(Redactor::new(many[1..].iter().copied(), &is_key).is_some());
    // Duplicates count once.
    assert!(Redactor::new(["key-000000"; 2000], &is_key).is_some());
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
    assert_eq!(redact_all(&format!("0x{pass}g")), "[masked]");
    assert_eq!(redact_all(&format!("x ab{GENERATED_KEY}cdX")), "x [masked]");
}

#[test]
#[ignore = "prints times; run it by itself in a release build"]
fn time_of_redaction() {
    let is_key = |_: &str| false;
    let user = r#"{"userid":"zhangsan","name":"张三","department":[1,2],"email":"zhangsan@example.com","mobile":"13800138000"},"#;
    let usual = format!("{{\"errcode\":0,\"errmsg\":\"ok\",\"userlist\":[{}{{}}]}}", user.repeat(35));
    let hostile = format!("k={}", "a.bcdef%2525252541,".repeat(430));
    for (name, text) in [("usual", usual), ("hostile", hostile)] {
        let started = std::time::Instant::now();
        let redactor =
            Redactor::new(OTHER_SECRETS.into_iter().chain(EXCHANGE_SECRETS), &is_key).expect("few");
        let built = started.elapsed();
        redactor.redact(&text, false);
        println!("{name}: {} bytes, automaton {built:?}, all {:?}", text.len(), started.elapsed());
    }
}
