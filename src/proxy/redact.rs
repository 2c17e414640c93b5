//! Takes what is secret out of a text: what is known to be a secret, wherever it stands and in whatever guise, and what has
//! the name of one. Pure.
//!
//! Where it is in doubt it takes out too much: a text that is cut off, or that only resembles JSON, must show nothing either.

mod effort;
mod guises;
mod named;
mod plain;

use std::{collections::BTreeSet, ops::Range};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use memchr::memmem;
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

pub(super) use self::named::is_secret_name;
use self::{
    effort::Effort,
    guises::{Guise, SHORTEST, Starts, guises},
    named::named,
    plain::{Plain, cut_escape},
};

/// What stands in a secret's place.
pub(super) const MASK: &str = "[masked]";
/// What every pass begins with, as it is looked for.
const MARK_OF_A_PASS: &[u8] = b"wp1+";
/// The same in hexadecimal digits.
const HEX_MARK_OF_A_PASS: &[u8] = b"7770312d";
/// So many hexadecimal digits are a key as `wecom-proxy key` makes them.
const MADE_KEY: usize = 64;
/// The shortest text that is looked at as base64, and as hexadecimal digits.
const SHORTEST_BASE64: usize = 12;
/// Most secrets that one exchange may show as its own. Who shows more is up to something.
const MAX_OWN: usize = 64;
/// Costs in nanoseconds: to see that a secret is in none of the texts, to look a word up among the keys, to take a byte of
/// text to pieces, to prepare a search, to decode a byte of base64.
const SECRET_COST: usize = 150;
const KEY_COST: usize = 250;
const BYTE_COST: usize = 25;
const SEARCH_COST: usize = 60;
const DECODE_COST: usize = 10;
/// base64 as it is met: of either alphabet, with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What is secret in one exchange, to be taken out of each of its texts. It has no `Debug`: it holds what it is looking for.
pub(super) struct Secrets<'a> {
    guises: Vec<Guise>,
    is_key: &'a dyn Fn(&str) -> bool,
    effort: Effort,
}

impl<'a> Secrets<'a> {
    /// Looks for secrets in `texts`. `own` are those that are known to belong to this exchange. `others` tells any number
    /// more, of which most will not be there. `is_key` knows further ones when it sees them.
    pub(super) fn among(
        texts: &[&str],
        own: &[&str],
        others: impl FnOnce(&mut dyn FnMut(&str)),
        is_key: &'a dyn Fn(&str) -> bool,
    ) -> Self {
        let (mut starts, effort) = (Starts::default(), Effort::default());
        for level in texts.iter().flat_map(|text| Plain::levels(text)) {
            if !effort.spend(level.bytes.len() * BYTE_COST) {
                break;
            }
            starts.add(&level);
            for word in words(&level.bytes).into_iter().map(|word| &level.bytes[word]) {
                // What is encoded inside of base64 shows no beginning that is looked for.
                if let Some(text) = text_in_base64(word)
                    && effort.spend(word.len() * DECODE_COST)
                {
                    Plain::levels(&text).iter().for_each(|level| starts.add(level));
                }
            }
        }
        let own: BTreeSet<_> = own.iter().collect();
        if own.len() > MAX_OWN {
            effort.give_up();
        }
        let mut found: Vec<_> = own.iter().take(MAX_OWN).flat_map(|own| guises(own.as_bytes())).collect();
        others(&mut |secret| {
            if effort.spend(SECRET_COST) && starts.may_hold(secret) {
                found.extend(guises(secret.as_bytes()));
            }
        });
        Self { guises: found, is_key, effort }
    }

    /// Whether looking was given up because it took too long. Nothing that was redacted may be shown then.
    pub(super) fn gave_up(&self) -> bool {
        self.effort.is_spent()
    }

    /// Takes secrets out of a text. Nothing behind `most` bytes is shown; so that a secret is seen that begins before and
    /// ends behind, the text should go on.
    pub(super) fn redact(&self, text: &str, most: usize) -> String {
        let mut secret = self.find(text, true);
        secret.sort_by_key(|range| range.start);
        without(text, &secret, most)
    }

    /// Where secrets are; inside of base64 too, if it is to be looked into.
    fn find(&self, text: &str, inside: bool) -> Vec<Range<usize>> {
        let (mut found, mut values) = (Vec::new(), Vec::<Range<usize>>::new());
        for level in Plain::levels(text) {
            if !self.effort.spend(level.bytes.len() * BYTE_COST) {
                break;
            }
            // Where an escape was resolved, nobody can tell any more where a quoted value ends.
            let named = named(&level.bytes, &|cost| self.effort.spend(cost));
            for value in named.into_iter().map(|part| level.origin(part)) {
                if self.effort.spend(values.len()) && !values.iter().any(|known| known.contains(&value.start))
                {
                    values.push(value);
                }
            }
            let canonical = level.canonical();
            found.extend(self.known(&canonical.bytes).into_iter().map(|part| canonical.origin(part)));
            let is_secret = |word: &[u8]| self.is_secret_word(word, inside);
            let words = words(&level.bytes).into_iter().filter(|word| is_secret(&level.bytes[word.clone()]));
            found.extend(words.chain(self.made_keys(&level.bytes)).map(|part| level.origin(part)));
        }
        found.extend(values);
        found
    }

