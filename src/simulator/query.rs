//! Query strings: parsing, and display without secrets.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// A raw query; names and values are decoded on access.
#[derive(Clone, Copy)]
pub(super) struct Query<'a>(pub(super) &'a str);

impl<'a> Query<'a> {
    /// The first value of this decoded name; empty for a name without `=`.
    pub(super) fn value(self, name: &str) -> Option<String> {
        self.pairs().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The first value of this decoded name that is not empty.
    pub(super) fn non_empty(self, name: &str) -> Option<String> {
        self.value(name).filter(|value| !value.is_empty())
    }

    /// The first value of this decoded name, if it is a number.
    pub(super) fn number(self, name: &str) -> Option<u64> {
        self.value(name)?.parse().ok()
    }

    /// All names and values, decoded.
    pub(super) fn pairs(self) -> impl Iterator<Item = (String, String)> + use<'a> {
        self.0.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
    }

    /// The query, unchanged except for the values that `replacement` (decoded name, decoded value) replaces.
    pub(super) fn with_values_replaced(self, replacement: impl Fn(&str, &str) -> Option<String>) -> String {
        let replace = |pair: &'a str| -> Cow<'a, str> {
            let Some((name, value)) = pair.split_once('=') else { return pair.into() };
            match replacement(&decode(name), &decode(value)) {
                Some(replaced) => format!("{name}={replaced}").into(),
                None => pair.into(),
            }
        };
        self.0.split('&').map(replace).collect::<Vec<_>>().join("&")
    }

    /// The query with the values of `access_token` emptied.
    pub(super) fn without_tokens(self) -> String {
        self.with_values_replaced(|name, _| (name == "access_token").then(String::new))
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}
