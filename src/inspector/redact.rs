//! Takes what is secret out of a text: what is known to be a secret, wherever it stands and in whatever guise, and what has
//! the name of one. Pure.
//!
//! Where it is in doubt it takes out too much: a text that is cut off, or that only resembles JSON, must show nothing either.

mod decoded_text;
mod encodings;
mod secret_names;
mod work_budget;

use std::{collections::BTreeSet, ops::Range};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use memchr::memmem;
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

pub(crate) use self::secret_names::is_secret_name;
use self::{
    decoded_text::{DecodedText, partial_escape_len},
    encodings::{EncodedForm, MIN_SEARCH_BYTES, PrefixSet, encodings},
    secret_names::find_named_values,
    work_budget::WorkBudget,
};

/// What stands in a secret's place.
pub(crate) const MASK: &str = "[masked]";
/// What every pass begins with, as it is looked for.
const CANONICAL_PASS_PREFIX: &[u8] = b"wp1+";
/// The same in hexadecimal digits.
const HEX_MARK_OF_A_PASS: &[u8] = b"7770312d";
/// So many hexadecimal digits are a key as `wecom-proxy key` makes them.
const GENERATED_KEY_DIGITS: usize = 64;
/// The shortest text that is looked at as base64, and as hexadecimal digits.
const MIN_BASE64_BYTES: usize = 12;
/// Most secrets that one exchange may show as its own. Who shows more is up to something.
const MAX_OWN_SECRETS: usize = 64;
/// Costs in nanoseconds: to see that a secret is in none of the texts, to look a word up among the keys, to take a byte of
/// text to pieces, to prepare a search, to decode a byte of base64.
const SECRET_COST_NANOS: usize = 150;
const KEY_COST_NANOS: usize = 250;
const BYTE_COST_NANOS: usize = 25;
const SEARCH_COST_NANOS: usize = 60;
const DECODE_COST_NANOS: usize = 10;
/// base64 as it is met: of either alphabet, with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What is secret in one exchange, to be taken out of each of its texts. It has no `Debug`: it holds what it is looking for.
pub(crate) struct Redactor<'a> {
    encodings: Vec<EncodedForm>,
    is_key: &'a dyn Fn(&str) -> bool,
    budget: WorkBudget,
}

impl<'a> Redactor<'a> {
    /// Looks for secrets in `texts`. `own` are those that are known to belong to this exchange. `others` tells any number
    /// more, of which most will not be there. `is_key` knows further ones when it sees them.
    pub(crate) fn new(
        texts: &[&str],
        own: &[&str],
        others: impl FnOnce(&mut dyn FnMut(&str)),
        is_key: &'a dyn Fn(&str) -> bool,
    ) -> Self {
        let (mut starts, budget) = (PrefixSet::default(), WorkBudget::default());
        for level in texts.iter().flat_map(|text| DecodedText::decode_levels(text)) {
            if !budget.spend(level.bytes.len() * BYTE_COST_NANOS) {
                break;
            }
            starts.insert_text(&level);
            for word in word_ranges(&level.bytes).into_iter().map(|word| &level.bytes[word]) {
                // What is encoded inside of base64 shows no beginning that is looked for.
                if let Some(text) = decode_base64_text(word)
                    && budget.spend(word.len() * DECODE_COST_NANOS)
                {
                    DecodedText::decode_levels(&text).iter().for_each(|level| starts.insert_text(level));
                }
            }
        }
        let own: BTreeSet<_> = own.iter().collect();
        if own.len() > MAX_OWN_SECRETS {
            budget.exhaust();
        }
        let mut found: Vec<_> =
            own.iter().take(MAX_OWN_SECRETS).flat_map(|own| encodings(own.as_bytes())).collect();
        others(&mut |secret| {
            if budget.spend(SECRET_COST_NANOS) && starts.may_contain(secret) {
                found.extend(encodings(secret.as_bytes()));
            }
        });
        Self { encodings: found, is_key, budget }
    }

    /// Whether looking was given up because it took too long. Nothing that was redacted may be shown then.
    pub(crate) fn is_budget_exhausted(&self) -> bool {
        self.budget.is_exhausted()
    }

