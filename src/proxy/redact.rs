//! Takes what is secret out of a text: what is known to be a secret, wherever it stands and in whatever guise, and what has
//! the name of one. Pure.
//!
//! Where it is in doubt it takes out too much: a text that is cut off, or that only resembles JSON, must show nothing either.

mod guises;
mod named;
mod plain;

use std::ops::Range;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use memchr::memmem;
use percent_encoding::percent_decode_str;

pub(super) use self::named::is_secret_name;
use self::{
    guises::{Guise, SHORTEST, Starts, guises},
    named::named,
    plain::Plain,
};

/// What stands in a secret's place.
pub(super) const MASK: &str = "[masked]";
/// What every pass begins with, as it is looked for.
const MARK_OF_A_PASS: &[u8] = b"wp1+";
/// So many hexadecimal digits are a key as `wecom-proxy key` makes them.
const MADE_KEY: usize = 64;
/// The shortest text that is looked at as base64.
const SHORTEST_BASE64: usize = 12;
/// base64 as it is met: of either alphabet, with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What is secret in one exchange, to be taken out of each of its texts. It has no `Debug`: it holds what it is looking for.
pub(super) struct Secrets<'a> {
    guises: Vec<Guise>,
    is_key: &'a dyn Fn(&str) -> bool,
}

impl<'a> Secrets<'a> {
    /// Looks for secrets in `texts`. `own` are those that are known to belong to this exchange. `others` tells any number
    /// more, of which most will not be there. `is_key` knows further ones when it sees them.
    pub(super) fn among(
        texts: &[&str],
        own: &[&str],
        others: impl FnOnce(&mut dyn FnMut(&str)),
        is_key: &'a dyn Fn(&str) -> bool,
    ) -> Self {
        let mut starts = Starts::default();
        texts.iter().for_each(|text| starts.add(text));
        let mut found: Vec<_> = own.iter().flat_map(|secret| guises(secret.as_bytes())).collect();
        others(&mut |secret| {
            if starts.may_hold(secret) {
                found.extend(guises(secret.as_bytes()));
            }
        });
        Self { guises: found, is_key }
    }

    /// Takes secrets out of a text. Nothing behind `most` bytes is shown; so that a secret is seen that begins before and
    /// ends behind, the text should go on.
    pub(super) fn redact(&self, text: &str, most: usize) -> String {
        let mut secret = self.find(text, true);
        secret.sort_by_key(|range| range.start);
        without(text, &secret, most)
    }

    /// Where secrets are; inside of base64 too, if it is to be looked into.
    fn find(&self, text: &str, inside: bool) -> Vec<Range<usize>> {
        let (mut found, mut values) = (Vec::new(), Vec::<Range<usize>>::new());
        for level in Plain::levels(text) {
            // Where an escape was resolved, nobody can tell any more where a quoted value ends.
            for value in named(&level.bytes).into_iter().map(|part| level.origin(part)) {
                if !values.iter().any(|known| known.contains(&value.start)) {
                    values.push(value);
                }
            }
            let canonical = level.canonical();
            found.extend(self.known(&canonical.bytes).into_iter().map(|part| canonical.origin(part)));
            let is_secret = |word: &[u8]| self.is_secret_word(word, inside);
            let words = words(&level.bytes).into_iter().filter(|word| is_secret(&level.bytes[word.clone()]));
            found.extend(words.chain(self.made_keys(&level.bytes)).map(|part| level.origin(part)));
        }
        found.extend(values);
        found
    }

    /// What is known to be secret, also if only its beginning is there because the text ends; and passes.
    fn known(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for Guise { text: guise, around } in &self.guises {
            let whole = memmem::find_iter(text, guise).map(|at| at..at + guise.len());
            let partly = (SHORTEST..guise.len()).rev().find(|length| text.ends_with(&guise[..*length]));
            let partly = partly.map(|length| text.len() - length..text.len());
            let wider =
                |part: Range<usize>| part.start.saturating_sub(*around)..(part.end + around).min(text.len());
            found.extend(whole.chain(partly).map(wider));
        }
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        found.extend(memmem::find_iter(text, MARK_OF_A_PASS).map(|at| {
            let end = at + text[at..].iter().take_while(|byte| is_digit(byte)).count();
            at..end
        }));
        found
    }

