//! What a mistyped word was probably meant to be.

/// `did you mean "listen"? `, or nothing where no candidate is close enough.
pub(super) fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    near(word, candidates).map(|near| format!("did you mean {near:?}? ")).unwrap_or_default()
}

/// The closest of `candidates`, if a third of the word's letters or fewer differ.
fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = plain(word);
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Case and the kind of dash are no difference worth counting. Bounded, for the distance is quadratic.
fn plain(word: &str) -> String {
    word.chars().take(80).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn finds_what_was_meant() {
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
            assert_eq!(near(word, keys), meant, "{word}");
        }
    }
}
