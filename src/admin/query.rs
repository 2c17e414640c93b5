//! The parameters of a query.

use percent_encoding::percent_decode_str;

/// The names and decoded values of a query, in order. A parameter without `=` has an empty value.
pub(super) fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, String)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('+', " ");
        (name, percent_decode_str(&value).decode_utf8_lossy().into_owned())
    })
}

/// The value of a parameter.
pub(super) fn parameter(query: Option<&str>, wanted: &str) -> Option<String> {
    parameters(query).find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

/// A number of items from 1 to `max`.
pub(super) fn parse_limit(value: &str, max: usize) -> Result<usize, String> {
    let limit = value.parse().ok().filter(|limit| (1..=max).contains(limit));
    limit.ok_or_else(|| format!("limit: write a number from 1 to {max}"))
}
