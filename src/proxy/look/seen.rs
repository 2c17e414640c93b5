//! What was seen of one exchange, raw: text of a bounded size, wiped when it goes, that only a redacted copy is shown of.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use super::super::redact::{MASK, Secrets, is_secret_name, redact_query, secret_values};
use crate::{
    directory::Directory,
    recent::{Detail, Message, Try},
    secret::{Masked, wipe, wipe_text},
};

/// Most bytes of a body that are shown.
pub(super) const MAX_BODY: usize = 4 * 1024;
/// So much more of a body or of a query is searched, for a secret that lies across the end.
pub(super) const BEYOND: usize = 1024;
/// Most bytes that are shown of all header lines of a message, and of a query.
const MAX_HEAD: usize = 8 * 1024;
/// Shortest credential of a caller that is searched for everywhere.
const MIN_SHOWN: usize = 6;

/// One exchange. It has no `Debug`: it holds credentials.
///
/// At most 54 KiB of text are searched: the query, the lines and bodies of request and response, and those of the response
/// that was not passed on. Each is bounded where it is taken.
pub(super) struct Seen {
    pub(super) directory: Arc<Directory>,
    /// All of it, since any secret in it may stand elsewhere too.
    pub(super) query: String,
    pub(super) request_lines: Lines,
    pub(super) request_body: Excerpt,
    pub(super) answer_lines: Lines,
    pub(super) answer_body: Excerpt,
    pub(super) waits: Vec<(Duration, Duration)>,
    pub(super) tries: Vec<Sent>,
    /// What the caller's `Authorization` and `X-Api-Key` say.
    pub(super) shown: Vec<Masked>,
    /// The tokens that it was sent with.
    pub(super) tokens: Vec<Masked>,
}

/// One try, and how its answer began.
pub(super) struct Sent {
    pub(super) facts: Try,
    pub(super) lines: Lines,
    pub(super) body: Excerpt,
}

/// The header lines of a message, as far as they are shown.
#[derive(Default)]
pub(super) struct Lines(Vec<(String, String)>);

impl Lines {
    /// The first ones of a message, up to the one that is too long to be shown.
    pub(super) fn new<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut room = MAX_HEAD;
        let shown = lines.take_while(|(name, value)| {
            room = room.saturating_sub(name.len() + value.len());
            room > 0
        });
        Self(shown.map(|(name, value)| (text_of(name), text_of(value))).collect())
    }

    fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        for (name, value) in &mut self.0 {
            wipe_text(name);
            wipe_text(value);
        }
    }
}

/// The beginning of a body.
#[derive(Default)]
pub(super) struct Excerpt {
    bytes: Vec<u8>,
    cut: bool,
}

impl Drop for Excerpt {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
    }
}

impl Excerpt {
    pub(super) fn push(&mut self, piece: &[u8]) {
        if self.bytes.capacity() == 0 {
            // At once: memory that it outgrows would not be wiped.
            self.bytes.reserve_exact(MAX_BODY + BEYOND);
        }
        let room = (MAX_BODY + BEYOND).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        self.cut |= piece.len() > room;
    }

    /// What of it is text, and whether something else follows.
    fn text(&self) -> (&str, bool) {
        let (text, binary) = match str::from_utf8(&self.bytes) {
            Ok(text) => (text, false),
            Err(error) => {
                let valid = str::from_utf8(&self.bytes[..error.valid_up_to()]).unwrap_or_default();
                (valid, error.error_len().is_some() || !self.cut)
            }
        };
        let is_odd = |it: char| it.is_control() && !matches!(it, '\t' | '\r' | '\n');
        text.find(is_odd).map_or((text, binary), |at| (&text[..at], true))
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        wipe_text(&mut self.query);
    }
}

impl Seen {
    /// About how much memory it takes.
    pub(super) fn size(&self) -> usize {
        let credentials = self.shown.iter().chain(&self.tokens).map(|it| it.expose().len()).sum::<usize>();
        let messages = [(&self.request_lines, &self.request_body), (&self.answer_lines, &self.answer_body)];
        let tried = self.tries.iter().map(|sent| (&sent.lines, &sent.body));
        let texts = messages.into_iter().chain(tried);
        let texts = texts.map(|(lines, body)| lines.size() + body.bytes.capacity()).sum::<usize>();
        size_of::<Self>() + self.query.len() + credentials + texts
    }

