//! Reading a query, and showing it without its secrets.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// A raw query; names and values are decoded when asked for.
#[derive(Clone, Copy)]
pub(super) struct Query<'a>(pub(super) &'a str);

impl<'a> Query<'a> {
    /// The first value with this decoded name; a name without `=` has an empty one.
    pub(super) fn value(self, name: &str) -> Option<String> {
        self.pairs().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// All names and values, decoded.
    pub(super) fn pairs(self) -> impl Iterator<Item = (String, String)> + use<'a> {
        self.0.split('&').filter(|piece| !piece.is_empty()).map(|piece| {
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            (decode(name), decode(value))
        })
    }

    /// The query byte for byte, except for values that `replacement` (decoded name, decoded value) replaces.
    pub(super) fn with_values_replaced(self, replacement: impl Fn(&str, &str) -> Option<String>) -> String {
        let piece = |piece: &'a str| -> Cow<'a, str> {
            let Some((name, value)) = piece.split_once('=') else { return piece.into() };
            match replacement(&decode(name), &decode(value)) {
                Some(shown) => format!("{name}={shown}").into(),
                None => piece.into(),
            }
        };
        self.0.split('&').map(piece).collect::<Vec<_>>().join("&")
    }

    /// The query without the values of its tokens.
    pub(super) fn without_tokens(self) -> String {
        self.with_values_replaced(|name, _| (name == "access_token").then(String::new))
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}
