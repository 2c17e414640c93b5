//! Who carries a request out: one of all that come with its key, in all processes that share the state.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::sleep;

use super::record::{Outcome, RequestRecord};
use crate::{
    secret::random_u64,
    state::{Collection, Precondition, ReadError, State, Write, WriteError},
    time::clock::{unix_now, unix_now_millis},
};

/// How long a record is kept, in seconds.
const RECORD_TTL_SECS: u64 = 24 * 3600;
/// A process that has not moved its claim ahead for this time has crashed; what it was about to do is in doubt.
const CLAIM_TTL: Duration = Duration::from_secs(10);
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3);
/// Between two looks at a request that another one carries out.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(10);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often a claim of what was not sent is released where the state fails, and the time between.
const RELEASE_ATTEMPTS: usize = 10;
const RELEASE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The state cannot be read or written; nothing was sent.
#[derive(Debug)]
pub(super) struct StateUnavailable(pub(super) String);

impl From<WriteError> for StateUnavailable {
    fn from(error: WriteError) -> Self {
        Self(error.to_string())
    }
}

impl From<ReadError> for StateUnavailable {
    fn from(error: ReadError) -> Self {
        Self(error.to_string())
    }
}

/// What a request with a key finds.
pub(super) enum Found {
    /// It is to be carried out now.
    Claimed(IdempotencyClaim),
    /// Another request is still at work, for as long as this one could wait.
    StillWorking,
    /// It was sent, and the outcome is not known.
    InDoubt,
    /// The record of another body or query, or one with the response.
    Record(RequestRecord),
}

/// The right to carry a request out. Dropped without an outcome, it leaves the request in doubt if it may have been sent,
/// and else is released.
pub(super) struct IdempotencyClaim {
    state: Arc<State>,
    name: String,
    fingerprint: String,
    owner: u64,
    /// Of the record that this claim wrote last.
    version: Mutex<u64>,
    /// Whether the state may have a record of this claim without an outcome.
    may_exist: bool,
    /// Whether something of the request may have reached the upstream.
    maybe_sent: AtomicBool,
}

/// Claims the request of this name, or waits at most `max_wait` for the one that carries it out.
pub(super) async fn claim(
    state: &Arc<State>,
    name: &str,
    fingerprint: &str,
    sends_again: bool,
    max_wait: Duration,
) -> Result<Found, StateUnavailable> {
    IdempotencyClaim::new(state, name, fingerprint).acquire(sends_again, max_wait).await
}

fn working(name: &str, fingerprint: &str, owner: u64, precondition: Precondition) -> Write {
    let alive_until = unix_now_millis() + CLAIM_TTL.as_millis() as u64;
    put(name, &RequestRecord::new(fingerprint, Outcome::Working { owner, alive_until }), precondition)
}

fn put(name: &str, record: &RequestRecord, precondition: Precondition) -> Write {
    Write::put(Collection::Idempotency, name, record.encode())
        .when(precondition)
        .expires_at(unix_now() + RECORD_TTL_SECS)
}

impl IdempotencyClaim {
    fn new(state: &Arc<State>, name: &str, fingerprint: &str) -> Self {
        Self {
            state: state.clone(),
            name: name.to_owned(),
            fingerprint: fingerprint.to_owned(),
            owner: random_u64(),
            version: Mutex::new(0),
            may_exist: false,
            maybe_sent: AtomicBool::new(false),
        }
    }

