//! A request as the server hands it over, whatever version of HTTP it came by.

use std::{
    cell::{Cell, OnceCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use bytes::Bytes;
use http::{Method, Version};

use super::{
    request_context::safe_path,
    target::{TargetError, TargetSpans},
};
use crate::{http1::headers::Headers, secret::wipe, tokens::PathKey};

/// One request, without its body. It has no `Debug`: its lines and its query may hold credentials.
pub struct Request {
    /// Its method.
    pub method: Method,
    /// By which version of HTTP it came.
    pub version: Version,
    /// Path and query.
    pub target: RequestTarget,
    /// The authority of a target in absolute form, and the address that the client connected to.
    pub absolute_form: Option<Box<(Bytes, Option<SocketAddr>)>>,
    /// What the server found wrong with it; nobody can tell where its body ends then, and it has none.
    pub malformed: Option<&'static str>,
    /// Its header lines.
    pub headers: Headers,
    /// Where the client is; `None` where it came over a unix socket.
    pub peer: Option<IpAddr>,
    /// It came when no more requests are taken.
    pub draining: bool,
    /// Set once the caller has shown a good credential, or the proxy is open: only then may its connection use more than
    /// a little.
    pub authorized: Cell<bool>,
    /// Set once the request waits for a token or for a permit: its connection then releases buffers that it does not use.
    pub waiting: Cell<bool>,
}

/// Path and query as they came. Clones share the text, and what was found out about it: most programs send the same again.
#[derive(Clone)]
pub struct RequestTarget(Rc<TargetText>);

struct TargetText {
    text: Box<str>,
    /// Where the question mark stands.
    question_mark: Option<usize>,
    spans: OnceCell<Result<TargetSpans, TargetError>>,
    safe_path_len: OnceCell<Option<usize>>,
    path_key: OnceCell<PathKey>,
}

impl Drop for TargetText {
    /// There may be a secret or a pass in the query.
    fn drop(&mut self) {
        wipe(&mut std::mem::take(&mut self.text).into_boxed_bytes());
    }
}

impl RequestTarget {
    /// A target.
    pub fn new(text: &str) -> Self {
        let mark = memchr::memchr(b'?', text.as_bytes());
        Self(Rc::new(TargetText {
            text: text.into(),
            question_mark: mark,
            spans: OnceCell::new(),
            safe_path_len: OnceCell::new(),
            path_key: OnceCell::new(),
        }))
    }

    /// Path and query.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        &self.0.text[..self.0.question_mark.unwrap_or(self.0.text.len())]
    }

    /// The query, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.0.question_mark.map(|mark| &self.0.text[mark + 1..])
    }

    /// Where it leads, which is found out once.
    pub(super) fn spans(&self) -> Result<&TargetSpans, TargetError> {
        let found = self.0.spans.get_or_init(|| TargetSpans::parse(self.path(), self.query()));
        found.as_ref().map_err(|doubt| *doubt)
    }

    /// The key of its route, which is hashed once.
    pub(super) fn path_key(&self, route: &str) -> PathKey {
        *self.0.path_key.get_or_init(|| PathKey::from_path(route))
    }

    /// How much of the path may be shown to whoever may see any path; `None` where some of it must be masked.
    pub(super) fn safe_path(&self) -> Option<&str> {
        let length = self.0.safe_path_len.get_or_init(|| safe_path(self.path()).map(str::len));
        length.map(|length| &self.path()[..length])
    }
}