    /// Keys as the program makes them, whatever stands beside them.
    fn made_keys(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for run in runs(text, |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            for at in run.start..(run.end + 1).saturating_sub(MADE_KEY).max(run.start) {
                let part = at..at + MADE_KEY;
                found.extend(self.is_key_text(&text[part.clone()]).then_some(part));
            }
        }
        found
    }

    fn is_secret_word(&self, word: &[u8], inside: bool) -> bool {
        word.len() >= SHORTEST && (self.is_key_text(word) || (inside && self.hides_a_secret(word)))
    }

    fn is_key_text(&self, text: &[u8]) -> bool {
        str::from_utf8(text).is_ok_and(|text| (self.is_key)(text))
    }

    /// Whether it is base64 of a text that holds a secret.
    fn hides_a_secret(&self, word: &[u8]) -> bool {
        if word.len() < SHORTEST_BASE64 {
            return false;
        }
        let standard = |byte: &u8| match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => *other,
        };
        let digits: Vec<_> = word.iter().map(standard).collect();
        let text = BASE64.decode(digits).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        text.is_some_and(|text| !text.contains(char::is_control) && !self.find(&text, false).is_empty())
    }
}

/// A query with the values of secret parameters taken out, however their names are written.
pub(super) fn redact_query(query: &str) -> String {
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if is_secret_parameter(name) => format!("{name}={MASK}"),
        _ => parameter.to_owned(),
    });
    parameters.collect::<Vec<_>>().join("&")
}

/// The values of a query's secret parameters, decoded.
pub(super) fn secret_values(query: &str) -> impl Iterator<Item = String> {
    let parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let secret = parameters.filter(|(name, _)| is_secret_parameter(name));
    secret.map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
}

fn is_secret_parameter(name: &str) -> bool {
    let name = percent_decode_str(name).decode_utf8_lossy();
    // OAuth's code serves once, but until then for whoever has it. Elsewhere the word says nothing.
    is_secret_name(&name) || name.eq_ignore_ascii_case("code")
}

/// The text up to `most`, with a mask in place of each range.
fn without(text: &str, secret: &[Range<usize>], most: usize) -> String {
    let most = text.floor_char_boundary(most);
    let (mut shown, mut at) = (String::with_capacity(most), 0);
    for range in secret {
        let (start, end) = (text.floor_char_boundary(range.start), text.ceil_char_boundary(range.end));
        if start >= most {
            break;
        }
        if start >= end || end <= at {
            continue;
        }
        // What follows a mask without a gap needs none of its own.
        if start > at || at == 0 {
            shown.push_str(&text[at..start]);
            shown.push_str(MASK);
        }
        at = end;
    }
    if at < most {
        shown.push_str(&text[at..most]);
    }
    shown
}

