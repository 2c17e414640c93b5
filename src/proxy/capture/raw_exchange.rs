//! The raw capture of an exchange: bounded text, wiped on drop, shown only as a redacted copy.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::inspector::redact::{MASK, Redactor, is_secret_name, redact_query, secret_param_values};
use crate::{
    directory::Directory,
    inspector::{AttemptDetail, CapturedMessage, ExchangeDetail},
    secret::{Masked, wipe, wipe_string},
};

/// Maximum bytes shown of a body.
pub(super) const MAX_BODY_BYTES: usize = 4 * 1024;
/// Bytes captured beyond the limit of a body or query, to find a secret across the limit.
pub(super) const OVERREAD_BYTES: usize = 1024;
/// Maximum bytes shown of a message's headers, and of a query.
const MAX_HEADER_BYTES: usize = 8 * 1024;
/// Minimum length of a client credential that is searched for everywhere.
const MIN_CREDENTIAL_BYTES: usize = 6;

/// The raw capture of one exchange. No `Debug`: it contains credentials.
///
/// Redaction scans about 50 KiB at most: 9 KiB of the query, and 13 KiB each of request, response and refused response.
/// Headers and bodies are bounded when they are captured, the query when it is scanned.
pub(super) struct RawExchange {
    pub(super) directory: Arc<Directory>,
    /// The whole query: a secret in it may occur elsewhere too.
    pub(super) query: String,
    pub(super) request_headers: RawHeaders,
    pub(super) request_body: BodyExcerpt,
    pub(super) response_headers: RawHeaders,
    pub(super) response_body: BodyExcerpt,
    pub(super) token_waits: Vec<(Duration, Duration)>,
    pub(super) attempts: RawAttempts,
    /// Values of the client's `Authorization` and `X-Api-Key`.
    pub(super) credentials: Vec<Masked>,
    /// Tokens sent with the attempts.
    pub(super) tokens: Vec<Masked>,
}

/// The attempts, in order.
#[derive(Default)]
pub(super) struct RawAttempts {
    list: Vec<RawAttempt>,
    /// Number of attempts, from the first one on, whose response was not forwarded.
    unforwarded: usize,
}

/// One attempt and the start of its response.
pub(super) struct RawAttempt {
    pub(super) detail: AttemptDetail,
    pub(super) headers: RawHeaders,
    pub(super) body: BodyExcerpt,
}

impl RawAttempts {
    /// Adds an attempt. The response of the last one is forwarded unless declared otherwise.
    pub(super) fn push(&mut self, attempt: RawAttempt) {
        self.unforwarded = self.list.len();
        self.list.push(attempt);
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut RawAttempt> {
        self.list.last_mut()
    }

    /// Declares that the first response was forwarded, because the second attempt has none.
    pub(super) fn set_first_forwarded(&mut self) {
        self.unforwarded = 0;
    }

    /// Declares that no response was forwarded, because the proxy responds with an error of its own.
    pub(super) fn set_none_forwarded(&mut self) {
        self.unforwarded = self.list.len();
    }

    /// Each attempt, and whether it has a response that was not forwarded.
    fn iter(&self) -> impl Iterator<Item = (&RawAttempt, bool)> {
        self.list.iter().enumerate().map(|(nth, attempt)| {
            (attempt, nth < self.unforwarded && attempt.detail.time_to_header.is_some())
        })
    }

    /// Headers and bodies of the responses that were not forwarded.
    fn refused_responses(&self) -> impl Iterator<Item = (&RawHeaders, &BodyExcerpt)> {
        self.iter()
            .filter(|(_, is_refused)| *is_refused)
            .map(|(attempt, _)| (&attempt.headers, &attempt.body))
    }
}

/// The headers of a message, up to the size limit.
#[derive(Default)]
pub(super) struct RawHeaders(Vec<(String, String)>);

impl RawHeaders {
    /// Takes headers until one exceeds the size limit.
    pub(super) fn new<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut remaining = MAX_HEADER_BYTES;
        let captured = headers.take_while(|(name, value)| {
            remaining = remaining.saturating_sub(name.len() + value.len());
            remaining > 0
        });
        Self(captured.map(|(name, value)| (lossy_text(name), lossy_text(value))).collect())
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

/// The start of a body.
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
    pub(super) fn push(&mut self, chunk: &[u8]) {
        if self.bytes.capacity() == 0 {
            // Allocated once: memory freed by growth would not be wiped.
            self.bytes.reserve_exact(MAX_BODY_BYTES + OVERREAD_BYTES);
        }
        let free_bytes = (MAX_BODY_BYTES + OVERREAD_BYTES).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(free_bytes)]);
        self.truncated |= chunk.len() > free_bytes;
    }

    /// The text at the start of the body, and whether binary data follows.
    fn text(&self) -> (&str, bool) {
        let (text, binary) = match str::from_utf8(&self.bytes) {
            Ok(text) => (text, false),
            Err(error) => {
                let valid = str::from_utf8(&self.bytes[..error.valid_up_to()]).unwrap_or_default();
                (valid, error.error_len().is_some() || !self.truncated)
            }
        };
        let is_binary = |c: char| c.is_control() && !matches!(c, '\t' | '\r' | '\n');
        text.find(is_binary).map_or((text, binary), |at| (&text[..at], true))
    }
}

