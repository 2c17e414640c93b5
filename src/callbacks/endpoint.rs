//! A receiver URL: verifies and decrypts what arrives there. No I/O.

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::{
    counters::{LastMinute, ReceiveCounts, ReceiveResult},
    status::Callers,
    target::{Target, usable_keys},
};
use crate::{
    config::{CallbackConfig, SuiteUrl},
    time::{clock, log_throttle::LogThrottle},
    wecom::callback::{
        crypto::{CallbackKeys, DecryptError, Decrypted},
        message::{Envelope, Fields, Format, ParseError, has_document_type},
    },
};

/// A receiver URL, as configured.
pub struct Endpoint {
    /// Its name in the path.
    pub name: String,
    pub(super) keys: CallbackKeys,
    pub(super) receive_ids: BTreeSet<String>,
    verify_ids: Option<BTreeSet<String>>,
    /// The suite whose URL it is, and which of the two.
    pub(super) suite: Option<(String, SuiteUrl)>,
    /// The body of the response to a message.
    pub(super) answer: Bytes,
    max_age: Duration,
    pub(super) targets: Vec<Arc<Target>>,
    /// What was received; kept over reloads.
    pub(super) received: Arc<Received>,
    refusal_log: LogThrottle,
}

/// What is known of the requests to a receiver URL.
#[derive(Default)]
pub(super) struct Received {
    pub(super) counts: ReceiveCounts,
    /// Messages that were accepted.
    pub(super) accepted_lately: LastMinute,
    pub(super) callers: Callers,
}

/// A message that was pushed and verified. No `Debug`: it contains the message.
pub struct PushedMessage {
    /// The decrypted message and its receiveid.
    pub decrypted: Decrypted,
    /// Its top-level fields.
    pub fields: Fields,
    pub(super) envelope: Envelope,
    pub(super) query: String,
    pub(super) nonce: String,
    pub(super) content_type: Option<String>,
    pub(super) body: Bytes,
}

impl PushedMessage {
    /// Event, InfoType or MsgType, the first that the message has; empty if it has none.
    pub fn event(&self) -> &str {
        EVENT_FIELDS.iter().find_map(|field| self.fields.get(field)).unwrap_or_default()
    }

    /// Whether one of Event, InfoType and MsgType is among `events`; true if that is empty.
    pub(super) fn is_among(&self, events: &BTreeSet<String>) -> bool {
        events.is_empty()
            || EVENT_FIELDS
                .iter()
                .any(|field| self.fields.get(field).is_some_and(|name| events.contains(name)))
    }

    /// How long the message is of use: codes and tokens in it expire.
    pub(super) fn lifetime(&self) -> Duration {
        const MINUTE: u64 = 60;
        let has_kf_token =
            || self.fields.get("Event") == Some("kf_msg_or_event") && self.fields.get("Token").is_some();
        Duration::from_secs(if self.fields.get("AuthCode").is_some() || has_kf_token() {
            10 * MINUTE
        } else if self.fields.get("InfoType") == Some("suite_ticket") {
            30 * MINUTE
        } else {
            24 * 60 * MINUTE
        })
    }

    /// The format of the pushed body, in which a reply is written.
    pub(super) fn format(&self) -> Format {
        self.envelope.format
    }
}

/// Lines a minute about refused requests, which forgers can cause without end.
const MAX_REFUSAL_LINES: u32 = 5;

/// The fields that name the kind of a message, in this order.
const EVENT_FIELDS: [&str; 3] = ["Event", "InfoType", "MsgType"];

impl Endpoint {
    /// Builds an endpoint. Fails if the keys cannot be used, which the configuration excludes.
    pub(super) fn new(
        config: &CallbackConfig,
        targets: Vec<Arc<Target>>,
        received: Arc<Received>,
    ) -> io::Result<Self> {
        Ok(Self {
            name: config.name.clone(),
            keys: usable_keys(&config.token, &config.aes_key)?,
            receive_ids: config.receive_ids.clone(),
            verify_ids: config.verify_ids.clone(),
            suite: config.suite.clone(),
            answer: Bytes::from(config.answer.clone()),
            max_age: config.max_age,
            targets,
            received,
            refusal_log: LogThrottle::per_minute(MAX_REFUSAL_LINES),
        })
    }

    /// Counts what became of a request.
    pub fn count(&self, result: ReceiveResult) {
        self.received.counts.count(result);
    }

    /// Counts a request that was refused, and logs why, a few times a minute.
    pub fn refuse(&self, reason: ReceiveResult) {
        self.received.counts.count(reason);
        if let Some(suppressed) = self.refusal_log.allow() {
            tracing::warn!(callback = self.name, reason = reason.as_str(), suppressed, "callback refused");
        }
    }

