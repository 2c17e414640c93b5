//! Takes what is secret out of a text: what has the name of a secret, and what is known to be one. Pure.
//!
//! Where it is in doubt it takes out too much: a text that is cut off, or that only resembles JSON, must show nothing either.

use std::{borrow::Cow, ops::Range};

use memchr::memmem;
use percent_encoding::percent_decode_str;

/// What stands in a secret's place.
pub(super) const MASK: &str = "[masked]";
/// Names of fields, parameters and header lines whose values are secret, in lower case.
const NAMES: [&str; 14] = [
    "access_token",
    "suite_access_token",
    "provider_access_token",
    "corpsecret",
    "secret",
    "ticket",
    "password",
    "passwd",
    "key",
    "permanent_code",
    "auth_code",
    "authorization",
    "cookie",
    "encodingaeskey",
];
/// And so is whatever ends like this.
const ENDINGS: [&str; 8] = ["token", "secret", "_ticket", "_key", "-key", "_password", "apikey", "-cookie"];
/// The shortest text that is looked up among the known secrets.
const SHORTEST: usize = 6;

/// Whether what has this name is secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.contains(&&*name)
        || ENDINGS.iter().any(|ending| name.ends_with(ending))
        || name.ends_with("authorization")
}

/// Takes secrets out. `texts` are looked for anywhere, `is_known` is asked about each word. Nothing behind `most` bytes is
/// shown; so that a secret is seen that begins before and ends behind, the text should go on.
pub(super) fn redact(text: &str, texts: &[&str], is_known: &dyn Fn(&str) -> bool, most: usize) -> String {
    let text = plain(text);
    let mut secret = named(&text);
    for wanted in texts.iter().filter(|wanted| !wanted.is_empty()) {
        let found = memmem::find_iter(text.as_bytes(), wanted.as_bytes());
        secret.extend(found.map(|at| at..at + wanted.len()));
    }
    let is_secret = |word: &str| {
        is_known(word) || texts.iter().any(|known| known.len() >= SHORTEST && word.contains(known))
    };
    for breaks in ["", "=:", "=:/+", "=:/+.%"] {
        secret.extend(words(&text, breaks).filter(|word| {
            let word = &text[word.clone()];
            let decoded = percent_decode_str(word).decode_utf8_lossy();
            word.len() >= SHORTEST && (is_secret(word) || (decoded != word && is_secret(&decoded)))
        }));
    }
    secret.sort_by_key(|range| range.start);
    without(&text, &secret, most)
}

/// A query with the values of secret parameters taken out, however their names are written.
pub(super) fn redact_query(query: &str) -> String {
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if is_secret_name(&percent_decode_str(name).decode_utf8_lossy()) => {
            format!("{name}={MASK}")
        }
        _ => parameter.to_owned(),
    });
    parameters.collect::<Vec<_>>().join("&")
}

/// The text up to `most`, with a mask in place of each range.
fn without(text: &str, secret: &[Range<usize>], most: usize) -> String {
    let most = text.floor_char_boundary(most);
    let (mut shown, mut at) = (String::with_capacity(most), 0);
    for range in secret {
        if range.start >= most {
            break;
        }
        if range.start >= at {
            shown.push_str(&text[at..range.start]);
            shown.push_str(MASK);
        }
        at = at.max(range.end);
    }
    if at < most {
        shown.push_str(&text[at..most]);
    }
    shown
}

/// The text with escapes resolved that JSON needs for none of them: letters, digits and what secrets are made of besides.
fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains("\\u00") && !text.contains("\\/") {
        return Cow::Borrowed(text);
    }
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('\\') {
        shown.push_str(&rest[..at]);
        let (read, length) = escape(&rest[at..]);
        match read {
            Some(read) => shown.push(read),
            None => shown.push_str(&rest[at..at + length]),
        }
        rest = &rest[at + length..];
    }
    Cow::Owned(shown + rest)
}

/// The character that an escape stands for, if it is one that needs none, and how long the escape is.
fn escape(text: &str) -> (Option<char>, usize) {
    if text.starts_with("\\/") {
        return (Some('/'), 2);
    }
    let digits = text.strip_prefix("\\u00").and_then(|rest| rest.get(..2));
    let read = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).map(char::from);
    match read.filter(|read| read.is_ascii_graphic() && !matches!(read, '"' | '\\')) {
        Some(read) => (Some(read), 6),
        // An escaped backslash is passed over as a whole; what follows it is no escape.
        None => (None, if text.starts_with("\\\\") { 2 } else { 1 }),
    }
}

/// What stands between white space, quotes, brackets and these.
fn words<'a>(text: &'a str, breaks: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
    let is_break = move |it: char| {
        it.is_whitespace() || it.is_control() || "\"'\\,;&?<>(){}[]|`".contains(it) || breaks.contains(it)
    };
    let start = text.as_ptr() as usize;
    text.split(is_break).filter(|word| !word.is_empty()).map(move |word| {
        let at = word.as_ptr() as usize - start;
        at..at + word.len()
    })
}

