//! Authentication cache: header block → client. An entry is valid for one directory snapshot. One of HTTP/2 serves HTTP/2
//! only: a hit skips the check of `Host`, which HTTP/2 does not have.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
};

use http::Version;

use crate::{
    directory::{Client, Directory},
    http1::headers::Headers,
};

/// Maximum entries per worker.
const MAX_ENTRIES: usize = 256;

/// Authentication cache of one worker.
pub(super) struct AuthCache(RefCell<Vec<Option<AuthCacheEntry>>>);

struct AuthCacheEntry {
    /// Keeps the header block alive, so that its id is not reused.
    headers: Headers,
    is_http2: bool,
    directory: Weak<Directory>,
    /// The client whose key the headers contain; `None` if they contain none.
    client: Option<Arc<Client>>,
}

impl Default for AuthCache {
    fn default() -> Self {
        Self(RefCell::new((0..MAX_ENTRIES).map(|_| None).collect()))
    }
}

impl AuthCache {
    /// The cached client, if any, of these headers; the outer `None` is a cache miss.
    pub(super) fn get(
        &self,
        headers: &Headers,
        version: Version,
        directory: &Arc<Directory>,
    ) -> Option<Option<Arc<Client>>> {
        let id = headers.cache_id()?;
        let entries = self.0.borrow();
        let entry = entries[slot_index(id)].as_ref()?;
        let is_hit = entry.headers.cache_id() == Some(id)
            && entry.is_http2 == (version == Version::HTTP_2)
            && entry.directory.as_ptr() == Arc::as_ptr(directory);
        is_hit.then(|| entry.client.clone())
    }

    /// Caches the client of these headers, if the header cache contains them.
    pub(super) fn insert(
        &self,
        headers: &Headers,
        version: Version,
        directory: &Arc<Directory>,
        client: Option<&Arc<Client>>,
    ) {
        let Some(id) = headers.cache_id() else { return };
        let entry = AuthCacheEntry {
            headers: headers.clone(),
            is_http2: version == Version::HTTP_2,
            directory: Arc::downgrade(directory),
            client: client.cloned(),
        };
        self.0.borrow_mut()[slot_index(id)] = Some(entry);
    }
}

/// The ids are addresses, whose low bits are equal.
fn slot_index(id: usize) -> usize {
    (id >> 5) % MAX_ENTRIES
}
