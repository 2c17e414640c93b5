//! The headers of an answer that are the proxy's own, and what must not be in those that are not.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU32, Ordering},
};

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, request};
use memchr::memmem;

use super::record::Record;
use crate::{tokens::Token, wecom::errcode};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const AGENT: HeaderName = HeaderName::from_static("x-wecom-agent");
const RETRIED: HeaderName = HeaderName::from_static("x-wecom-retried");
const HINT: HeaderName = HeaderName::from_static("x-wecom-hint");
const DEBUG: HeaderName = HeaderName::from_static("x-wecom-debug");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Puts the proxy's own headers onto an answer.
pub(super) fn sign(parts: &request::Parts, record: &Record, headers: &mut HeaderMap) {
    headers.insert(REQUEST_ID, record.request_id.clone());
    if let Some(agent) = &record.agent {
        headers.insert(AGENT, agent.name_header.clone());
    }
    let (token, upstream) = (record.token.as_micros(), record.upstream.as_micros());
    let mut timing = BytesMut::with_capacity(48);
    let _ = write!(
        timing,
        "token;dur={}.{:03}, upstream;dur={}.{:03}",
        token / 1000,
        token % 1000,
        upstream / 1000,
        upstream % 1000
    );
    if let Ok(timing) = HeaderValue::from_maybe_shared(timing.freeze()) {
        headers.append(SERVER_TIMING, timing);
    }
    if let Some(errcode) = record.retried {
        headers.insert(RETRIED, HeaderValue::from(errcode));
    }
    let hint = record.errcode.filter(|errcode| *errcode != errcode::OK).and_then(errcode::hint);
    if let Some(hint) = hint.filter(|_| parts.headers.get(DEBUG).is_some_and(|value| value == "1")) {
        headers.insert(HINT, HeaderValue::from_static(hint));
    }
}

/// Takes the token out of an answer's headers: an upstream that redirects may say the request's URL back.
pub(super) fn conceal(headers: &mut HeaderMap, token: &Token) {
    let token = token.value.expose();
    for value in headers.values_mut().filter(|value| value.len() >= token.len()) {
        let mut text = BytesMut::new();
        let mut rest = value.as_bytes();
        while let Some(at) = memmem::find(rest, token.as_bytes()) {
            text.extend_from_slice(&rest[..at]);
            rest = &rest[at + token.len()..];
        }
        if rest.len() < value.len() {
            text.extend_from_slice(rest);
            // What is left of a header's value is one.
            *value = HeaderValue::from_maybe_shared(text.freeze()).unwrap_or(HeaderValue::from_static(""));
        }
    }
}

/// Request ids: random where the process began, counted from there.
pub(super) struct Ids {
    prefix: u64,
    next: AtomicU32,
}

impl Default for Ids {
    fn default() -> Self {
        Self { prefix: getrandom::u64().unwrap_or_default(), next: AtomicU32::new(0) }
    }
}

impl Ids {
    /// The caller's own id if it sent a sane one, else a new one.
    pub(super) fn of(&self, parts: &request::Parts) -> HeaderValue {
        let own = parts.headers.get(REQUEST_ID).filter(|value| {
            let text = value.as_bytes();
            let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
            (1..=128).contains(&text.len()) && text.iter().all(sane)
        });
        own.cloned().unwrap_or_else(|| self.next())
    }

    fn next(&self) -> HeaderValue {
        let nth = self.next.fetch_add(1, Ordering::Relaxed);
        let mut text = BytesMut::with_capacity(24);
        let _ = write!(text, "{:016x}{nth:08x}", self.prefix);
        HeaderValue::from_maybe_shared(text.freeze()).unwrap_or(HeaderValue::from_static("-"))
    }
}
