//! The upstream query: the received bytes without any `access_token`, plus the agent's token at the end. Pure
//! functions: no I/O, no shared state.

use std::{borrow::Cow, iter, sync::LazyLock};

use memchr::{memchr, memmem::Finder};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use crate::{
    secret::credential_scan::has_pass_prefix,
    tokens::kinds::access_token::{APPENDED_PARAM, PARAM as TOKEN_PARAM},
    wecom::provider_api::ProviderToken,
};

static TOKEN_PARAM_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(TOKEN_PARAM));

/// Whether a query may contain a token: it has a percent sign, or the name occurs.
pub(super) fn may_contain_token(query: &str) -> bool {
    memchr(b'%', query.as_bytes()).is_some()
        || (query.len() >= TOKEN_PARAM.len() && TOKEN_PARAM_FINDER.find(query.as_bytes()).is_some())
}

/// The parameters of a query. `str::split` takes several times as many instructions for a pass, which is long.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(query);
    iter::from_fn(move || {
        let (parameter, after) = split_at_byte(rest?, b'&');
        rest = after;
        Some(parameter)
    })
}

/// The name and the value of a parameter that has both.
fn name_and_value(parameter: &str) -> Option<(&str, &str)> {
    let (name, value) = split_at_byte(parameter, b'=');
    Some((name, value?))
}

/// What is before and after an ASCII character.
fn split_at_byte(text: &str, byte: u8) -> (&str, Option<&str>) {
    match memchr(byte, text.as_bytes()) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// A decoded value. Most have no percent sign.
fn decoded(value: &str) -> Cow<'_, str> {
    match memchr(b'%', value.as_bytes()) {
        Some(_) => percent_decode_str(value).decode_utf8_lossy(),
        None => Cow::Borrowed(value),
    }
}

/// The query without parameters whose decoded name is `access_token`.
pub(super) fn without_token(query: &str) -> Cow<'_, str> {
    if !parameters(query).any(is_token_param) {
        return Cow::Borrowed(query);
    }
    let mut kept = parameters(query).filter(|parameter| !is_token_param(parameter));
    let Some(first) = kept.next() else { return Cow::Borrowed("") };
    let Some(second) = kept.next() else { return Cow::Borrowed(first) };
    let mut result = String::with_capacity(query.len());
    result.push_str(first);
    for parameter in iter::once(second).chain(kept) {
        result.push('&');
        result.push_str(parameter);
    }
    Cow::Owned(result)
}

/// Parts of a target with the token, to concatenate.
pub fn with_token<'a>(path: &'a str, query: &'a str, token: &'a str) -> [&'a str; 5] {
    with_token_in(path, query, APPENDED_PARAM, token)
}

/// The same with the token in another parameter: `appended` is `&NAME=`.
pub(super) fn with_token_in<'a>(
    path: &'a str,
    query: &'a str,
    appended: &'static str,
    token: &'a str,
) -> [&'a str; 5] {
    let separator = if query.is_empty() || query.ends_with('&') { &appended[1..] } else { appended };
    [path, "?", query, separator, token]
}

/// Parts of an unchanged target, to concatenate.
pub fn unchanged_target<'a>(path: &'a str, query: Option<&'a str>) -> [&'a str; 3] {
    [path, query.map_or("", |_| "?"), query.unwrap_or_default()]
}

/// Decoded values of all `access_token` parameters, without empty ones.
pub(super) fn token_values(query: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let parameters = parameters(query).filter(|parameter| is_token_param(parameter));
    let values = parameters.filter_map(name_and_value).map(|(_, value)| value);
    values.filter(|value| !value.is_empty()).map(decoded)
}

/// Decoded and trimmed values of all parameters.
pub(super) fn param_values(query: &str) -> impl Iterator<Item = Zeroizing<String>> {
    let values = parameters(query).filter_map(name_and_value).map(|(_, value)| value);
    values.map(|value| Zeroizing::new(decoded(value).trim().to_owned()))
}

