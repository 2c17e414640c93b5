//! Converts requests from h2's types to the proxy's.

use std::cell::Cell;

use http::{HeaderMap, Uri, Version, request::Parts};

use crate::{
    http1::headers::{HeaderCache, HeaderKind, Headers, has_quotation_mark},
    proxy::{Request, RequestTarget, split_path_credential},
    secret::constant_time::constant_time_eq,
};

/// What the requests of a connection have in common: most programs send the same headers, and often the same target,
/// with each request.
#[derive(Default)]
pub(super) struct RequestCache {
    headers: HeaderCache,
    target: Option<RequestTarget>,
}

impl RequestCache {
    /// Converts a head, without a peer. `draining`: see [`Request::draining`].
    pub(super) fn convert(&mut self, parts: Parts, draining: bool) -> Box<Request> {
        let Parts { method, uri, headers, .. } = parts;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let (target, path_credential) = split_path_credential(target);
        Box::new(Request {
            target: self.target(target),
            path_credential,
            version: Version::HTTP_2,
            absolute_form: None,
            malformed: malformed_reason(&uri, &headers),
            headers: self.headers.get_or_insert_map(&headers),
            method,
            peer: None,
            socket_peer: None,
            draining,
            authorized: Cell::new(false),
            waiting: Cell::new(false),
        })
    }

    /// The last target if it is the same. The comparison takes constant time, because it may contain a pass.
    fn target(&mut self, text: &str) -> RequestTarget {
        if let Some(last) = &self.target
            && constant_time_eq(last.as_str().as_bytes(), text.as_bytes())
        {
            return last.clone();
        }
        let target = RequestTarget::new(text);
        if target.is_cacheable() {
            self.target = Some(target.clone());
        }
        target
    }
}

/// Whether the client waits for `100 Continue` before it sends the body.
pub(super) fn expects_continue(headers: &Headers) -> bool {
    headers.values(HeaderKind::Expect).any(|value| value.eq_ignore_ascii_case(b"100-continue"))
}

/// The declared length of the body. h2 has rejected an invalid one.
pub(super) fn content_length(headers: &Headers) -> Option<u64> {
    let cached = headers.cached_content_length();
    cached.or_else(|| std::str::from_utf8(headers.first(HeaderKind::ContentLength)?).ok()?.parse().ok())
}

/// What h2 accepts and must be rejected (RFC 9113 §8.2.1, §8.3.1).
fn malformed_reason(uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    if headers.keys().any(has_quotation_mark) {
        return Some("invalid header name: contains a quotation mark");
    }
    if !matches!(uri.scheme_str(), None | Some("http" | "https")) {
        return Some("unsupported :scheme, must be http or https");
    }
    let has_userinfo = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    has_userinfo.then_some(":authority contains userinfo")
}
