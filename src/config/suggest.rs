//! Suggestions for mistyped words.

use crate::{format_text, text::Text};

/// `did you mean "listen"? `, or nothing if no candidate is close enough.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Text {
    closest(word, candidates)
        .map(|found| format_text!("did you mean {found:?}? ", "是否想写 {found:?}？"))
        .unwrap_or_default()
}

/// The closest of `candidates`, if at most a third of the word's letters differ.
pub(super) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = normalize(word);
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &normalize(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Ignores case and the kind of dash. Truncates, because the distance takes quadratic time.
fn normalize(word: &str) -> String {
    word.chars().take(80).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn closest_finds_likely_key() {
        let keys = ["listen", "header_timeout", "idle_timeout", "open"];
        for (word, expected) in [
            ("lisen", Some("listen")),
            ("LISTEN", Some("listen")),
            ("idle-timeout", Some("idle_timeout")),
            ("header_timeuot", Some("header_timeout")),
            ("opne", Some("open")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(closest(word, keys), expected, "{word}");
        }
    }
}