impl Drop for RawExchange {
    fn drop(&mut self) {
        wipe_string(&mut self.query);
    }
}

impl RawExchange {
    /// Estimated memory in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let credentials =
            self.credentials.iter().chain(&self.tokens).map(|secret| secret.expose().len()).sum::<usize>();
        let messages =
            [(&self.request_headers, &self.request_body), (&self.response_headers, &self.response_body)];
        let attempts = self.attempts.iter().map(|(attempt, _)| (&attempt.headers, &attempt.body));
        let texts = messages.into_iter().chain(attempts);
        let texts = texts.map(|(headers, body)| headers.text_bytes() + body.bytes.capacity()).sum::<usize>();
        size_of::<Self>() + self.query.len() + credentials + texts
    }

    /// Redacts the capture; `None` if the work budget is exhausted.
    pub(super) fn redact(self) -> Option<ExchangeDetail> {
        let presented = self.presented_credentials();
        let exchange_secrets: Vec<_> = presented.iter().chain(&self.tokens).map(Masked::expose).collect();
        let is_key = |word: &str| self.directory.client_by_key(word).is_some();
        let redactor = Redactor::new(
            &self.searched_texts(),
            &exchange_secrets,
            |visit| self.directory.for_each_secret(visit),
            &is_key,
        );
        let attempts = self.attempts.iter().map(|(attempt, is_refused)| {
            let refused_response =
                is_refused.then(|| redact_message(&redactor, &attempt.headers, &attempt.body));
            AttemptDetail { refused_response, ..attempt.detail.clone() }
        });
        let detail = ExchangeDetail {
            query: redactor.redact(&Zeroizing::new(redact_query(self.query_prefix())), MAX_HEADER_BYTES),
            request: redact_message(&redactor, &self.request_headers, &self.request_body),
            response: redact_message(&redactor, &self.response_headers, &self.response_body),
            attempts: attempts.collect(),
            token_waits: self.token_waits.clone(),
        };
        (!redactor.is_budget_exhausted()).then_some(detail)
    }

    /// The part of the query that is searched.
    fn query_prefix(&self) -> &str {
        &self.query[..self.query.floor_char_boundary(MAX_HEADER_BYTES + OVERREAD_BYTES)]
    }

    /// All texts that may be shown.
    fn searched_texts(&self) -> Vec<&str> {
        let messages =
            [(&self.request_headers, &self.request_body), (&self.response_headers, &self.response_body)];
        let mut texts = vec![self.query_prefix()];
        for (headers, body) in messages.into_iter().chain(self.attempts.refused_responses()) {
            texts.extend(headers.0.iter().flat_map(|(name, value)| [&**name, value]));
            texts.push(body.text().0);
        }
        texts
    }

    /// Credentials presented by the client, valid or not: without scheme, the password of Basic, and secret parameters.
    fn presented_credentials(&self) -> Vec<Masked> {
        let mut credentials = Vec::new();
        for value in &self.credentials {
            let value = value.expose().trim();
            let without_scheme = value.split_once(' ').map_or(value, |(_, rest)| rest.trim());
            let pair =
                BASE64_STANDARD.decode(without_scheme).ok().and_then(|pair| String::from_utf8(pair).ok());
            let pair = pair.map(Zeroizing::new);
            let password =
                pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
            credentials.extend(password.map(Masked::new));
            credentials.push(Masked::new(without_scheme));
        }
        credentials.extend(secret_param_values(&self.query).map(Masked::new));
        // Shorter ones occur in too many other texts; they are masked in their own place.
        credentials.retain(|credential| credential.expose().len() >= MIN_CREDENTIAL_BYTES);
        credentials
    }
}

