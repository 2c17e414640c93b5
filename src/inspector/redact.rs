//! Redacts the texts of one exchange: the secrets that can occur in it, in any encoding, the values of secret names,
//! and all words that could be a credential, so that those of other agents need not be known. Pure functions: no I/O,
//! no shared state; the cost does not depend on how many agents there are.
//!
//! In doubt it masks too much. A text is masked word by word and then searched once more as a whole: if a secret is
//! still found, all of it is masked.

mod known_secrets;
mod names;
mod unescape;

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde::de::{DeserializeOwned, IgnoredAny};
use zeroize::Zeroizing;

use self::{known_secrets::KnownSecrets, names::is_secret_name, unescape::unescape};
use crate::secret::credential_scan::may_be_credential;

/// Replacement of a secret.
pub(crate) const MASK: &str = "[masked]";
/// Maximum levels of escapes. A text with more is masked.
const MAX_DECODINGS: usize = 5;
/// Minimum length of a word that is looked up as a client's key.
const MIN_KEY_BYTES: usize = 6;

/// The secrets of one exchange, and the search for them. No `Debug`: it contains the secrets.
pub(crate) struct Redactor<'a> {
    known: KnownSecrets,
    is_key: &'a dyn Fn(&str) -> bool,
}

impl<'a> Redactor<'a> {
    /// `secrets` are those that can occur in this exchange; `None` if they are more than one client presents.
    /// `is_key` tests whether a word is a client's key.
    pub(crate) fn new<'s>(
        secrets: impl IntoIterator<Item = &'s str>,
        is_key: &'a dyn Fn(&str) -> bool,
    ) -> Option<Self> {
        Some(Self { known: KnownSecrets::new(secrets)?, is_key })
    }

    /// Redacts a text. If more of it was not captured (`truncated`), its last word is masked: the rest of it is
    /// unknown.
    pub(crate) fn redact(&self, text: &str, truncated: bool) -> String {
        if !truncated {
            return self.redact_text(text);
        }
        let mut redacted = self.redact_text(without_last_word(text));
        if !redacted.ends_with(MASK) {
            redacted.push_str(MASK);
        }
        redacted
    }

    /// Redacts a query, in which `code` is a secret name too.
    pub(crate) fn redact_query(&self, query: &str, truncated: bool) -> String {
        let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if is_secret_param(name) => format!("{name}={MASK}"),
            _ => parameter.to_owned(),
        });
        self.redact(&Zeroizing::new(parameters.collect::<Vec<_>>().join("&")), truncated)
    }

    /// Redacts the value of a header.
    pub(crate) fn redact_header(&self, name: &str, value: &str) -> String {
        if names::is_shown_header(name) { self.redact_text(value) } else { MASK.to_owned() }
    }

    fn redact_text(&self, text: &str) -> String {
        if self.known.span_words(text, is_separator) {
            return MASK.to_owned();
        }
        let mut redacted = String::with_capacity(text.len());
        if text.trim_start().starts_with(['{', '[']) {
            self.push_json(text, &mut redacted);
        } else {
            self.push_plain(text, &mut redacted);
        }
        if self.is_secret(&redacted) { MASK.to_owned() } else { redacted }
    }

    /// Appends JSON, string by string; the rest is masked from where it is no JSON or ends early.
    fn push_json(&self, text: &str, redacted: &mut String) {
        let mut rest = text;
        while let Some(at) = rest.find('"') {
            let (between, tail) = rest.split_at(at);
            let Some((string, after)) = take_json::<String>(tail).filter(|_| is_json_between(between)) else {
                return redacted.push_str(MASK);
            };
            let string = Zeroizing::new(string);
            self.push_words(between, redacted);
            match Zeroizing::new(self.redact_text(&string)) {
                shown if *shown == *string => redacted.push_str(&tail[..tail.len() - after.len()]),
                // Serializing a text does not fail.
                shown => redacted.push_str(&serde_json::to_string(&*shown).unwrap_or_default()),
            }
            rest = after;
            let value = after.trim_ascii_start();
            // A comma: a pair as a list, as some programs log headers.
            if is_secret_name(&string) && value.starts_with([':', ',']) {
                let value = value[1..].trim_ascii_start();
                redacted.push_str(&after[..after.len() - value.len()]);
                let Some((_, after)) = take_json::<IgnoredAny>(value) else { return redacted.push_str(MASK) };
                redacted.push_str(if value.starts_with("\"\"") { "\"\"" } else { "\"[masked]\"" });
                rest = after;
            }
        }
        if is_json_between(rest) { self.push_words(rest, redacted) } else { redacted.push_str(MASK) }
    }

    /// Appends a text that is no JSON: parameters of a URL or form as such, the others up to the first secret value.
    fn push_plain(&self, text: &str, redacted: &mut String) {
        let mut rest = text;
        while !rest.is_empty() {
            let (parameter, after) = rest.split_at(rest.find('&').map_or(rest.len(), |at| at + 1));
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value_end = value.len() - usize::from(value.ends_with('&'));
            let is_param_value = !value[..value_end].is_empty()
                && !value.contains(|c: char| c.is_ascii_whitespace() || "\"'".contains(c));
            if is_param_value && is_secret_param_of_url(name) {
                self.push_words(name, redacted);
                redacted.extend(["=", MASK, &value[value_end..]]);
            } else if let Some(start) = names::secret_value_start(parameter) {
                self.push_words(&parameter[..start], redacted);
                return redacted.push_str(MASK);
            } else {
                self.push_words(parameter, redacted);
            }
            rest = after;
        }
    }

    /// Appends a text, masking the words that contain a secret.
    fn push_words(&self, text: &str, redacted: &mut String) {
        for part in text.split_inclusive(is_separator) {
            let word = part.trim_end_matches(is_separator);
            // The value of a parameter is masked without its name.
            let at = word.find('=').map_or(0, |at| at + 1);
            for (half, is_first) in [(&word[..at], true), (&word[at..], false)] {
                let is_secret = !half.is_empty() && self.is_secret(half);
                redacted.push_str(if is_secret { MASK } else { half });
                if is_secret && is_first {
                    redacted.push('=');
                }
            }
            redacted.push_str(&part[word.len()..]);
        }
    }

    /// Whether a text contains a secret, however often it is escaped.
    fn is_secret(&self, text: &str) -> bool {
        let mut level = Cow::Borrowed(text.as_bytes());
        for depth in 0..=MAX_DECODINGS {
            let text = String::from_utf8_lossy(&level);
            let is_named = depth > 0 && names::secret_value_start(&text).is_some();
            if self.known.occur_in(&level) || is_named || self.has_key(&text) {
                return true;
            }
            match unescape(&level) {
                Some(mut decoded) => level = Cow::Owned(std::mem::take(&mut *decoded)),
                None => return has_opaque_word(&text),
            }
        }
        true
    }

    /// Whether a word of a text is a client's key, with or without what separates words in URLs and headers.
    fn has_key(&self, text: &str) -> bool {
        let separators = ["", "=:\\?", "=:\\?/+.%"];
        text.split(is_separator).filter(|word| word.len() >= MIN_KEY_BYTES).any(|word| {
            separators.iter().enumerate().any(|(nth, chars)| {
                let is_new = nth == 0 || word.contains(|c| chars.contains(c));
                is_new && word.split(|c| chars.contains(c)).any(|part| self.is_key_text(part))
            })
        })
    }

    fn is_key_text(&self, part: &str) -> bool {
        let trimmed = part.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_key = |text: &str| text.len() >= MIN_KEY_BYTES && (self.is_key)(text);
        is_key(part) || (trimmed.len() < part.len() && is_key(trimmed))
    }
}