    /// Takes secrets out of a text. Nothing behind `most` bytes is shown; so that a secret is seen that begins before and
    /// ends behind, the text should go on.
    pub(crate) fn redact(&self, text: &str, most: usize) -> String {
        let mut secret = self.find_secrets(text, true);
        secret.sort_by_key(|range| range.start);
        mask_ranges(text, &secret, most)
    }

    /// Where secrets are; inside of base64 too, if it is to be looked into.
    fn find_secrets(&self, text: &str, inside: bool) -> Vec<Range<usize>> {
        let (mut found, mut values) = (Vec::new(), Vec::<Range<usize>>::new());
        for level in DecodedText::decode_levels(text) {
            if !self.budget.spend(level.bytes.len() * BYTE_COST_NANOS) {
                break;
            }
            // Where an escape was resolved, nobody can tell any more where a quoted value ends.
            let named = find_named_values(&level.bytes, &|cost| self.budget.spend(cost));
            for value in named.into_iter().map(|part| level.source_range(part)) {
                if self.budget.spend(values.len()) && !values.iter().any(|known| known.contains(&value.start))
                {
                    values.push(value);
                }
            }
            let canonical = level.canonicalize();
            found.extend(
                self.find_known(&canonical.bytes).into_iter().map(|part| canonical.source_range(part)),
            );
            let is_secret = |word: &[u8]| self.is_secret_word(word, inside);
            let words =
                word_ranges(&level.bytes).into_iter().filter(|word| is_secret(&level.bytes[word.clone()]));
            found.extend(
                words.chain(self.find_generated_keys(&level.bytes)).map(|part| level.source_range(part)),
            );
        }
        found.extend(values);
        found
    }