/// What stands between white space, quotes, brackets and the like, and its parts between further signs, which a key may
/// hold or not.
fn words(text: &[u8]) -> Vec<Range<usize>> {
    let is_part = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\,;&?<>(){}[]|`".contains(&byte);
    let mut found = Vec::new();
    for word in runs(text, is_part) {
        for breaks in [&b""[..], b"=:", b"=:/+", b"=:/+.%"] {
            for part in runs(&text[word.clone()], |byte| !breaks.contains(&byte)) {
                let part = word.start + part.start..word.start + part.end;
                let bare = without_signs(text, part.clone());
                found.extend([part, bare]);
            }
        }
    }
    // Most have none of the signs.
    found.sort_by_key(|part| (part.start, part.end));
    found.dedup();
    found
}

/// A part without the signs before and behind it, as a sentence has them.
fn without_signs(text: &[u8], part: Range<usize>) -> Range<usize> {
    let is_sign = |byte: &&u8| !byte.is_ascii_alphanumeric();
    let before = text[part.clone()].iter().take_while(is_sign).count();
    let behind = text[part.start + before..part.end].iter().rev().take_while(is_sign).count();
    part.start + before..part.end - behind
}

/// The longest parts that hold nothing else.
fn runs(text: &[u8], is_part: impl Fn(u8) -> bool + Copy) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].iter().position(|byte| is_part(*byte))?;
        at =
            text[start..].iter().position(|byte| !is_part(*byte)).map_or(text.len(), |length| start + length);
        Some(start..at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [&str; 2] = ["s3cret/of+hr", "the-token-0123456789"];
    const OTHERS: [&str; 2] = ["secret-of-ops_0123", "a-ticket-of-ops~1"];
    const MADE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn shown_up_to(text: &str, most: usize) -> String {
        let is_key = |word: &str| word == "a-clients-key" || word == MADE;
        let others = |tell: &mut dyn FnMut(&str)| OTHERS.iter().for_each(|other| tell(other));
        Secrets::among(&[text], &OWN, others, &is_key).redact(text, most)
    }

    fn shown(text: &str) -> String {
        shown_up_to(text, 1 << 20)
    }

    #[test]
    fn what_is_named_like_a_secret_is_taken_out() {
        for (text, expected) in [
            (
                r#"{"errcode":0,"access_token":"abc","n":1}"#,
                r#"{"errcode":0,"access_token":"[masked]","n":1}"#,
            ),
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
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_known_is_taken_out_wherever_it_stands() {
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
            assert_eq!(shown(text), expected, "{text}");
        }
        let glued = format!("ab{MADE}cdX");
        assert_eq!(shown(&glued), "ab[masked]cdX");
        let hex: String = OWN[1].bytes().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(shown(&format!("x {hex}")), "x [masked]");
    }

    #[test]
    fn base64_hides_nothing() {
        use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
        for before in ["", "a", "ab", "crm:"] {
            for secret in [OWN[0], OWN[1], OTHERS[0]] {
                let text = format!("{before}{secret} and more");
                for encoded in [BASE64_STANDARD.encode(&text), BASE64_URL_SAFE_NO_PAD.encode(&text)] {
                    let shown = shown(&format!("glued{encoded}glued"));
                    let (head, tail) = (before.len() * 4 / 3, (before.len() + secret.len()) * 4 / 3);
                    let digits = &encoded[head..tail];
                    let parts =
                        digits.as_bytes().windows(4).map(|part| str::from_utf8(part).expect("digits"));
                    let told: Vec<_> = parts.filter(|part| shown.contains(part)).collect();
                    assert!(shown.contains(MASK) && told.is_empty(), "{text}: {shown} tells {told:?}");
                }
            }
        }
        let encoded = BASE64_STANDARD.encode("crm:a-clients-key");
        assert_eq!(shown(&format!("x: Basic {encoded}")), "x: Basic [masked]");
        let encoded = BASE64_URL_SAFE_NO_PAD.encode(r#"{"n":1,"secret":"x"}"#);
        assert_eq!(shown(&format!("x={encoded}&y")), "x=[masked]&y");
        let harmless = BASE64_STANDARD.encode("only a few words");
        assert_eq!(shown(&harmless), harmless);
    }

    #[test]
    fn what_lies_across_the_end_is_not_shown_in_part() {
        let text = "0123 the-token-0123456789 and more";
        assert_eq!(shown_up_to(text, 8), "0123 [masked]");
        assert_eq!(shown_up_to(text, 4), "0123");
        assert_eq!(shown_up_to("ééé", 3), "é");
        // Nobody has seen the rest.
        assert_eq!(shown("n=1&x=the-token-01234"), "n=1&x=[masked]");
        assert_eq!(shown("n=1&x=secret-o"), "n=1&x=[masked]");
    }

    #[test]
    fn a_query_shows_no_secret_however_its_name_is_written() {
        let query = "a=1&%61ccess_token=x%2Fy&debug=1&access_token=z&code=c&CorpSecret=s";
        assert_eq!(
            redact_query(query),
            "a=1&%61ccess_token=[masked]&debug=1&access_token=[masked]&code=[masked]&CorpSecret=[masked]"
        );
        assert_eq!(secret_values(query).collect::<Vec<_>>(), ["x/y", "z", "c", "s"]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_known_is_ever_shown(before in ".{0,30}", behind in ".{0,30}", nth in 0usize..4, how in 0usize..5) {
            let secret = [OWN[0], OWN[1], OTHERS[0], OTHERS[1]][nth];
            let encoded: String = match how {
                0 => secret.to_owned(),
                1 => secret.bytes().map(|byte| format!("%{byte:02x}")).collect(),
                2 => secret.bytes().map(|byte| format!("%25{byte:02X}")).collect(),
                3 => secret.bytes().map(|byte| format!("\\u{byte:04x}")).collect(),
                _ => secret.to_uppercase(),
            };
            let shown = shown(&format!("{before}{encoded}{behind}"));
            proptest::prop_assert!(!shown.contains(&encoded), "{shown}");
        }
    }
}