/// Whether a character separates words.
fn is_separator(c: char) -> bool {
    !c.is_ascii_graphic() || "\"'`,;&<>(){}[]|".contains(c)
}

/// Whether a word of a text could be a credential: an agent's secret, a token, a key, encoded or not.
fn has_opaque_word(text: &str) -> bool {
    let is_separator = |c: char| !(c.is_ascii_alphanumeric() || "_-+~%".contains(c));
    text.split(is_separator).any(|word| may_be_credential(word.as_bytes()))
}

/// Takes a JSON value off the start of a text.
fn take_json<T: DeserializeOwned>(text: &str) -> Option<(T, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}

/// Whether a text without quotes can stand between the strings of JSON: punctuation, numbers and `true` and the like.
fn is_json_between(text: &str) -> bool {
    let mut words = text.split(|c: char| c.is_ascii_whitespace() || ":,{}[]".contains(c));
    words.all(|word| {
        matches!(word, "" | "true" | "false" | "null") || serde_json::from_str::<f64>(word).is_ok()
    })
}

fn without_last_word(text: &str) -> &str {
    &text[..text.rfind(is_separator).map_or(0, |at| text.ceil_char_boundary(at + 1))]
}

/// The decoded values of a query's secret parameters.
pub(crate) fn secret_param_values(query: &str) -> impl Iterator<Item = String> {
    let parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let secret = parameters.filter(|(name, _)| is_secret_param(name));
    secret.map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
}

fn is_secret_param(name: &str) -> bool {
    // An OAuth `code` is valid once, for any holder. Outside a query the name is too common to be masked.
    is_secret_param_of_url(name) || percent_decode_str(name).decode_utf8_lossy().eq_ignore_ascii_case("code")
}

/// Whether a parameter's name, perhaps behind the rest of a URL, is secret.
fn is_secret_param_of_url(name: &str) -> bool {
    let name = percent_decode_str(name).decode_utf8_lossy();
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    is_secret_name(name.rsplit(|c| !is_part(c)).next().unwrap_or_default())
}

#[cfg(test)]
mod tests;
