//! What was seen of one exchange, raw: text of a bounded size, wiped when it goes, that only a redacted copy is shown of.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::inspector::redact::{MASK, Redactor, is_secret_name, redact_query, secret_param_values};
use crate::{
    directory::Directory,
    inspector::{AttemptDetail, CapturedMessage, ExchangeDetail},
    secret::{Masked, wipe, wipe_string},
};

/// Most bytes of a body that are shown.
pub(super) const MAX_BODY_BYTES: usize = 4 * 1024;
/// So much more of a body or of a query is searched, for a secret that lies across the end.
pub(super) const OVERREAD_BYTES: usize = 1024;
/// Most bytes that are shown of all header lines of a message, and of a query.
const MAX_HEADER_BYTES: usize = 8 * 1024;
/// Shortest credential of a caller that is searched for everywhere.
const MIN_CREDENTIAL_BYTES: usize = 6;

/// One exchange. It has no `Debug`: it holds credentials.
///
/// At most 54 KiB of text are searched: the query, the lines and bodies of request and response, and those of the response
/// that was not passed on. Each is bounded where it is taken.
pub(super) struct RawExchange {
    pub(super) directory: Arc<Directory>,
    /// All of it, since any secret in it may stand elsewhere too.
    pub(super) query: String,
    pub(super) request_headers: RawHeaders,
    pub(super) request_body: BodyExcerpt,
    pub(super) response_headers: RawHeaders,
    pub(super) response_body: BodyExcerpt,
    pub(super) token_waits: Vec<(Duration, Duration)>,
    pub(super) attempts: Vec<RawAttempt>,
    /// What the caller's `Authorization` and `X-Api-Key` say.
    pub(super) credentials: Vec<Masked>,
    /// The tokens that it was sent with.
    pub(super) tokens: Vec<Masked>,
}

/// One try, and how its answer began.
pub(super) struct RawAttempt {
    pub(super) summary: AttemptDetail,
    pub(super) headers: RawHeaders,
    pub(super) body: BodyExcerpt,
}

/// The header lines of a message, as far as they are shown.
#[derive(Default)]
pub(super) struct RawHeaders(Vec<(String, String)>);

impl RawHeaders {
    /// The first ones of a message, up to the one that is too long to be shown.
    pub(super) fn new<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut room = MAX_HEADER_BYTES;
        let shown = lines.take_while(|(name, value)| {
            room = room.saturating_sub(name.len() + value.len());
            room > 0
        });
        Self(shown.map(|(name, value)| (lossy_text(name), lossy_text(value))).collect())
    }

    fn text_bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl Drop for RawHeaders {
    fn drop(&mut self) {
        for (name, value) in &mut self.0 {
            wipe_string(name);
            wipe_string(value);
        }
    }
}

/// The beginning of a body.
#[derive(Default)]
pub(super) struct BodyExcerpt {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Drop for BodyExcerpt {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
    }
}

impl BodyExcerpt {
    pub(super) fn push(&mut self, piece: &[u8]) {
        if self.bytes.capacity() == 0 {
            // At once: memory that it outgrows would not be wiped.
            self.bytes.reserve_exact(MAX_BODY_BYTES + OVERREAD_BYTES);
        }
        let room = (MAX_BODY_BYTES + OVERREAD_BYTES).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        self.truncated |= piece.len() > room;
    }

    /// What of it is text, and whether something else follows.
    fn text(&self) -> (&str, bool) {
        let (text, binary) = match str::from_utf8(&self.bytes) {
            Ok(text) => (text, false),
            Err(error) => {
                let valid = str::from_utf8(&self.bytes[..error.valid_up_to()]).unwrap_or_default();
                (valid, error.error_len().is_some() || !self.truncated)
            }
        };
        let is_odd = |it: char| it.is_control() && !matches!(it, '\t' | '\r' | '\n');
        text.find(is_odd).map_or((text, binary), |at| (&text[..at], true))
    }
}

impl Drop for RawExchange {
    fn drop(&mut self) {
        wipe_string(&mut self.query);
    }
}

impl RawExchange {
    /// About how much memory it takes.
    pub(super) fn memory_bytes(&self) -> usize {
        let credentials =
            self.credentials.iter().chain(&self.tokens).map(|it| it.expose().len()).sum::<usize>();
        let messages =
            [(&self.request_headers, &self.request_body), (&self.response_headers, &self.response_body)];
        let tried = self.attempts.iter().map(|sent| (&sent.headers, &sent.body));
        let texts = messages.into_iter().chain(tried);
        let texts = texts.map(|(lines, body)| lines.text_bytes() + body.bytes.capacity()).sum::<usize>();
        size_of::<Self>() + self.query.len() + credentials + texts
    }