    /// What is known to be secret, also if only its beginning is there because the text ends; and passes.
    fn find_known(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        // Where the text was cut off in the middle of an escape, the beginning of a secret stands before that.
        let ends = [text.len(), text.len() - partial_escape_len(text)];
        for EncodedForm { text: guise, margin_bytes: around } in &self.encodings {
            let cost = SEARCH_COST_NANOS + text.len() / 8 + guise.len() * 8;
            if !self.budget.spend(cost) {
                break;
            }
            let whole = memmem::find_iter(text, guise).map(|at| at..at + guise.len());
            let partly = ends.into_iter().filter_map(|end| {
                let ends_in = |length: &usize| text[..end].ends_with(&guise[..*length]);
                let length = (MIN_SEARCH_BYTES..guise.len()).rev().find(ends_in)?;
                Some(end - length..text.len())
            });
            let wider =
                |part: Range<usize>| part.start.saturating_sub(*around)..(part.end + around).min(text.len());
            found.extend(whole.chain(partly).map(wider));
        }
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        found.extend(memmem::find_iter(text, CANONICAL_PASS_PREFIX).map(|at| {
            let end = at + text[at..].iter().take_while(|byte| is_digit(byte)).count();
            at..end
        }));
        found.extend(
            memmem::find_iter(text, HEX_MARK_OF_A_PASS)
                .map(|at| at..at + text[at..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count()),
        );
        found
    }

    /// Keys as the program makes them, whatever stands beside them.
    fn find_generated_keys(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for run in matching_runs(text, |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            for at in run.start..(run.end + 1).saturating_sub(GENERATED_KEY_DIGITS).max(run.start) {
                let part = at..at + GENERATED_KEY_DIGITS;
                found.extend(self.is_key_text(&text[part.clone()]).then_some(part));
            }
        }
        found
    }

    fn is_secret_word(&self, word: &[u8], inside: bool) -> bool {
        word.len() >= MIN_SEARCH_BYTES && (self.is_key_text(word) || (inside && self.decodes_to_secret(word)))
    }

    fn is_key_text(&self, text: &[u8]) -> bool {
        self.budget.spend(KEY_COST_NANOS + text.len() * 4)
            && str::from_utf8(text).is_ok_and(|text| (self.is_key)(text))
    }

    /// Whether it is base64, or the hexadecimal digits, of a text that holds a secret.
    fn decodes_to_secret(&self, word: &[u8]) -> bool {
        self.budget.spend(word.len() * DECODE_COST_NANOS)
            && [decode_base64_text(word), text_in_hex(word)]
                .into_iter()
                .flatten()
                .any(|text| !self.find_secrets(&text, false).is_empty())
    }
}

/// The text of which a word is base64; `None` where it is none.
fn decode_base64_text(word: &[u8]) -> Option<Zeroizing<String>> {
    if word.len() < MIN_BASE64_BYTES {
        return None;
    }
    let standard = |byte: &u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    };
    // A single digit behind the last group says nothing: the text was cut off there.
    let whole = &word[..word.len() - usize::from(word.len() % 4 == 1)];
    let digits: Zeroizing<Vec<_>> = Zeroizing::new(whole.iter().map(standard).collect());
    let bytes = Zeroizing::new(BASE64.decode(&*digits).ok()?);
    let text = match str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => str::from_utf8(&bytes[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    (!text.contains(char::is_control)).then(|| Zeroizing::new(text.to_owned()))
}

/// The text whose hexadecimal digits a word is; `None` where it is none.
fn text_in_hex(word: &[u8]) -> Option<Zeroizing<String>> {
    if word.len() < MIN_BASE64_BYTES {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    // A single digit behind the last pair says nothing: the text was cut off there.
    let bytes = word.chunks_exact(2).map(byte).collect::<Option<Vec<u8>>>()?;
    let text = Zeroizing::new(String::from_utf8(bytes).ok()?);
    (!text.contains(char::is_control)).then_some(text)
}

/// A query with the values of secret parameters taken out, however their names are written.
pub(crate) fn redact_query(query: &str) -> String {
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if is_secret_param(name) => format!("{name}={MASK}"),
        _ => parameter.to_owned(),
    });
    parameters.collect::<Vec<_>>().join("&")
}

/// The values of a query's secret parameters, decoded.
pub(crate) fn secret_param_values(query: &str) -> impl Iterator<Item = String> {
    let parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let secret = parameters.filter(|(name, _)| is_secret_param(name));
    secret.map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
}

fn is_secret_param(name: &str) -> bool {
    let name = percent_decode_str(name).decode_utf8_lossy();
    // OAuth's code serves once, but until then for whoever has it. Elsewhere the word says nothing.
    is_secret_name(&name) || name.eq_ignore_ascii_case("code")
}

/// The text up to `most`, with a mask in place of each range.
fn mask_ranges(text: &str, secret: &[Range<usize>], most: usize) -> String {
    let most = text.floor_char_boundary(most);
    let (mut shown, mut at) = (String::with_capacity(most), 0);
    for range in secret {
        let (start, end) = (text.floor_char_boundary(range.start), text.ceil_char_boundary(range.end));
        if start >= most {
            break;
        }
        if start >= end || end <= at {
            continue;
        }
        // What follows a mask without a gap needs none of its own.
        if start > at || at == 0 {
            shown.push_str(&text[at..start]);
            shown.push_str(MASK);
        }
        at = end;
    }
    if at < most {
        shown.push_str(&text[at..most]);
    }
    shown
}

/// What stands between white space, quotes, brackets and the like, and its parts between further signs, which a key may
/// hold or not.
fn word_ranges(text: &[u8]) -> Vec<Range<usize>> {
    let is_part = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\,;&?<>(){}[]|`".contains(&byte);
    let mut found = Vec::new();
    for word in matching_runs(text, is_part) {
        for breaks in [&b""[..], b"=:", b"=:/+", b"=:/+.%"] {
            for part in matching_runs(&text[word.clone()], |byte| !breaks.contains(&byte)) {
                let part = word.start + part.start..word.start + part.end;
                let bare = trim_punctuation(text, part.clone());
                found.extend([part, bare]);
            }
        }
    }
    // Most have none of the signs.
    found.sort_by_key(|part| (part.start, part.end));
    found.dedup();
    found
}

/// A part without the signs before and behind it, as a sentence has them.
fn trim_punctuation(text: &[u8], part: Range<usize>) -> Range<usize> {
    let is_sign = |byte: &&u8| !byte.is_ascii_alphanumeric();
    let before = text[part.clone()].iter().take_while(is_sign).count();
    let behind = text[part.start + before..part.end].iter().rev().take_while(is_sign).count();
    part.start + before..part.end - behind
}

/// The longest parts that hold nothing else.
fn matching_runs(text: &[u8], is_part: impl Fn(u8) -> bool + Copy) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].iter().position(|byte| is_part(*byte))?;
        at =
            text[start..].iter().position(|byte| !is_part(*byte)).map_or(text.len(), |length| start + length);
        Some(start..at)
    })
}

#[cfg(test)]
mod tests;