/// The values that follow the name of a secret, as in JSON, in a JSON text inside of one, and in a form.
fn named(text: &str) -> Vec<Range<usize>> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let (bytes, mut found, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let length = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
        let end = at + length;
        if length > 0
            && is_secret_name(&text[at..end])
            && let Some(value) = value_after(bytes, end)
        {
            at = value.end;
            found.push(value);
        } else {
            at = end.max(at + 1);
        }
    }
    found
}

/// Where the value stands that belongs to a name which ends here.
fn value_after(bytes: &[u8], name_end: usize) -> Option<Range<usize>> {
    let skip =
        |from: usize, what: &[u8]| from + bytes[from..].iter().take_while(|byte| what.contains(byte)).count();
    let sign = skip(name_end, b"\\\"' \t\r\n");
    let next = bytes.get(sign + 1);
    match bytes.get(sign) {
        Some(b':') => {}
        // At the end of a text, which is not the beginning of one.
        Some(b'=')
            if next == Some(&b'"') && bytes.get(sign + 2).is_none_or(|it| b",}] \r\n".contains(it)) =>
        {
            return None;
        }
        Some(b'=') => {}
        // A pair as a list, as some write header lines.
        Some(b',') if bytes.get(name_end) == Some(&b'"') && next == Some(&b'"') => {}
        _ => return None,
    }
    let opening = skip(sign + 1, b" \t\r\n");
    let quote = skip(opening, b"\\");
    let start = quote + 1;
    Some(match bytes.get(quote) {
        Some(mark @ (b'"' | b'\'')) => start..quoted_end(bytes, start, *mark, quote - opening),
        Some(b'{' | b'[') if quote == opening => opening..nested_end(bytes, opening),
        _ => {
            let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"&,;}]\"'<>\\".contains(byte);
            opening..bytes[opening..].iter().position(is_end).map_or(bytes.len(), |length| opening + length)
        }
    })
}

/// Where a quoted text ends whose quotes stand behind so many backslashes.
fn quoted_end(bytes: &[u8], start: usize, mark: u8, backslashes: usize) -> usize {
    let mut run = 0;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match *byte {
            b'\\' => run += 1,
            byte if byte == mark && (run <= backslashes || (backslashes == 0 && run % 2 == 0)) => {
                return at - run.min(backslashes);
            }
            _ => run = 0,
        }
    }
    bytes.len()
}

/// Where an object or a list ends; brackets inside of texts may make it longer.
fn nested_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return at + 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        redact(text, &["s3cret/of+hr", "the-token"], &|word| word == "a-clients-key", 4096)
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
            (r#"{"se\u0063ret":"x","\u006b":1}"#, r#"{"secret":"[masked]","k":1}"#),
            (r#"{"in":"{\"secret\":\"a b\",\"n\":1}"}"#, r#"{"in":"{\"secret\":\"[masked]\",\"n\":1}"}"#),
            ("a=1&corpsecret=x%20y&b=2", "a=1&corpsecret=[masked]&b=2"),
            (r#"{"secretary":"Li","ticket_id":"7"}"#, r#"{"secretary":"Li","ticket_id":"7"}"#),
            (r#"{"query":"access_token=","n":1}"#, r#"{"query":"access_token=","n":1}"#),
            (r#"[["x-my-token","a"],["n","b"]]"#, r#"[["x-my-token","[masked]"],["n","b"]]"#),
            (r#"secret="a b" n=1"#, r#"secret="[masked]" n=1"#),
            (r#"{"userid":"张三"}"#, r#"{"userid":"张三"}"#),
            (r#"{"a":"b\\u0041"}"#, r#"{"a":"b\\u0041"}"#),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_known_is_taken_out_wherever_it_stands() {
        for (text, expected) in [
            ("xs3cret/of+hry", "[masked]"),
            (r#"{"v":"s3cret\/of+hr"}"#, r#"{"v":"[masked]"}"#),
            ("v=s3cret%2Fof%2Bhr;w", "[masked];w"),
            (r#"{"v":"\u0074he-token"}"#, r#"{"v":"[masked]"}"#),
            ("k: a-clients-key!", "k: a-clients-key!"),
            ("k: a-clients-key,x=a-clients-key", "k: [masked],x=[masked]"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_lies_across_the_end_is_not_shown_in_part() {
        let text = "0123 the-token and more";
        assert_eq!(redact(text, &["the-token"], &|_| false, 8), "0123 [masked]");
        assert_eq!(redact(text, &["the-token"], &|_| false, 4), "0123");
        assert_eq!(redact("ééé", &[], &|_| false, 3), "é");
    }

    #[test]
    fn a_query_shows_no_secret_however_its_name_is_written() {
        assert_eq!(
            redact_query("a=1&%61ccess_token=x&debug=1&access_token=y"),
            "a=1&%61ccess_token=[masked]&debug=1&access_token=[masked]"
        );
    }
}
