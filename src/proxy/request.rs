//! A request as the server hands it over, whatever version of HTTP it came by.

use std::{
    cell::{Cell, OnceCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use bytes::Bytes;
use http::{Method, Version};

use super::{
    record::plain,
    target::{Course, Doubt},
};
use crate::{fields::Fields, secret::wipe, tokens::PathKey};

/// One request, without its body. It has no `Debug`: its lines and its query may hold credentials.
pub struct Request {
    /// Its method.
    pub method: Method,
    /// By which version of HTTP it came.
    pub version: Version,
    /// Path and query.
    pub target: Target,
    /// The authority of a target in absolute form, and the address that the client connected to.
    pub absolute: Option<Box<(Bytes, Option<SocketAddr>)>>,
    /// What the server found wrong with it; nobody can tell where its body ends then, and it has none.
    pub flaw: Option<&'static str>,
    /// Its header lines.
    pub fields: Fields,
    /// Where the client is; `None` where it came over a unix socket.
    pub peer: Option<IpAddr>,
    /// It came when no more requests are taken.
    pub late: bool,
    /// Set once the caller has shown a good credential, or the proxy is open: only then may its connection use more than
    /// a little.
    pub authorized: Cell<bool>,
    /// Set once the request waits for a token or for a permit: its connection then releases buffers that it does not use.
    pub waits: Cell<bool>,
}

/// Path and query as they came. Clones share the text, and what was found out about it: most programs send the same again.
#[derive(Clone)]
pub struct Target(Rc<Text>);

struct Text {
    text: Box<str>,
    /// Where the question mark stands.
    mark: Option<usize>,
    course: OnceCell<Result<Course, Doubt>>,
    plain: OnceCell<Option<usize>>,
    path_key: OnceCell<PathKey>,
}

impl Drop for Text {
    /// There may be a secret or a pass in the query.
    fn drop(&mut self) {
        wipe(&mut std::mem::take(&mut self.text).into_boxed_bytes());
    }
}

impl Target {
    /// A target.
    pub fn new(text: &str) -> Self {
        let mark = memchr::memchr(b'?', text.as_bytes());
        Self(Rc::new(Text {
            text: text.into(),
            mark,
            course: OnceCell::new(),
            plain: OnceCell::new(),
            path_key: OnceCell::new(),
        }))
    }

    /// Path and query.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        &self.0.text[..self.0.mark.unwrap_or(self.0.text.len())]
    }

    /// The query, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.0.mark.map(|mark| &self.0.text[mark + 1..])
    }

    /// Where it leads, which is found out once.
    pub(super) fn course(&self) -> Result<&Course, Doubt> {
        let found = self.0.course.get_or_init(|| Course::find(self.path(), self.query()));
        found.as_ref().map_err(|doubt| *doubt)
    }

    /// The key of its route, which is hashed once.
    pub(super) fn path_key(&self, route: &str) -> PathKey {
        *self.0.path_key.get_or_init(|| PathKey::of(route))
    }

    /// How much of the path may be shown to whoever may see any path; `None` where some of it must be masked.
    pub(super) fn plain_path(&self) -> Option<&str> {
        let length = self.0.plain.get_or_init(|| plain(self.path()).map(str::len));
        length.map(|length| &self.path()[..length])
    }
}