    async fn acquire(mut self, sends_again: bool, max_wait: Duration) -> Result<Found, StateUnavailable> {
        let started = tokio::time::Instant::now();
        let (mut interval, mut precondition) = (MIN_POLL_INTERVAL, Some(Precondition::Absent));
        loop {
            if let Some(precondition) = precondition.take()
                && self.write_working(precondition).await?
            {
                return Ok(Found::Claimed(self));
            }
            match self.state.read(Collection::Idempotency, &self.name).await? {
                None => (precondition, interval) = (Some(Precondition::Absent), MIN_POLL_INTERVAL),
                Some(stored) => {
                    let record = stored.value.as_ref().and_then(|value| RequestRecord::decode(value));
                    let record =
                        record.ok_or_else(|| StateUnavailable("a record has an unknown form".to_owned()))?;
                    self.may_exist = self.is_own(&record);
                    if self.may_exist {
                        // The reply to its write was lost.
                        *self.version.lock() = stored.version;
                        return Ok(Found::Claimed(self));
                    }
                    if record.fingerprint != self.fingerprint {
                        return Ok(Found::Record(record));
                    }
                    match record.outcome {
                        Outcome::Done { .. } | Outcome::TooLarge => return Ok(Found::Record(record)),
                        Outcome::Working { alive_until, .. } if unix_now_millis() < alive_until => {
                            if started.elapsed() >= max_wait {
                                return Ok(Found::StillWorking);
                            }
                        }
                        Outcome::Working { .. } | Outcome::InDoubt if !sends_again => {
                            return Ok(Found::InDoubt);
                        }
                        Outcome::Working { .. } | Outcome::InDoubt => {
                            precondition = Some(Precondition::Version(stored.version));
                            continue;
                        }
                    }
                }
            }
            let left = max_wait.saturating_sub(started.elapsed());
            sleep(interval.min(left).max(Duration::from_millis(1))).await;
            interval = (interval * 2).min(MAX_POLL_INTERVAL);
        }
    }

    /// Writes that this claim is at work. False where a look at the record must show whose it is.
    async fn write_working(&mut self, precondition: Precondition) -> Result<bool, WriteError> {
        self.may_exist = true;
        let write = working(&self.name, &self.fingerprint, self.owner, precondition);
        match self.state.write(vec![write]).await {
            Ok(version) => {
                *self.version.lock() = version;
                Ok(true)
            }
            Err(WriteError::Unknown(_)) => Ok(false),
            Err(error) => {
                self.may_exist = false;
                if matches!(error, WriteError::Conflict { .. }) { Ok(false) } else { Err(error) }
            }
        }
    }

    /// To be set while something of the request may be at the upstream.
    pub(super) fn maybe_sent(&self) -> &AtomicBool {
        &self.maybe_sent
    }

    /// Carries out `work`, and meanwhile shows that this process lives.
    pub(super) async fn keep_while<T>(&self, work: impl Future<Output = T>) -> T {
        let renew = async {
            loop {
                sleep(RENEWAL_INTERVAL).await;
                let write = |precondition| working(&self.name, &self.fingerprint, self.owner, precondition);
                // The next one tries again.
                let _ = self.replace(write).await;
            }
        };
        tokio::select! {
            biased;
            result = work => result,
            () = renew => unreachable!("it never ends"),
        }
    }

    /// Keeps the outcome.
    pub(super) async fn settle(self, outcome: Outcome, response: Vec<u8>) -> Result<(), StateUnavailable> {
        let record = RequestRecord { response, ..RequestRecord::new(&self.fingerprint, outcome) };
        self.replace(|precondition| put(&self.name, &record, precondition)).await?;
        self.forget_claim();
        Ok(())
    }

    /// Forgets the request: WeCom did nothing.
    pub(super) async fn release(self) -> Result<(), StateUnavailable> {
        // If the state fails, the drop tries again.
        self.maybe_sent.store(false, Relaxed);
        self.delete().await?;
        self.forget_claim();
        Ok(())
    }

    async fn delete(&self) -> Result<(), StateUnavailable> {
        self.replace(|precondition| {
            Write::delete(Collection::Idempotency, self.name.as_str()).when(precondition)
        })
        .await
    }

    fn forget_claim(mut self) {
        self.may_exist = false;
    }

