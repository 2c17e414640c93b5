//! A request as passed from the server, for any HTTP version.

use std::{
    cell::{Cell, OnceCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use bytes::Bytes;
use http::{Method, Version};

use super::{
    loggable::unmasked_path,
    target::{ParsedTarget, TargetError, TargetSpans},
};
use crate::{http1::headers::Headers, secret::wipe, tokens::PathKey};

/// A request without its body. No `Debug`: headers and query may contain credentials.
pub struct Request {
    /// Method.
    pub method: Method,
    /// HTTP version.
    pub version: Version,
    /// Path and query.
    pub target: RequestTarget,
    /// Authority of an absolute-form target, and the local address of the connection.
    pub absolute_form: Option<Box<(Bytes, Option<SocketAddr>)>>,
    /// Why the server found the request malformed. The end of its body is unknown then, so it has none.
    pub malformed: Option<&'static str>,
    /// Headers.
    pub headers: Headers,
    /// Address of the TCP peer, which may be a load balancer; `None` over a Unix socket.
    pub peer: Option<IpAddr>,
    /// Whether it arrived while the server was draining.
    pub draining: bool,
    /// Set once the request is authorized, a credential has named its client, or the proxy is open; it stays set if
    /// `allow` or a rate limit rejects the request. Until then the connection's resources are restricted.
    pub authorized: Cell<bool>,
    /// Set while the request waits for the first bytes of its body, a token, a ticket or a permit, before any of it
    /// is sent; its connection then releases unused buffers, and drops the request soon after FIN.
    pub waiting: Cell<bool>,
}

/// Path and query as received. Clones share the text and its parse results, because most programs repeat their
/// targets.
#[derive(Clone)]
pub struct RequestTarget(Rc<TargetText>);

struct TargetText {
    text: Box<str>,
    /// Offset of the question mark.
    question_mark: Option<usize>,
    spans: OnceCell<Result<TargetSpans, TargetError>>,
    unmasked_path_len: OnceCell<Option<usize>>,
    path_key: OnceCell<PathKey>,
}

impl Drop for TargetText {
    /// Wipes the text: the query may contain a secret or a pass.
    fn drop(&mut self) {
        wipe(&mut std::mem::take(&mut self.text).into_boxed_bytes());
    }
}

impl RequestTarget {
    /// A target that is not parsed yet.
    pub fn new(text: &str) -> Self {
        let question_mark = memchr::memchr(b'?', text.as_bytes());
        Self(Rc::new(TargetText {
            text: text.into(),
            question_mark,
            spans: OnceCell::new(),
            unmasked_path_len: OnceCell::new(),
            path_key: OnceCell::new(),
        }))
    }

    /// Path and query.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The path without the query.
    pub fn path(&self) -> &str {
        &self.0.text[..self.0.question_mark.unwrap_or(self.0.text.len())]
    }

    /// The query without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.0.question_mark.map(|question_mark| &self.0.text[question_mark + 1..])
    }

    /// The parsed target; parsed once for all clones.
    pub(super) fn parsed(&self) -> Result<ParsedTarget<'_>, TargetError> {
        let spans = self.0.spans.get_or_init(|| TargetSpans::parse(self.path(), self.query()));
        let spans = spans.as_ref().map_err(|error| *error)?;
        Ok(ParsedTarget::from_spans(spans, self.path(), self.query()))
    }

    /// Hash of the normalized path, computed once.
    pub(super) fn path_key(&self, normalized_path: &str) -> PathKey {
        *self.0.path_key.get_or_init(|| PathKey::from_path(normalized_path))
    }

    /// The part of the path that may be logged; `None` if some of it must be masked.
    pub(super) fn unmasked_path(&self) -> Option<&str> {
        let length = self.0.unmasked_path_len.get_or_init(|| unmasked_path(self.path()).map(str::len));
        length.map(|length| &self.path()[..length])
    }
}
