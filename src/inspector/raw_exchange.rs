//! The raw capture of an exchange: bounded text, wiped on drop, shown only as a redacted copy.

use std::{sync::Arc, time::Duration};

use zeroize::Zeroizing;

use super::{
    AttemptDetail, CapturedMessage, ExchangeDetail,
    redact::{Redactor, secret_param_values},
};
use crate::{
    directory::{Agent, Directory},
    secret::Masked,
};

/// Maximum bytes shown of a body.
const MAX_BODY_BYTES: usize = 4 * 1024;
/// Maximum bytes shown of a message's headers, and of a query.
const MAX_HEADER_BYTES: usize = 8 * 1024;
/// Minimum length of a client credential that is searched for everywhere.
const MIN_CREDENTIAL_BYTES: usize = 6;

/// The raw capture of one exchange. No `Debug`: it contains credentials.
///
/// Redaction scans about 44 KiB at most: 8 KiB of the query, and 12 KiB each of request, response and refused response.
pub(crate) struct RawExchange {
    pub(crate) directory: Arc<Directory>,
    pub(crate) agent: Arc<Agent>,
    /// The whole query: a secret in it may occur elsewhere too.
    pub(crate) query: Zeroizing<String>,
    pub(crate) request: RawMessage,
    pub(crate) response: RawMessage,
    /// Waits for a token: offset from the start of the request, and duration.
    pub(crate) token_waits: Vec<(Duration, Duration)>,
    pub(crate) attempts: RawAttempts,
    /// Keys that the client presented, valid or not.
    pub(crate) credentials: Vec<Masked>,
    /// Tokens sent with the attempts.
    pub(crate) tokens: Vec<Masked>,
}

/// Headers and the start of a body.
#[derive(Default)]
pub(crate) struct RawMessage {
    pub(crate) headers: RawHeaders,
    pub(crate) body: BodyExcerpt,
}

/// The attempts with the start of their responses, in order.
#[derive(Default)]
pub(crate) struct RawAttempts {
    list: Vec<(AttemptDetail, RawMessage)>,
    /// Number of attempts, from the first one on, whose response was not forwarded.
    unforwarded: usize,
}

impl RawAttempts {
    /// Adds an attempt. The response of the last one is forwarded unless declared otherwise.
    pub(crate) fn push(&mut self, attempt: AttemptDetail) {
        self.unforwarded = self.list.len();
        self.list.push((attempt, RawMessage::default()));
    }

    pub(crate) fn last_mut(&mut self) -> Option<&mut (AttemptDetail, RawMessage)> {
        self.list.last_mut()
    }

    /// Declares that the first response was forwarded, because the second attempt has none.
    pub(crate) fn set_first_forwarded(&mut self) {
        self.unforwarded = 0;
    }

    /// Declares that no response was forwarded, because the proxy responds with an error of its own.
    pub(crate) fn set_none_forwarded(&mut self) {
        self.unforwarded = self.list.len();
    }

    /// Each attempt, and its response if there is one that was not forwarded.
    fn iter(&self) -> impl Iterator<Item = (&AttemptDetail, Option<&RawMessage>)> {
        self.list.iter().enumerate().map(|(nth, (attempt, response))| {
            let is_refused = nth < self.unforwarded && attempt.time_to_header.is_some();
            (attempt, is_refused.then_some(response))
        })
    }
}

/// The headers of a message, up to the size limit.
#[derive(Default)]
pub(crate) struct RawHeaders(Zeroizing<Vec<(String, String)>>);

impl RawHeaders {
    /// Takes headers until one exceeds the size limit.
    pub(crate) fn new<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut remaining = MAX_HEADER_BYTES;
        let captured = headers.take_while(|(name, value)| {
            remaining = remaining.saturating_sub(name.len() + value.len());
            remaining > 0
        });
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self(Zeroizing::new(captured.map(|(name, value)| (text(name), text(value))).collect()))
    }
}

/// The start of a body.
#[derive(Default)]
pub(crate) struct BodyExcerpt {
    bytes: Zeroizing<Vec<u8>>,
    truncated: bool,
    /// The body was received to its end.
    ended: bool,
}

