//! Callers whose header lines came before. Who they are was found out once, key and all; as long as the directory is the
//! same, so is the answer.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
};

use crate::{
    directory::{Client, Directory},
    http1::headers::Headers,
};

/// How many one worker remembers.
const MAX_ENTRIES: usize = 256;

/// The callers that one worker remembers.
pub(super) struct AuthCache(RefCell<Vec<Option<AuthCacheEntry>>>);

struct AuthCacheEntry {
    /// Held, so that their mark is nobody else's.
    headers: Headers,
    directory: Weak<Directory>,
    /// Whose key they show; `None` where they show none.
    client: Option<Arc<Client>>,
}

impl Default for AuthCache {
    fn default() -> Self {
        Self(RefCell::new((0..MAX_ENTRIES).map(|_| None).collect()))
    }
}

impl AuthCache {
    /// The client whose key these lines show, if any, or `None` where that must be found out.
    pub(super) fn get(&self, fields: &Headers, directory: &Arc<Directory>) -> Option<Option<Arc<Client>>> {
        let mark = fields.cache_id()?;
        let known = self.0.borrow();
        let known = known[slot_index(mark)].as_ref()?;
        let is_known =
            known.headers.cache_id() == Some(mark) && known.directory.as_ptr() == Arc::as_ptr(directory);
        is_known.then(|| known.client.clone())
    }

    /// Remembers the client whose key these lines show, if they are any that come again.
    pub(super) fn insert(&self, fields: &Headers, directory: &Arc<Directory>, client: Option<&Arc<Client>>) {
        let Some(mark) = fields.cache_id() else { return };
        let acquaintance = AuthCacheEntry {
            headers: fields.clone(),
            directory: Arc::downgrade(directory),
            client: client.cloned(),
        };
        self.0.borrow_mut()[slot_index(mark)] = Some(acquaintance);
    }
}

/// Marks are addresses: their last bits are alike.
fn slot_index(mark: usize) -> usize {
    (mark >> 5) % MAX_ENTRIES
}