/// A redacted message.
fn redact_message(redactor: &Redactor<'_>, headers: &RawHeaders, body: &BodyExcerpt) -> CapturedMessage {
    let redacted_headers = headers.0.iter().map(|(name, value)| {
        let value =
            if is_secret_name(name) { MASK.to_owned() } else { redactor.redact(value, MAX_HEADER_BYTES) };
        (redactor.redact(name, MAX_HEADER_BYTES), value)
    });
    let (text, binary) = body.text();
    // A secret may continue beyond the end of a truncated text.
    let max_bytes = if body.truncated && !binary {
        text.len().saturating_sub(OVERREAD_BYTES).min(MAX_BODY_BYTES)
    } else {
        MAX_BODY_BYTES
    };
    CapturedMessage {
        headers: redacted_headers.collect(),
        body: redactor.redact(text, max_bytes),
        truncated: body.truncated || text.len() > max_bytes,
        binary,
    }
}

fn lossy_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(chunks: &[&[u8]]) -> BodyExcerpt {
        let mut excerpt = BodyExcerpt::default();
        chunks.iter().for_each(|chunk| excerpt.push(chunk));
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

    /// Attempts with these times to the response head, `None` without a response.
    fn attempts(times_to_header: &[Option<Duration>]) -> RawAttempts {
        let mut attempts = RawAttempts::default();
        for time_to_header in times_to_header {
            let detail = AttemptDetail {
                started_after: Duration::ZERO,
                time_to_header: *time_to_header,
                status: 0,
                errcode: None,
                refused_response: None,
            };
            attempts.push(RawAttempt {
                detail,
                headers: RawHeaders::default(),
                body: BodyExcerpt::default(),
            });
        }
        attempts
    }

    fn refused(attempts: &RawAttempts) -> Vec<bool> {
        attempts.iter().map(|(_, is_refused)| is_refused).collect()
    }

    #[test]
    fn forwarded_response_is_not_a_refused_one() {
        let response = Some(Duration::ZERO);
        assert_eq!(refused(&attempts(&[response])), [false]);
        assert_eq!(refused(&attempts(&[response, response])), [true, false]);
        let mut replay_lost = attempts(&[response, None]);
        replay_lost.set_first_forwarded();
        assert_eq!(refused(&replay_lost), [false, false]);
        assert_eq!(replay_lost.refused_responses().count(), 0);
    }

    #[test]
    fn every_response_is_refused_behind_an_error_of_the_proxy() {
        let response = Some(Duration::ZERO);
        for (times, expected) in
            [(&[response][..], &[true][..]), (&[None], &[false]), (&[response, None], &[true, false])]
        {
            let mut attempts = attempts(times);
            attempts.set_none_forwarded();
            assert_eq!(refused(&attempts), expected);
        }
    }

    #[test]
    fn headers_stop_at_first_that_does_not_fit() {
        let long = "x".repeat(MAX_HEADER_BYTES);
        let headers = [("a", "1"), ("b", &long), ("c", "2")];
        let headers =
            RawHeaders::new(headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
        assert_eq!(headers.0, [("a".to_owned(), "1".to_owned())]);
    }
}
