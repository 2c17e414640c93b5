//! The upstream query: the received bytes without any `access_token`, plus the agent's token at the end. Pure
//! functions: no I/O, no shared state.

use std::{borrow::Cow, sync::LazyLock};

use memchr::{memchr, memmem::Finder};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

/// Name of the token parameter.
const TOKEN_PARAM: &str = "access_token";

static TOKEN_PARAM_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(TOKEN_PARAM));

/// Whether a query may contain a token: it has a percent sign, or the name occurs.
pub(super) fn may_contain_token(query: &str) -> bool {
    memchr(b'%', query.as_bytes()).is_some()
        || (query.len() >= TOKEN_PARAM.len() && TOKEN_PARAM_FINDER.find(query.as_bytes()).is_some())
}

/// The query without parameters whose decoded name is `access_token`.
pub(super) fn without_token(query: &str) -> Cow<'_, str> {
    if !query.split('&').any(is_token_param) {
        return Cow::Borrowed(query);
    }
    let mut result = String::with_capacity(query.len());
    for (nth, parameter) in query.split('&').filter(|parameter| !is_token_param(parameter)).enumerate() {
        if nth > 0 {
            result.push('&');
        }
        result.push_str(parameter);
    }
    Cow::Owned(result)
}

/// Parts of a target with the token, to concatenate.
pub(super) fn with_token<'a>(path: &'a str, query: &'a str, token: &'a str) -> [&'a str; 5] {
    let separator = if query.is_empty() || query.ends_with('&') { "access_token=" } else { "&access_token=" };
    [path, "?", query, separator, token]
}

/// Parts of an unchanged target, to concatenate.
pub(super) fn unchanged_target<'a>(path: &'a str, query: Option<&'a str>) -> [&'a str; 3] {
    [path, query.map_or("", |_| "?"), query.unwrap_or_default()]
}

/// Decoded values of all `access_token` parameters, without empty ones.
pub(super) fn token_values(query: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let parameters = query.split('&').filter(|parameter| is_token_param(parameter));
    let values = parameters.filter_map(|parameter| parameter.split_once('=')).map(|(_, value)| value);
    values.filter(|value| !value.is_empty()).map(|value| percent_decode_str(value).decode_utf8_lossy())
}

/// Decoded and trimmed values of all parameters.
pub(super) fn param_values(query: &str) -> impl Iterator<Item = Zeroizing<String>> {
    let values = query.split('&').filter_map(|parameter| parameter.split_once('=')).map(|(_, value)| value);
    values.map(|value| Zeroizing::new(percent_decode_str(value).decode_utf8_lossy().trim().to_owned()))
}

/// Whether the decoded name of a parameter is `access_token`.
pub(super) fn is_token_param(parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or(parameter);
    name == TOKEN_PARAM || (name.contains('%') && percent_decode_str(name).eq(TOKEN_PARAM.bytes()))
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
