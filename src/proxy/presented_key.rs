//! The key that a client presents in its headers, and the check whether a text is a credential.

use std::cmp::Reverse;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    error::{ErrorKind, ProxyError},
    query,
    request::Request,
};
use crate::{
    http1::headers::{HeaderKind, Headers},
    secret::{Masked, credential_scan, http_basic::basic_password},
};

/// A presented key: as received, or decoded from HTTP Basic.
pub(super) enum PresentedKey<'a> {
    Verbatim(&'a str),
    Decoded(Masked),
}

impl PresentedKey<'_> {
    pub(super) fn expose(&self) -> &str {
        match self {
            Self::Verbatim(key) => key,
            Self::Decoded(key) => key.expose(),
        }
    }
}

/// The key in `Authorization`: Bearer, or the password of Basic.
pub(super) fn authorization_key(headers: &Headers) -> Result<Option<PresentedKey<'_>>, ProxyError> {
    let Some(value) = single_value(headers, HeaderKind::Authorization, "Authorization")? else {
        return Ok(None);
    };
    let space = memchr::memchr(b' ', value.as_bytes()).unwrap_or(value.len());
    let (scheme, rest) = (&value[..space], value[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(PresentedKey::Verbatim(rest)));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let message = "malformed Basic credentials: expected base64 of USER:KEY";
        let password = basic_password(rest.as_bytes());
        return password
            .map(|password| Some(PresentedKey::Decoded(password)))
            .ok_or_else(|| ProxyError::new(ErrorKind::Unauthenticated, message));
    }
    Err(ProxyError::new(ErrorKind::Unauthenticated, "unsupported Authorization scheme; use Bearer or Basic"))
}

pub(super) fn api_key(headers: &Headers) -> Result<Option<PresentedKey<'_>>, ProxyError> {
    Ok(single_value(headers, HeaderKind::ApiKey, "X-Api-Key")?.map(PresentedKey::Verbatim))
}

/// Whether a text is or contains a pass or a credential of this request: its key, what its `Authorization` contains, or
/// any parameter of a gettoken.
pub(super) fn is_credential(request: &Request, text: &str) -> bool {
    let is_or_contains =
        |key: &[u8]| key == text.as_bytes() || credential_scan::contains_key(text.as_bytes(), key);
    // For any scheme: the credentials after it.
    let is_authorization_key = |value: &[u8]| {
        let prefix = value.trim_ascii().strip_suffix(text.as_bytes());
        prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with(b" "))
    };
    credential_scan::has_pass_prefix(text)
        || credential_scan::contains_pass(text.as_bytes())
        || request.presented_keys().any(is_or_contains)
        || request.headers.values(HeaderKind::Authorization).any(is_authorization_key)
        || (request.target.may_be_gettoken()
            && query::param_values(request.target.query().unwrap_or_default())
                .any(|value| is_or_contains(value.as_bytes())))
}

/// Masks the credentials of this request in a text from WeCom, however short they are. The text is not the request's
/// own, so even a word that happens to equal a short key may go.
pub(super) fn mask_credentials(request: &Request, text: &str) -> String {
    let keys = request.presented_keys().filter_map(|key| std::str::from_utf8(key).ok());
    let tokens: Vec<_> = query::token_values(request.target.query().unwrap_or_default()).collect();
    let shown = keys.chain(tokens.iter().map(|token| &**token)).filter(|shown| !shown.is_empty());
    let mut shown: Vec<_> = shown
        .flat_map(|shown| {
            let encoded = utf8_percent_encode(shown, NON_ALPHANUMERIC).to_string();
            [Masked::new(shown), Masked::new(encoded)]
        })
        .collect();
    // The longest first, because it may contain another.
    shown.sort_by_key(|shown| Reverse(shown.expose().len()));
    shown.iter().fold(text.to_owned(), |text, shown| mask_credential(&text, shown.expose()))
}

/// Masks a credential in a text. Of less than 4 bytes only as a whole word: it may be part of any other.
fn mask_credential(text: &str, credential: &str) -> String {
    const MASK: &str = "[masked]";
    if credential.len() >= 4 {
        return text.replace(credential, MASK);
    }
    let is_part_of_word = |neighbour: Option<char>| neighbour.is_some_and(char::is_alphanumeric);
    let (mut masked, mut copied) = (String::with_capacity(text.len()), 0);
    for (start, found) in text.match_indices(credential) {
        let end = start + found.len();
        if !is_part_of_word(text[..start].chars().next_back()) && !is_part_of_word(text[end..].chars().next())
        {
            masked.push_str(&text[copied..start]);
            masked.push_str(MASK);
            copied = end;
        }
    }
    masked + &text[copied..]
}

/// The value of a header that must occur at most once, with only printable ASCII characters and tabs.
pub(super) fn single_value<'a>(
    headers: &'a Headers,
    header: HeaderKind,
    name: &str,
) -> Result<Option<&'a str>, ProxyError> {
    let mut values = headers.values(header);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let message = format!("duplicate header {name}; send it once");
        return Err(ProxyError::new(ErrorKind::BadRequest, message));
    }
    let printable =
        |so_far: bool, byte: &u8| so_far & (((*byte >= b' ') & (*byte <= b'~')) | (*byte == b'\t'));
    match std::str::from_utf8(value) {
        Ok(text) if value.iter().fold(true, printable) => Ok(Some(text)),
        _ => {
            let message = format!("the header {name} must contain only printable ASCII characters and tabs");
            Err(ProxyError::new(ErrorKind::BadRequest, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_is_masked_and_a_short_one_as_a_word() {
        for (text, credential, expected) in [
            ("key k-1234 refused: xk-1234x", "k-1234", "key [masked] refused: x[masked]x"),
            ("key 'ab', (ab) and [ab] refused", "ab", "key '[masked]', ([masked]) and [[masked]] refused"),
            ("abc cab", "ab", "abc cab"),
            ("ab", "ab", "[masked]"),
            ("错ab 错", "错", "错ab [masked]"),
            ("aaa", "a", "aaa"),
            ("", "a", ""),
        ] {
            assert_eq!(mask_credential(text, credential), expected, "{text}");
        }
    }
}