impl BodyExcerpt {
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        if self.bytes.capacity() == 0 {
            // Allocated once: memory freed by growth would not be wiped.
            self.bytes.reserve_exact(MAX_BODY_BYTES);
        }
        let free_bytes = MAX_BODY_BYTES.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(free_bytes)]);
        self.truncated |= chunk.len() > free_bytes;
    }

    /// Records that the body was received to its end.
    pub(crate) fn set_ended(&mut self) {
        self.ended = true;
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

impl RawMessage {
    fn memory_bytes(&self) -> usize {
        let headers = self.headers.0.iter().map(|(name, value)| name.len() + value.len());
        headers.sum::<usize>() + self.body.bytes.capacity()
    }

    fn redact(&self, redactor: &Redactor<'_>) -> CapturedMessage {
        let headers = self.headers.0.iter();
        let (text, binary) = self.body.text();
        CapturedMessage {
            headers: headers
                .map(|(name, value)| (redactor.redact(name, false), redactor.redact_header(name, value)))
                .collect(),
            body: redactor.redact(text, self.body.truncated || binary),
            truncated: self.body.truncated,
            binary,
        }
    }
}

impl RawExchange {
    /// Estimated memory in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let secrets = self.credentials.iter().chain(&self.tokens).map(|secret| secret.expose().len());
        let messages = [&self.request, &self.response].into_iter();
        let messages = messages.chain(self.attempts.list.iter().map(|(_, response)| response));
        let text_bytes = secrets.chain(messages.map(RawMessage::memory_bytes)).sum::<usize>();
        size_of::<Self>() + self.query.len() + text_bytes
    }

    /// Redacts the capture; `None` if it presents too many credentials.
    pub(crate) fn redact(self) -> Option<ExchangeDetail> {
        let mut secrets = self.presented_credentials();
        self.agent.for_each_secret(&mut |secret| secrets.push(Masked::new(secret)));
        let secrets = secrets.iter().chain(&self.tokens).map(Masked::expose);
        let is_key = |word: &str| self.directory.client_by_key(word).is_some();
        let redactor = Redactor::new(secrets, &is_key)?;
        let attempts = self.attempts.iter().map(|(attempt, refused)| AttemptDetail {
            refused_response: refused.map(|response| response.redact(&redactor)),
            ..attempt.clone()
        });
        let query = &self.query[..self.query.floor_char_boundary(MAX_HEADER_BYTES)];
        Some(ExchangeDetail {
            query: redactor.redact_query(query, query.len() < self.query.len()),
            query_truncated: query.len() < self.query.len(),
            request_ended: self.request.body.ended,
            request: self.request.redact(&redactor),
            response: self.response.redact(&redactor),
            attempts: attempts.collect(),
            token_waits: self.token_waits.clone(),
        })
    }

    /// Credentials presented by the client, valid or not: its keys, and secret parameters.
    fn presented_credentials(&self) -> Vec<Masked> {
        let mut credentials = self.credentials.clone();
        credentials.extend(secret_param_values(&self.query).map(Masked::new));
        // Shorter ones occur in too many other texts; they are masked in their own place.
        credentials.retain(|credential| credential.expose().len() >= MIN_CREDENTIAL_BYTES);
        credentials
    }
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
        assert!(excerpt.truncated && excerpt.bytes.len() == MAX_BODY_BYTES);
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
            attempts.push(detail);
        }
        attempts
    }

    fn refused(attempts: &RawAttempts) -> Vec<bool> {
        attempts.iter().map(|(_, refused)| refused.is_some()).collect()
    }

    #[test]
    fn forwarded_response_is_not_a_refused_one() {
        let response = Some(Duration::ZERO);
        assert_eq!(refused(&attempts(&[response])), [false]);
        assert_eq!(refused(&attempts(&[response, response])), [true, false]);
        let mut replay_lost = attempts(&[response, None]);
        replay_lost.set_first_forwarded();
        assert_eq!(refused(&replay_lost), [false, false]);
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
        assert_eq!(*headers.0, [("a".to_owned(), "1".to_owned())]);
    }
}
