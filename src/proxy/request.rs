//! A request as the server hands it over, whatever version of HTTP it came by.

use std::net::{IpAddr, SocketAddr};

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
}

/// Path and query as they came. They are UTF-8.
#[derive(Clone, Default)]
pub struct Target(Bytes);

impl Target {
    /// A target, if it is text.
    pub fn new(text: Bytes) -> Option<Self> {
        std::str::from_utf8(&text).is_ok().then_some(Self(text))
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.split().0
    }

    /// The query, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.split().1
    }

    /// Both.
    pub fn split(&self) -> (&str, Option<&str>) {
        let text = std::str::from_utf8(&self.0).unwrap_or_default();
        match memchr::memchr(b'?', text.as_bytes()) {
            Some(mark) => (&text[..mark], Some(&text[mark + 1..])),
            None => (text, None),
        }
    }
}