    /// The decrypted echostr of a GET, the response to it. The query's values are percent-decoded; a `+` stays.
    pub fn verify_url(&self, query: &str) -> Result<Bytes, ReceiveResult> {
        let parameters = Parameters::parse(query).filter(|parameters| !parameters.echostr.is_empty());
        let parameters = parameters.ok_or(ReceiveResult::Signature)?;
        let decrypted = self.decrypt(&parameters, &parameters.echostr)?;
        if self.verify_ids.as_ref().is_some_and(|ids| !ids.contains(decrypted.receive_id())) {
            return Err(ReceiveResult::ReceiveId);
        }
        // A message that was pushed has the same form: one who recorded it must not get it decrypted.
        if matches!(decrypted.message().trim_ascii_start().first(), Some(b'<' | b'{')) {
            return Err(ReceiveResult::Malformed);
        }
        Ok(Bytes::copy_from_slice(decrypted.message()))
    }

    /// Verifies and decrypts a pushed body: signature, receiveid, age, in this order.
    pub fn open(
        &self,
        query: &str,
        content_type: Option<String>,
        body: Bytes,
        now: SystemTime,
    ) -> Result<PushedMessage, ReceiveResult> {
        let parameters = Parameters::parse(query).filter(|parameters| !parameters.signature.is_empty());
        // Where there can be no valid signature, the body is read as far as a document type may stand.
        let Some(parameters) = parameters else {
            let has_document_type = has_document_type(&body);
            return Err(if has_document_type { ReceiveResult::Dtd } else { ReceiveResult::Signature });
        };
        let envelope = Envelope::parse(&body).map_err(parse_error)?;
        let decrypted = self.decrypt(&parameters, &envelope.encrypted)?;
        let is_expected = match self.suite {
            // Each corp has its own, which stands outside, too.
            Some((_, SuiteUrl::Data)) => envelope.to_user_name.as_deref() == Some(decrypted.receive_id()),
            _ => self.receive_ids.contains(decrypted.receive_id()),
        };
        if !is_expected {
            return Err(ReceiveResult::ReceiveId);
        }
        if !self.max_age.is_zero() && !is_recent(&parameters.timestamp, now, self.max_age) {
            return Err(ReceiveResult::Stale);
        }
        let fields = Fields::parse(decrypted.message()).map_err(parse_error)?;
        let (query, nonce) = (query.to_owned(), parameters.nonce);
        Ok(PushedMessage { decrypted, fields, envelope, query, nonce, content_type, body })
    }

    fn decrypt(&self, parameters: &Parameters, encrypted: &str) -> Result<Decrypted, ReceiveResult> {
        let Parameters { signature, timestamp, nonce, .. } = parameters;
        if !self.keys.verify(signature, timestamp, nonce, encrypted) {
            return Err(ReceiveResult::Signature);
        }
        self.keys.decrypt(encrypted).map_err(|error| match error {
            DecryptError::Malformed => ReceiveResult::Encoding,
            DecryptError::Padding => ReceiveResult::Padding,
            DecryptError::Length => ReceiveResult::Length,
            DecryptError::ReceiveId => ReceiveResult::ReceiveId,
        })
    }
}

fn parse_error(error: ParseError) -> ReceiveResult {
    match error {
        ParseError::Dtd => ReceiveResult::Dtd,
        ParseError::Malformed => ReceiveResult::Malformed,
    }
}

/// Whether a timestamp in seconds is at most `max_age` from the clock, either way.
fn is_recent(timestamp: &str, now: SystemTime, max_age: Duration) -> bool {
    let is_number = !timestamp.is_empty() && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let sent_at = timestamp.parse::<u64>().ok().filter(|_| is_number);
    sent_at.is_some_and(|sent_at| clock::since_epoch(now).as_secs().abs_diff(sent_at) <= max_age.as_secs())
}

/// The parameters of a receiver URL.
#[derive(Default)]
struct Parameters {
    signature: String,
    timestamp: String,
    nonce: String,
    echostr: String,
}

impl Parameters {
    /// `None` if a parameter occurs twice or is not UTF-8; absent ones are empty, and cannot have a valid signature.
    fn parse(query: &str) -> Option<Self> {
        let mut parameters = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let field = match name {
                "msg_signature" => &mut parameters.signature,
                "timestamp" => &mut parameters.timestamp,
                "nonce" => &mut parameters.nonce,
                "echostr" => &mut parameters.echostr,
                _ => continue,
            };
            let value = percent_decode_str(value).decode_utf8().ok()?;
            if !std::mem::replace(field, value.into_owned()).is_empty() {
                return None;
            }
        }
        Some(parameters)
    }
}
