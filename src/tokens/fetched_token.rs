//! A fetched token, from gettoken or from the store.

use std::{str, time::Duration};

use super::Token;
use crate::{store::StoreRecord, wecom::response::GettokenResponse};

/// A token and where it came from.
pub(super) struct FetchedToken {
    pub(super) response: GettokenResponse,
    /// The fence of its record; 0 where the store has none.
    pub(super) fence: u64,
    /// How long ago it was fetched, by the store's clock: the time since the lease of its fence was acquired. Zero
    /// for an own one.
    age: Duration,
    /// Whether this replica called gettoken for it.
    pub(super) is_own: bool,
}

impl FetchedToken {
    /// Fetched by this replica, and not in the store.
    pub(super) fn unshared(response: GettokenResponse) -> Self {
        Self { response, fence: 0, age: Duration::ZERO, is_own: true }
    }

    /// The same, in the store under this fence.
    pub(super) fn with_fence(self, fence: u64) -> Self {
        Self { fence, ..self }
    }

    /// `None` if the value is not a valid token.
    pub(super) fn from_record(record: &StoreRecord) -> Option<Self> {
        let response = GettokenResponse::from_parts(str::from_utf8(&record.value).ok()?, record.ttl)?;
        Some(Self { response, fence: record.fence, age: record.age, is_own: false })
    }

    /// Whether this one is no newer than `cached`: older, or this very token.
    pub(super) fn is_not_newer_than(&self, cached: &Token) -> bool {
        cached.is_at_least_as_new_as(self.fence, self.age)
    }
}
