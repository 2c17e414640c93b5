//! The headers of a client that wants a request carried out once
//! (draft-ietf-httpapi-idempotency-key-header).

use std::borrow::Cow;

use crate::{
    http1::headers::{HeaderKind, Headers},
    proxy::error::{ErrorKind, ProxyError},
};

/// Longest key.
const MAX_KEY_BYTES: usize = 255;
/// Allows that a request whose outcome is unknown is sent again.
const RETRY_HEADER: &[u8] = b"idempotency-key-retry";
const SEND_AGAIN: &[u8] = b"send-again";

/// The key; `abc` and `"abc"` are one.
pub(super) fn idempotency_key(headers: &Headers) -> Result<Cow<'_, str>, ProxyError> {
    let mut values = headers.values(HeaderKind::IdempotencyKey);
    let key = match (values.next(), values.next()) {
        (Some(value), None) => parse(value),
        _ => None,
    };
    key.ok_or_else(|| {
        let message = format!(
            "Idempotency-Key must be one value of 1 to {MAX_KEY_BYTES} visible ASCII characters, bare or in double quotes"
        );
        ErrorKind::BadRequest.error(message)
    })
}

/// Whether the client accepts that the request may be carried out twice.
pub(super) fn allows_send_again(headers: &Headers) -> Result<bool, ProxyError> {
    let mut is_allowed = false;
    for header in headers.iter().filter(|header| header.name.eq_ignore_ascii_case(RETRY_HEADER)) {
        if !header.value.eq_ignore_ascii_case(SEND_AGAIN) {
            let message = "Idempotency-Key-Retry has one value only: send-again";
            return Err(ErrorKind::BadRequest.error(message));
        }
        is_allowed = true;
    }
    Ok(is_allowed)
}

/// A bare key, or a string of RFC 8941, in which quotes and backslashes are escaped.
fn parse(value: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(value).ok()?;
    let key = match text.strip_prefix('"') {
        None => Cow::Borrowed(text),
        Some(rest) => unquote(rest)?,
    };
    let is_valid =
        (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    is_valid.then_some(key)
}

/// The text before the closing quote, which is the last character.
fn unquote(quoted: &str) -> Option<Cow<'_, str>> {
    let inner = quoted.strip_suffix('"')?;
    if !inner.contains(['"', '\\']) {
        return Some(Cow::Borrowed(inner));
    }
    let (mut key, mut chars) = (String::new(), inner.chars());
    while let Some(char) = chars.next() {
        match char {
            '"' => return None,
            '\\' => key.push(chars.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            _ => key.push(char),
        }
    }
    Some(Cow::Owned(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn key_is_bare_or_quoted() {
        let longest = "k".repeat(255);
        for (value, expected) in [
            ("abc", Some("abc")),
            ("\"abc\"", Some("abc")),
            ("\"a\\\"b\\\\c\"", Some("a\"b\\c")),
            ("a\"b", Some("a\"b")),
            (&longest, Some(&longest)),
            (&format!("\"{longest}\""), Some(&longest)),
            (&format!("{longest}k"), None),
            ("", None),
            ("\"\"", None),
            ("\"", None),
            ("\"abc", None),
            ("\"a\"b\"", None),
            ("\"a\\b\"", None),
            ("\"a\\\"", None),
            ("a b", None),
            ("\"a b\"", None),
            ("é", None),
            ("a\tb", None),
        ] {
            assert_eq!(parse(value.as_bytes()).as_deref(), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn quoted_key_is_the_bare_one(key in "[!-~&&[^\"]][!-~]{0,100}") {
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            let parsed = parse(quoted.as_bytes()).map(Cow::into_owned);
            prop_assert_eq!(parsed, Some(key.clone()));
            let parsed = parse(key.as_bytes()).map(Cow::into_owned);
            prop_assert_eq!(parsed, Some(key));
        }
    }
}
