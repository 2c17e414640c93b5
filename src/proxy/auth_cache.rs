//! Authentication cache: header block → client. What was found out is attached to the cached headers, so that it is there
//! for as many connections as there are. It is valid for one directory snapshot. One of HTTP/2 serves HTTP/2 only: a hit
//! skips the check of `Host`, which HTTP/2 does not have.

use std::sync::{Arc, Weak};

use http::Version;

use crate::{
    directory::{Client, Directory},
    http1::headers::Headers,
};

struct AuthCacheEntry {
    is_http2: bool,
    directory: Weak<Directory>,
    /// The client whose key the headers contain; `None` if they contain none.
    client: Option<Arc<Client>>,
}

/// The cached client, if any, of these headers; the outer `None` is a cache miss.
pub(super) fn get(
    headers: &Headers,
    version: Version,
    directory: &Arc<Directory>,
) -> Option<Option<Arc<Client>>> {
    let client = headers.with_attachment(|entry: &AuthCacheEntry| {
        let is_hit = entry.is_http2 == (version == Version::HTTP_2)
            && entry.directory.as_ptr() == Arc::as_ptr(directory);
        is_hit.then(|| entry.client.clone())
    });
    client.flatten()
}

/// Caches the client of these headers, if the header cache contains them.
pub(super) fn insert(
    headers: &Headers,
    version: Version,
    directory: &Arc<Directory>,
    client: Option<&Arc<Client>>,
) {
    if !headers.is_cached() {
        return;
    }
    headers.attach(AuthCacheEntry {
        is_http2: version == Version::HTTP_2,
        directory: Arc::downgrade(directory),
        client: client.cloned(),
    });
}