    /// What is known to be secret, also if only its beginning is there because the text ends; and passes.
    fn known(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        // Where the text was cut off in the middle of an escape, the beginning of a secret stands before that.
        let ends = [text.len(), text.len() - cut_escape(text)];
        for Guise { text: guise, around } in &self.guises {
            let cost = SEARCH_COST + text.len() / 8 + guise.len() * 8;
            if !self.effort.spend(cost) {
                break;
            }
            let whole = memmem::find_iter(text, guise).map(|at| at..at + guise.len());
            let partly = ends.into_iter().filter_map(|end| {
                let ends_in = |length: &usize| text[..end].ends_with(&guise[..*length]);
                let length = (SHORTEST..guise.len()).rev().find(ends_in)?;
                Some(end - length..text.len())
            });
            let wider =
                |part: Range<usize>| part.start.saturating_sub(*around)..(part.end + around).min(text.len());
            found.extend(whole.chain(partly).map(wider));
        }
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        found.extend(memmem::find_iter(text, MARK_OF_A_PASS).map(|at| {
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
    fn made_keys(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for run in runs(text, |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            for at in run.start..(run.end + 1).saturating_sub(MADE_KEY).max(run.start) {
                let part = at..at + MADE_KEY;
                found.extend(self.is_key_text(&text[part.clone()]).then_some(part));
            }
        }
        found
    }

    fn is_secret_word(&self, word: &[u8], inside: bool) -> bool {
        word.len() >= SHORTEST && (self.is_key_text(word) || (inside && self.hides_a_secret(word)))
    }

    fn is_key_text(&self, text: &[u8]) -> bool {
        self.effort.spend(KEY_COST + text.len() * 4)
            && str::from_utf8(text).is_ok_and(|text| (self.is_key)(text))
    }

    /// Whether it is base64, or the hexadecimal digits, of a text that holds a secret.
    fn hides_a_secret(&self, word: &[u8]) -> bool {
        self.effort.spend(word.len() * DECODE_COST)
            && [text_in_base64(word), text_in_hex(word)]
                .into_iter()
                .flatten()
                .any(|text| !self.find(&text, false).is_empty())
    }
}

/// The text of which a word is base64; `None` where it is none.
fn text_in_base64(word: &[u8]) -> Option<Zeroizing<String>> {
    if word.len() < SHORTEST_BASE64 {
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
    if word.len() < SHORTEST_BASE64 {
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
pub(super) fn redact_query(query: &str) -> String {
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if is_secret_parameter(name) => format!("{name}={MASK}"),
        _ => parameter.to_owned(),
    });
    parameters.collect::<Vec<_>>().join("&")
}

/// The values of a query's secret parameters, decoded.
pub(super) fn secret_values(query: &str) -> impl Iterator<Item = String> {
    let parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let secret = parameters.filter(|(name, _)| is_secret_parameter(name));
    secret.map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
}

fn is_secret_parameter(name: &str) -> bool {
    let name = percent_decode_str(name).decode_utf8_lossy();
    // OAuth's code serves once, but until then for whoever has it. Elsewhere the word says nothing.
    is_secret_name(&name) || name.eq_ignore_ascii_case("code")
}

/// The text up to `most`, with a mask in place of each range.
fn without(text: &str, secret: &[Range<usize>], most: usize) -> String {
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
fn words(text: &[u8]) -> Vec<Range<usize>> {
    let is_part = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\,;&?<>(){}[]|`".contains(&byte);
    let mut found = Vec::new();
    for word in runs(text, is_part) {
        for breaks in [&b""[..], b"=:", b"=:/+", b"=:/+.%"] {
            for part in runs(&text[word.clone()], |byte| !breaks.contains(&byte)) {
                let part = word.start + part.start..word.start + part.end;
                let bare = without_signs(text, part.clone());
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
fn without_signs(text: &[u8], part: Range<usize>) -> Range<usize> {
    let is_sign = |byte: &&u8| !byte.is_ascii_alphanumeric();
    let before = text[part.clone()].iter().take_while(is_sign).count();
    let behind = text[part.start + before..part.end].iter().rev().take_while(is_sign).count();
    part.start + before..part.end - behind
}

/// The longest parts that hold nothing else.
fn runs(text: &[u8], is_part: impl Fn(u8) -> bool + Copy) -> impl Iterator<Item = Range<usize>> {
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