    /// Writes in place of what this claim wrote last.
    async fn replace(&self, write: impl Fn(Precondition) -> Write) -> Result<(), StateUnavailable> {
        let version = *self.version.lock();
        match self.state.write(vec![write(Precondition::Version(version))]).await {
            Ok(version) => {
                *self.version.lock() = version;
                return Ok(());
            }
            Err(WriteError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // A renewal whose end was not awaited, or whose reply was lost, may have written a newer version; anything else
        // is another request's.
        let stored = self.state.read(Collection::Idempotency, &self.name).await?;
        let is_own = |value: &[u8]| RequestRecord::decode(value).is_some_and(|record| self.is_own(&record));
        let Some(stored) = stored.filter(|stored| stored.value.as_ref().is_some_and(|value| is_own(value)))
        else {
            return Ok(());
        };
        let version = self.state.write(vec![write(Precondition::Version(stored.version))]).await?;
        *self.version.lock() = version;
        Ok(())
    }

    fn is_own(&self, record: &RequestRecord) -> bool {
        matches!(record.outcome, Outcome::Working { owner, .. } if owner == self.owner)
    }

    /// Ends a claim that was dropped: what was sent may be carried out.
    async fn end(&self) {
        if self.maybe_sent.load(Relaxed) {
            let record = RequestRecord::new(&self.fingerprint, Outcome::InDoubt);
            // If it fails, the claim is not renewed, which means the same after a while.
            let _ = self.replace(|precondition| put(&self.name, &record, precondition)).await;
            return;
        }
        for _ in 0..RELEASE_ATTEMPTS {
            if self.delete().await.is_ok() {
                break;
            }
            sleep(RELEASE_RETRY_INTERVAL).await;
        }
    }
}

impl Drop for IdempotencyClaim {
    /// The client is gone, or the state failed.
    fn drop(&mut self) {
        if !self.may_exist {
            return;
        }
        let dropped = Self {
            state: self.state.clone(),
            name: std::mem::take(&mut self.name),
            fingerprint: std::mem::take(&mut self.fingerprint),
            owner: self.owner,
            version: Mutex::new(*self.version.lock()),
            may_exist: false,
            maybe_sent: AtomicBool::new(self.maybe_sent.load(Relaxed)),
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { dropped.end().await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{StateConfig, StateFileConfig},
        secret::Masked,
    };

    fn open(directory: &tempfile::TempDir) -> Arc<State> {
        let (path, key) =
            (directory.path().join("state.db"), Masked::new("a state key of the tests, long enough"));
        let config = StateConfig::File(StateFileConfig { path, key, old_key: None });
        State::open(&config, Box::new(|_| {})).unwrap_or_else(|error| panic!("{error}"))
    }

    async fn acquire(claim: IdempotencyClaim) -> Found {
        let acquired = claim.acquire(false, Duration::ZERO).await;
        acquired.unwrap_or_else(|StateUnavailable(error)| panic!("{error}"))
    }

    #[tokio::test]
    async fn record_whose_reply_was_lost_is_adopted_by_its_owner_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = open(&directory);
        let mut first = IdempotencyClaim::new(&state, "name", "f0");
        assert_eq!(first.write_working(Precondition::Absent).await, Ok(true));
        *first.version.lock() = 0;
        let other = acquire(IdempotencyClaim::new(&state, "name", "f0")).await;
        assert!(matches!(other, Found::StillWorking));
        let Found::Claimed(adopted) = acquire(first).await else { panic!("not claimed") };
        let settled = adopted.settle(Outcome::TooLarge, Vec::new()).await;
        settled.unwrap_or_else(|StateUnavailable(error)| panic!("{error}"));
        let other = acquire(IdempotencyClaim::new(&state, "name", "f0")).await;
        assert!(matches!(other, Found::Record(_)));
    }

    #[tokio::test]
    async fn dropped_claim_is_in_doubt_only_if_it_may_have_been_sent() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = open(&directory);
        for maybe_sent in [false, true] {
            // Also one that does not know the version of its record.
            for knows_version in [false, true] {
                let name = format!("{maybe_sent} {knows_version}");
                let mut claim = IdempotencyClaim::new(&state, &name, "f0");
                assert_eq!(claim.write_working(Precondition::Absent).await, Ok(true));
                claim.maybe_sent().store(maybe_sent, Relaxed);
                if !knows_version {
                    *claim.version.lock() = 0;
                }
                drop(claim);
                let found = loop {
                    match acquire(IdempotencyClaim::new(&state, &name, "f0")).await {
                        Found::StillWorking => tokio::task::yield_now().await,
                        found => break found,
                    }
                };
                assert_eq!(matches!(found, Found::InDoubt), maybe_sent, "{name}");
                assert_eq!(matches!(found, Found::Claimed(_)), !maybe_sent, "{name}");
            }
        }
    }
}
