//! A request as passed from the server, for any HTTP version.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use http::{Method, Version};

use super::target::RequestTarget;
use crate::{http1::headers::Headers, secret::Masked};

/// A request without its body. No `Debug`: headers and query may contain credentials.
pub struct Request {
    /// Method.
    pub method: Method,
    /// HTTP version.
    pub version: Version,
    /// Path and query, without `path_credential`.
    pub target: RequestTarget,
    /// The key that the path began with; what stood there may be no key.
    pub path_credential: Option<Masked>,
    /// Authority of an absolute-form target, and the local address of the connection.
    pub absolute_form: Option<Box<(Bytes, Option<SocketAddr>)>>,
    /// Why the server found the request malformed. Over HTTP/1 the end of its body is unknown then, so it has none.
    pub malformed: Option<&'static str>,
    /// Headers.
    pub headers: Headers,
    /// Address of the TCP peer, or the one that a trusted proxy names; `None` over a Unix socket.
    /// It never says which client calls.
    pub peer: Option<IpAddr>,
    /// Address of the TCP peer itself.
    pub socket_peer: Option<IpAddr>,
    /// Whether it arrived while the server was draining.
    pub draining: bool,
    /// Set once the request is authenticated, a credential has named its client, or the proxy is open; it stays set if
    /// `allow` or a rate limit rejects the request. Until then the connection's resources are restricted.
    pub authorized: Cell<bool>,
    /// Set while the request waits for the first bytes of its body, a token, a ticket or a permit, before any of it
    /// is sent; its connection then releases unused buffers, and drops the request soon after FIN.
    pub waiting: Cell<bool>,
}

impl Request {
    /// The keys that the headers and the path present, valid or not.
    pub(super) fn presented_keys(&self) -> impl Iterator<Item = &[u8]> {
        let path_key = self.path_credential.iter().map(|key| key.expose().as_bytes());
        self.headers.presented_keys().chain(path_key.filter(|key| !key.is_empty()))
    }
}