    /// What was seen, without anything secret; `None` where it would take too long to be sure.
    pub(super) fn redact(self) -> Option<ExchangeDetail> {
        let shown = self.decoded_credentials();
        let own: Vec<_> = shown.iter().chain(&self.tokens).map(Masked::expose).collect();
        let is_key = |word: &str| self.directory.client_by_key(word).is_some();
        let secrets =
            Redactor::new(&self.searched_texts(), &own, |tell| self.directory.for_each_secret(tell), &is_key);
        let tries = self.attempts.iter().enumerate().map(|(nth, sent)| {
            let refused =
                (nth < self.forwarded_index()).then(|| redact_message(&secrets, &sent.headers, &sent.body));
            AttemptDetail { refused_response: refused, ..sent.summary.clone() }
        });
        let detail = ExchangeDetail {
            query: secrets.redact(&Zeroizing::new(redact_query(self.query_prefix())), MAX_HEADER_BYTES),
            request: redact_message(&secrets, &self.request_headers, &self.request_body),
            response: redact_message(&secrets, &self.response_headers, &self.response_body),
            attempts: tries.collect(),
            token_waits: self.token_waits.clone(),
        };
        (!secrets.is_budget_exhausted()).then_some(detail)
    }

    /// As much of the query as is searched.
    fn query_prefix(&self) -> &str {
        &self.query[..self.query.floor_char_boundary(MAX_HEADER_BYTES + OVERREAD_BYTES)]
    }

    /// The number of the try whose answer the caller got.
    fn forwarded_index(&self) -> usize {
        self.attempts.len().saturating_sub(1)
    }

    /// All that may be shown.
    fn searched_texts(&self) -> Vec<&str> {
        let tried = self.attempts.iter().take(self.forwarded_index()).map(|sent| (&sent.headers, &sent.body));
        let messages =
            [(&self.request_headers, &self.request_body), (&self.response_headers, &self.response_body)];
        let mut texts = vec![self.query_prefix()];
        for (lines, body) in messages.into_iter().chain(tried) {
            texts.extend(lines.0.iter().flat_map(|(name, value)| [&**name, value]));
            texts.push(body.text().0);
        }
        texts
    }

    /// What the caller shows of itself, whether it was right or not: keys, passes and the like, as they are and as they were
    /// written.
    fn decoded_credentials(&self) -> Vec<Masked> {
        let mut shown = Vec::new();
        for value in &self.credentials {
            let value = value.expose().trim();
            let bare = value.split_once(' ').map_or(value, |(_, rest)| rest.trim());
            let pair = BASE64_STANDARD.decode(bare).ok().and_then(|pair| String::from_utf8(pair).ok());
            let pair = pair.map(Zeroizing::new);
            let password =
                pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
            shown.extend(password.map(Masked::new));
            shown.push(Masked::new(bare));
        }
        shown.extend(secret_param_values(&self.query).map(Masked::new));
        // What is shorter is part of too much else; it is masked where it stood.
        shown.retain(|shown| shown.expose().len() >= MIN_CREDENTIAL_BYTES);
        shown
    }
}

/// A message as it may be shown.
fn redact_message(secrets: &Redactor<'_>, lines: &RawHeaders, body: &BodyExcerpt) -> CapturedMessage {
    let shown = lines.0.iter().map(|(name, value)| {
        let value =
            if is_secret_name(name) { MASK.to_owned() } else { secrets.redact(value, MAX_HEADER_BYTES) };
        (secrets.redact(name, MAX_HEADER_BYTES), value)
    });
    let (text, binary) = body.text();
    // Behind the end of a text that was cut off a secret may go on which nobody has seen.
    let most = if body.truncated && !binary {
        text.len().saturating_sub(OVERREAD_BYTES).min(MAX_BODY_BYTES)
    } else {
        MAX_BODY_BYTES
    };
    CapturedMessage {
        headers: shown.collect(),
        body: secrets.redact(text, most),
        truncated: body.truncated || text.len() > most,
        binary,
    }
}

fn lossy_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(pieces: &[&[u8]]) -> BodyExcerpt {
        let mut excerpt = BodyExcerpt::default();
        pieces.iter().for_each(|piece| excerpt.push(piece));
        excerpt
    }

    #[test]
    fn excerpt_stops_at_first_non_text_byte() {
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
    fn long_body_is_truncated_at_any_chunk_boundary() {
        let long = "\u{5f20}".repeat(4000);
        let (one, other) = long.as_bytes().split_at(5000);
        let excerpt = excerpt(&[one, other]);
        assert!(excerpt.truncated && excerpt.bytes.len() == MAX_BODY_BYTES + OVERREAD_BYTES);
        let (text, binary) = excerpt.text();
        assert!(!binary && long.starts_with(text), "a character that was cut is no other kind of body");
    }

    #[test]
    fn headers_stop_at_first_that_does_not_fit() {
        let long = "x".repeat(MAX_HEADER_BYTES);
        let lines = [("a", "1"), ("b", &long), ("c", "2")];
        let lines = RawHeaders::new(lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
        assert_eq!(lines.0, [("a".to_owned(), "1".to_owned())]);
    }
}
