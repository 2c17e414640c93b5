//! A request as the server hands it over, whatever version of HTTP it came by.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use bytes::Bytes;
use http::{Method, Version};

use crate::fields::Fields;

/// One request, without its body. It has no `Debug`: its lines and its query may hold credentials.
pub struct Request {
    /// Its method.
    pub method: Method,
    /// By which version of HTTP it came.
    pub version: Version,
    /// Path and query.
    pub target: Target,
    /// The authority of a target in absolute form, and the address that the client connected to.
    pub absolute: Option<(Bytes, Option<SocketAddr>)>,
    /// What the server found wrong with it; nobody can tell where its body ends then, and it has none.
    pub flaw: Option<&'static str>,
    /// Its header lines.
    pub fields: Fields,
    /// Where the client is; `None` where it came over a unix socket.
    pub peer: Option<IpAddr>,
    /// It came when no more requests are taken.
    pub late: bool,
}

/// Path and query as they came. Clones share the text.
#[derive(Clone)]
pub struct Target {
    text: Rc<str>,
    /// Where the question mark stands.
    mark: Option<usize>,
}

impl Target {
    /// A target.
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), mark: memchr::memchr(b'?', text.as_bytes()) }
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        &self.text[..self.mark.unwrap_or(self.text.len())]
    }

    /// The query, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.mark.map(|mark| &self.text[mark + 1..])
    }
}
