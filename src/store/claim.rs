//! What a claim returns: a record, a failure, or a lease; and the replies of the scripts `claim` and `read`.

use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroizing;

use super::as_microseconds;

/// A value in the store.
pub struct StoreRecord {
    /// The plaintext.
    pub value: Zeroizing<Vec<u8>>,
    /// Orders two records of a name: at least the microseconds since 1970, by the store's clock, at which the lease was
    /// acquired.
    pub fence: u64,
    /// The time since then, by the same clock.
    pub age: Duration,
    /// How long the store keeps it.
    pub ttl: Duration,
    /// Whether the value was fetched under the lease of its fence; false for one that a replica restored from memory.
    pub is_from_lease: bool,
}

/// The outcome of asking for a record newer than the caller's.
pub enum Claim {
    /// The store has a newer record.
    Newer(StoreRecord),
    /// The last attempt failed, and its backoff has not ended.
    Failed {
        /// What that replica published.
        failure: Zeroizing<Vec<u8>>,
        /// The rest of the backoff.
        retry_after: Duration,
    },
    /// There is no newer record, and only the caller may make one now.
    Acquired {
        /// The lease, to be ended by [`super::Store::put`] or [`super::Store::end_lease`].
        lease: Lease,
        /// What the last failed attempt published, if there was one.
        failure: Option<Zeroizing<Vec<u8>>>,
    },
    /// There is no newer record, and another replica has the lease to make one.
    Held {
        /// The rest of its lease.
        remaining: Duration,
    },
}

/// The right to make the next record of a name; it expires [`super::LEASE_TTL`] after it was acquired or extended.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The fence of the record to be made.
    pub fence: u64,
    pub(super) owner: String,
    pub(super) acquired_at: Instant,
}

impl Lease {
    /// When this replica acquired it; its fence is the same time by the store's clock, or a little more.
    pub fn acquired_at(&self) -> Instant {
        self.acquired_at
    }

    /// The lease for a value that is already `age` old: its fence is that much smaller, but greater than `min_fence`.
    pub fn backdated(self, age: Duration, min_fence: u64) -> Self {
        let fetched_at = self.fence.saturating_sub(as_microseconds(age));
        let lowest = min_fence.saturating_add(1);
        Self { fence: fetched_at.clamp(lowest, self.fence.max(lowest)), ..self }
    }
}

/// The reply of `read`, and of `claim` where there is a newer record: value, fence, TTL in milliseconds, 1 if the value
/// was fetched under its lease, age in microseconds.
pub(super) type RecordParts = (Vec<u8>, u64, u64, u8, u64);
/// The reply of `claim`: its kind before the parts of a record, of which each kind uses some.
pub(super) type ClaimParts = (String, Vec<u8>, u64, u64, u8, u64);

/// A record as the scripts return it.
pub(super) struct RecordReply {
    /// Sealed; empty where there is no record.
    pub(super) value: Vec<u8>,
    pub(super) fence: u64,
    pub(super) ttl: Duration,
    pub(super) is_from_lease: bool,
    pub(super) age: Duration,
}

/// The reply of `claim`. Values are sealed.
pub(super) enum ClaimReply {
    Record(RecordReply),
    /// `now_us` is the store's clock, in microseconds since 1970.
    Failed {
        failure: Vec<u8>,
        wait: Duration,
        now_us: u64,
    },
    /// `failure` is empty where there was none.
    Acquired {
        failure: Vec<u8>,
        fence: u64,
    },
    Held {
        remaining: Duration,
    },
}

impl RecordReply {
    pub(super) fn new((value, fence, ttl_ms, fresh, age_us): RecordParts) -> Self {
        Self {
            value,
            fence,
            ttl: Duration::from_millis(ttl_ms),
            is_from_lease: fresh == 1,
            age: Duration::from_micros(age_us),
        }
    }
}

impl ClaimReply {
    pub(super) fn new((kind, value, fence, time_ms, fresh, last_us): ClaimParts) -> Self {
        let time = Duration::from_millis(time_ms);
        match kind.as_str() {
            "record" => Self::Record(RecordReply::new((value, fence, time_ms, fresh, last_us))),
            "failed" => Self::Failed { failure: value, wait: time, now_us: last_us },
            "ours" => Self::Acquired { failure: value, fence },
            _ => Self::Held { remaining: time },
        }
    }
}
