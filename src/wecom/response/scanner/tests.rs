//! The scanner on bodies with known verdicts.

use super::*;

/// The verdict, asserted to be the same for the whole body and byte by byte.
fn scan(body: impl AsRef<[u8]>) -> Verdict {
    let body = body.as_ref();
    let (mut whole, mut single) = (ErrcodeScanner::new(), ErrcodeScanner::new());
    whole.feed(body);
    for byte in body {
        single.feed(&[*byte]);
    }
    assert_eq!(whole.verdict(), single.verdict(), "{}", String::from_utf8_lossy(body));
    assert_eq!(whole.finish(), single.finish());
    whole.verdict()
}

#[test]
fn top_level_errcode_is_found_anywhere() {
    for body in [
        r#"{"errcode":40014,"errmsg":"invalid access_token"}"#,
        r#"{"ip_list":[],"errcode":40014,"errmsg":"x"}"#,
        r#"{"a":[{"errcode":1},{"b":[[]]}],"d":{"errcode":2},"s":"\"errcode\":3","t":true,"n":-1.5e3,"errcode":40014}"#,
        "\u{feff} \r\n\t{ \"errcode\" :\n40014\t}",
        r#"{"err\u0063ode":40014.0}"#,
        r#"{"\u0065\u0072\u0072\u0063\u006F\u0064\u0065":4.0014e4}"#,
        r#"{"errcode":40014,"errcode":0}"#,
        r#"{"errcode":40014,"then":rubbish"#,
        r#"{"\ud83d\ude00":null,"x":"\ud83d","errcode":40014}"#,
    ] {
        assert_eq!(scan(body), Verdict::Found(40014), "{body}");
    }
    assert_eq!(scan(r#"{"errcode":-1}"#), Verdict::Found(-1));
    assert_eq!(scan(r#"{"errcode":0}"#), Verdict::Found(0));
}

#[test]
fn lookalike_errcode_is_none() {
    for body in [
        "",
        "\u{feff}",
        "<html>",
        r#"[{"errcode":40014}]"#,
        r#""errcode":40014"#,
        r#"{"data":{"errcode":40014}}"#,
        r#"{"text":"{\"errcode\":40014}"}"#,
        r#"{"errcode":"40014"}"#,
        r#"{"errcode":null,"errcode":40014}"#,
        r#"{"errcode":{"errcode":40014},"errcode":40014}"#,
        r#"{"errcode":40014.5}"#,
        r#"{"errcode":1e400}"#,
        r#"{"errcode":40014"#,
        r#"{"errcode":40014x}"#,
        r#"{"errcode":040014}"#,
        r#"{"errcode\n":1,"errcod":2,"errcodes":3,"Errcode":4,"errcode\ud800":5,"errcod\u0165":6}"#,
        r#"{} {"errcode":40014}"#,
    ] {
        assert_eq!(scan(body), Verdict::None, "{body}");
    }
}

#[test]
fn malformed_json_before_errcode_is_none() {
    for start in [
        "{,",
        "{\"a\":1,,",
        "{\"a\" 1,",
        "{\"a\":tru,",
        "{\"a\":nulll,",
        "{\"a\":[1,],",
        "{\"a\":[1},",
        "{\"a\":{\"b\":1],",
        "{\"a\":\"\\x\",",
        "{\"a\":\"\\u12G4\",",
        "{\"a\":\"\n\",",
        "{\"a\":01,",
        "{\"a\":-,",
        "{a:1,",
        "{'a':1,",
        "{1:1,",
        "\u{feff}\u{feff}{",
        "\u{fffd}{",
        "{{",
        "{\"a\":1 2,",
        "{\"a\":[1 2],",
    ] {
        assert_eq!(scan(format!("{start}\"errcode\":40014}}")), Verdict::None, "{start}");
    }
}

#[test]
fn verdict_is_reached_as_early_as_possible() {
    let mut scanner = ErrcodeScanner::new();
    assert_eq!(scanner.feed(b"{\"errcode\":4001"), Verdict::Undecided);
    assert_eq!(scanner.feed(b"4"), Verdict::Undecided);
    assert_eq!(scanner.feed(b","), Verdict::Found(40014));
    assert_eq!(scanner.feed(b"\"errcode\":1}"), Verdict::Found(40014));
    assert_eq!(scanner.finish(), Verdict::Found(40014));

    for none in ["<", "[", " \n\"", "\u{feff}x", "{}", "{\"a\":1}", "{\"errcode\":\"", "{\"errcode\":n"] {
        assert_eq!(ErrcodeScanner::new().feed(none.as_bytes()), Verdict::None, "{none}");
    }
}

#[test]
fn nesting_is_bounded() {
    let nested = |levels| format!("{{\"a\":{}{},\"errcode\":7}}", "[".repeat(levels), "]".repeat(levels));
    assert_eq!(scan(nested(MAX_DEPTH - 1)), Verdict::Found(7));
    assert_eq!(scan(nested(MAX_DEPTH)), Verdict::None);
}