/// The decoded value of a parameter; `None` if it is missing, empty or not UTF-8. `+` is not decoded: keys and secrets contain no
/// spaces, and many programs send `+` unencoded.
pub(super) fn param_value(query: &str, name: &str) -> Option<Zeroizing<String>> {
    let mut values =
        parameters(query).filter(|parameter| is_named(parameter, name)).filter_map(name_and_value);
    let value = percent_decode_str(values.next()?.1).decode_utf8().ok()?.into_owned();
    Some(Zeroizing::new(value)).filter(|value| !value.is_empty())
}

/// Whether the decoded name of a parameter is `access_token`.
pub(super) fn is_token_param(parameter: &str) -> bool {
    is_named(parameter, TOKEN_PARAM)
}

/// Whether the decoded name of a parameter is that of a suite's or a provider's token.
pub(super) fn is_provider_token_param(parameter: &str) -> bool {
    [ProviderToken::Suite, ProviderToken::Provider].iter().any(|token| is_named(parameter, token.param()))
}

/// Whether the decoded name of a parameter is this one.
pub(super) fn is_named(parameter: &str, wanted: &str) -> bool {
    if let Some(rest) = parameter.strip_prefix(wanted) {
        return rest.is_empty() || rest.starts_with('=');
    }
    let (name, _) = split_at_byte(parameter, b'=');
    name.contains('%') && percent_decode_str(name).eq(wanted.bytes())
}

/// The query without parameters of this name, and without the passes in the parameters that carry tokens.
pub(super) fn without_param_and_passes(query: &str, name: &str) -> String {
    let is_kept = |parameter: &&str| {
        let carries_token = is_token_param(parameter) || is_provider_token_param(parameter);
        let has_pass = || param_values(parameter).any(|value| has_pass_prefix(&value));
        !(is_named(parameter, name) || carries_token && has_pass())
    };
    parameters(query).filter(is_kept).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn with_token_replaces_only_the_token() {
        for (given, expected) in [
            ("", "?access_token=T"),
            ("a=1", "?a=1&access_token=T"),
            ("access_token=x&a=1", "?a=1&access_token=T"),
            ("a=1&access_token=x", "?a=1&access_token=T"),
            ("a=1&access_token=x&b=%20+2", "?a=1&b=%20+2&access_token=T"),
            ("%61ccess_token=x&access%5Ftoken&a", "?a&access_token=T"),
            ("access_token=1&access_token=2", "?access_token=T"),
            ("&a=1", "?&a=1&access_token=T"),
            ("a=1&&b=2", "?a=1&&b=2&access_token=T"),
            ("a=1&", "?a=1&access_token=T"),
            ("my_access_token=1&access_tokens=2", "?my_access_token=1&access_tokens=2&access_token=T"),
            ("a=access_token=1", "?a=access_token=1&access_token=T"),
            ("a=%61ccess_token", "?a=%61ccess_token&access_token=T"),
            ("access_token", "?access_token=T"),
            ("access%5ftoken=%&x=%", "?x=%&access_token=T"),
        ] {
            assert_eq!(with_token("", &without_token(given), "T").concat(), expected, "{given}");
        }
    }

    proptest! {
        #[test]
        fn with_token_agrees_with_a_full_parser(
            parts in prop::collection::vec("(access_token|access%5ftoken|%61ccess_token|acc|)(=)?[a-z%=]{0,5}", 0..8)
        ) {
            let query = parts.join("&");
            let target = with_token("/p", &without_token(&query), "T").concat();
            let sent = target.strip_prefix("/p?").unwrap_or_default();
            let names = |text: &str| -> Vec<(String, String)> {
                text.split('&').filter(|part| !part.is_empty()).map(|part| {
                    let (name, value) = part.split_once('=').unwrap_or((part, ""));
                    (percent_decode_str(name).decode_utf8_lossy().into_owned(), value.to_owned())
                }).collect()
            };
            let mut expected: Vec<_> = names(&query).into_iter().filter(|(name, _)| name != TOKEN_PARAM).collect();
            expected.push((TOKEN_PARAM.into(), "T".into()));
            prop_assert_eq!(names(sent), expected);
        }
    }
}
