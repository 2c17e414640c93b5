//! What a mistyped word was probably meant to be.

/// `did you mean "listen"? `, or nothing where no candidate is close enough.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    closest(word, candidates).map(|near| format!("did you mean {near:?}? ")).unwrap_or_default()
}

/// The closest of `candidates`, if a third of the word's letters or fewer differ.
fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = normalize(word);
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &normalize(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Case and the kind of dash are no difference worth counting. Bounded, for the distance is quadratic.
fn normalize(word: &str) -> String {
    word.chars().take(80).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn closest_finds_likely_key() {
        let keys = ["listen", "header_timeout", "idle_timeout", "open"];
        for (word, meant) in [
            ("lisen", Some("listen")),
            ("LISTEN", Some("listen")),
            ("idle-timeout", Some("idle_timeout")),
            ("header_timeuot", Some("header_timeout")),
            ("opne", Some("open")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(closest(word, keys), meant, "{word}");
        }
    }
}