    /// What was seen, without anything secret; `None` where it would take too long to be sure.
    pub(super) fn redacted(self) -> Option<Detail> {
        let shown = self.credentials();
        let own: Vec<_> = shown.iter().chain(&self.tokens).map(Masked::expose).collect();
        let is_key = |word: &str| self.directory.client(word).is_some();
        let secrets = Secrets::among(&self.texts(), &own, |tell| self.directory.each_secret(tell), &is_key);
        let tries = self.tries.iter().enumerate().map(|(nth, sent)| {
            let refused = (nth < self.passed_on()).then(|| message(&secrets, &sent.lines, &sent.body));
            Try { refused, ..sent.facts.clone() }
        });
        let detail = Detail {
            query: secrets.redact(&Zeroizing::new(redact_query(self.query())), MAX_HEAD),
            request: message(&secrets, &self.request_lines, &self.request_body),
            answer: message(&secrets, &self.answer_lines, &self.answer_body),
            tries: tries.collect(),
            waits: self.waits.clone(),
        };
        (!secrets.gave_up()).then_some(detail)
    }

    /// As much of the query as is searched.
    fn query(&self) -> &str {
        &self.query[..self.query.floor_char_boundary(MAX_HEAD + BEYOND)]
    }

    /// The number of the try whose answer the caller got.
    fn passed_on(&self) -> usize {
        self.tries.len().saturating_sub(1)
    }

    /// All that may be shown.
    fn texts(&self) -> Vec<&str> {
        let tried = self.tries.iter().take(self.passed_on()).map(|sent| (&sent.lines, &sent.body));
        let messages = [(&self.request_lines, &self.request_body), (&self.answer_lines, &self.answer_body)];
        let mut texts = vec![self.query()];
        for (lines, body) in messages.into_iter().chain(tried) {
            texts.extend(lines.0.iter().flat_map(|(name, value)| [&**name, value]));
            texts.push(body.text().0);
        }
        texts
    }

    /// What the caller shows of itself, whether it was right or not: keys, passes and the like, as they are and as they were
    /// written.
    fn credentials(&self) -> Vec<Masked> {
        let mut shown = Vec::new();
        for value in &self.shown {
            let value = value.expose().trim();
            let bare = value.split_once(' ').map_or(value, |(_, rest)| rest.trim());
            let pair = BASE64_STANDARD.decode(bare).ok().and_then(|pair| String::from_utf8(pair).ok());
            let pair = pair.map(Zeroizing::new);
            let password =
                pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
            shown.extend(password.map(Masked::new));
            shown.push(Masked::new(bare));
        }
        shown.extend(secret_values(&self.query).map(Masked::new));
        // What is shorter is part of too much else; it is masked where it stood.
        shown.retain(|shown| shown.expose().len() >= MIN_SHOWN);
        shown
    }
}

/// A message as it may be shown.
fn message(secrets: &Secrets<'_>, lines: &Lines, body: &Excerpt) -> Message {
    let shown = lines.0.iter().map(|(name, value)| {
        let value = if is_secret_name(name) { MASK.to_owned() } else { secrets.redact(value, MAX_HEAD) };
        (secrets.redact(name, MAX_HEAD), value)
    });
    let (text, binary) = body.text();
    // Behind the end of a text that was cut off a secret may go on which nobody has seen.
    let most = if body.cut && !binary { text.len().saturating_sub(BEYOND).min(MAX_BODY) } else { MAX_BODY };
    Message {
        headers: shown.collect(),
        body: secrets.redact(text, most),
        cut: body.cut || text.len() > most,
        binary,
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(pieces: &[&[u8]]) -> Excerpt {
        let mut excerpt = Excerpt::default();
        pieces.iter().for_each(|piece| excerpt.push(piece));
        excerpt
    }

    #[test]
    fn a_body_is_seen_up_to_its_first_byte_that_is_no_text() {
        for (body, expected) in [
            (&b"plain\ttext\r\n"[..], ("plain\ttext\r\n", false)),
            (b"name=\"media\"\r\n\r\n\x89PNG", ("name=\"media\"\r\n\r\n", true)),
            (b"a\0b", ("a", true)),
            ("half \u{5f20}".as_bytes().split_last().expect("bytes").1, ("half ", true)),
        ] {
            assert_eq!(excerpt(&[body]).text(), expected);
        }
    }

    #[test]
    fn a_long_body_is_cut_wherever_its_pieces_end() {
        let long = "\u{5f20}".repeat(4000);
        let (one, other) = long.as_bytes().split_at(5000);
        let excerpt = excerpt(&[one, other]);
        assert!(excerpt.cut && excerpt.bytes.len() == MAX_BODY + BEYOND);
        let (text, binary) = excerpt.text();
        assert!(!binary && long.starts_with(text), "a character that was cut is no other kind of body");
    }

    #[test]
    fn lines_are_taken_up_to_one_that_does_not_fit() {
        let long = "x".repeat(MAX_HEAD);
        let lines = [("a", "1"), ("b", &long), ("c", "2")];
        let lines = Lines::new(lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
        assert_eq!(lines.0, [("a".to_owned(), "1".to_owned())]);
    }
}
