//! The token of one agent. Most agents have one secret that cannot change while the process runs, and so one cache
//! entry. One with two secrets, or with a secret from a file, has an entry for each secret; `secret_rotation` selects.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::Guard;
use tokio::time::Instant;

use super::{
    CachedToken, Credentials, FetchError, Outcome, PathKey, ReplaceOutcome, Token, TokenCache, TokenStatus,
    kinds::ticket::TicketKind,
    secret_rotation::SecretRotation,
    tickets::{FailedTicketFetch, FetchOutcome, TicketResponse, TicketResult},
};
use crate::{config::SourcedSecret, text::SharedStr};

/// The token of one agent, by whichever of its secrets works.
#[derive(Clone)]
pub enum AgentToken {
    /// One secret that cannot change.
    Fixed(Arc<CachedToken>),
    /// Several secrets, or one that can change.
    Rotating(Arc<SecretRotation>),
}

/// The entry whose token serves.
enum Serving<'a> {
    Fixed(&'a Arc<CachedToken>),
    Rotating(Guard<Arc<CachedToken>>),
}

impl Serving<'_> {
    fn entry(&self) -> &Arc<CachedToken> {
        match self {
            Self::Fixed(entry) => entry,
            Self::Rotating(entry) => entry,
        }
    }
}

impl AgentToken {
    /// The token of an agent with these secrets, of which there is at least one, each with the file that it is from.
    /// `before` is what the agent had before a change of its configuration: the same is returned if the secrets did not
    /// change, and otherwise the secret in use stays in use if it is among them. `is_changed`: see [`TokenCache::entry`].
    pub fn new(
        cache: &Arc<TokenCache>,
        agent: &SharedStr,
        secrets: impl Iterator<Item = (Credentials, Option<PathBuf>)>,
        before: Option<&Self>,
        is_changed: bool,
    ) -> Self {
        let mut entries: Vec<(Arc<CachedToken>, Option<PathBuf>)> = Vec::with_capacity(1);
        for (credentials, file) in secrets {
            let entry = cache.entry(agent.clone(), credentials, is_changed);
            // The same secret twice is one, unless a file may change it.
            if file.is_some() || !entries.iter().any(|(known, _)| Arc::ptr_eq(known, &entry)) {
                entries.push((entry, file));
            }
        }
        match (before, &entries[..]) {
            (Some(Self::Rotating(rotation)), entries) if rotation.has_secrets(entries) => {
                Self::Rotating(rotation.clone())
            }
            (_, [(entry, None)]) => Self::Fixed(entry.clone()),
            _ => {
                let in_use = before.map(|before| before.serving().entry().clone());
                let in_use = in_use.filter(|entry| entry.expires_at().is_some());
                Self::Rotating(SecretRotation::new(cache, agent, entries, in_use.as_ref()))
            }
        }
    }

    /// Whether it is the same as before a reload.
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(entry), Self::Fixed(other)) => Arc::ptr_eq(entry, other),
            (Self::Rotating(rotation), Self::Rotating(other)) => Arc::ptr_eq(rotation, other),
            _ => false,
        }
    }

    fn serving(&self) -> Serving<'_> {
        match self {
            Self::Fixed(entry) => Serving::Fixed(entry),
            Self::Rotating(rotation) => Serving::Rotating(rotation.serving()),
        }
    }

    /// See [`CachedToken::cached`].
    pub fn cached(&self, now: Instant) -> Option<Arc<Token>> {
        match self {
            Self::Fixed(entry) => entry.cached(now),
            Self::Rotating(rotation) => rotation.serving().cached(now),
        }
    }

    /// See [`CachedToken::current_or_fetch`]. Where WeCom refuses the secret, one more is tried.
    pub async fn current_or_fetch(&self) -> Outcome {
        match self {
            Self::Fixed(entry) => entry.current_or_fetch().await,
            Self::Rotating(rotation) => rotation.current_or_fetch().await,
        }
    }

    /// See [`CachedToken::replace_refused`]. Where WeCom refuses the secret, one more is tried.
    pub async fn replace_refused(&self, refused: &Token, path: PathKey) -> ReplaceOutcome {
        match self {
            Self::Fixed(entry) => entry.replace_refused(refused, path).await,
            Self::Rotating(rotation) => rotation.replace_refused(refused, path).await,
        }
    }

    /// See [`CachedToken::mark_refused_again`].
    pub fn mark_refused_again(&self, token: &Token, path: PathKey) {
        self.serving().entry().mark_refused_again(token, path);
    }

    /// See [`CachedToken::force_refresh`]. Where WeCom refuses the secret, one more is tried.
    pub async fn force_refresh(&self) -> Outcome {
        match self {
            Self::Fixed(entry) => entry.force_refresh().await,
            Self::Rotating(rotation) => rotation.force_refresh().await,
        }
    }

    /// See [`CachedToken::last_failure`].
    pub fn last_failure(&self) -> Option<Arc<FetchError>> {
        self.serving().entry().last_failure()
    }

    /// See [`CachedToken::cached_ticket`].
    pub fn cached_ticket(&self, kind: TicketKind) -> Option<TicketResponse> {
        self.serving().entry().cached_ticket(kind)
    }

    /// See [`CachedToken::failed_ticket_fetch`].
    pub fn failed_ticket_fetch(&self, kind: TicketKind) -> Option<FailedTicketFetch> {
        self.serving().entry().failed_ticket_fetch(kind)
    }

    /// See [`CachedToken::ticket`].
    pub async fn ticket<R>(
        &self,
        kind: TicketKind,
        fetch: impl AsyncFnMut() -> (R, FetchOutcome),
    ) -> TicketResult<R> {
        let entry = self.serving().entry().clone();
        entry.ticket(kind, fetch).await
    }

    /// How long backoff or a spent budget holds refreshes back; zero if nothing does.
    pub fn next_try_in(&self) -> Duration {
        match self {
            Self::Fixed(entry) => entry.next_try_in(),
            Self::Rotating(rotation) => rotation.preferred().next_try_in(),
        }
    }

    /// When the current token expires, if there is one.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.serving().entry().expires_at()
    }

    /// The state for operators.
    pub fn status(&self) -> TokenStatus {
        match self {
            Self::Fixed(entry) => entry.status(),
            Self::Rotating(rotation) => rotation.status(),
        }
    }

    /// The entries of its secrets, in the order of the configuration; never empty.
    pub fn entries(&self) -> Vec<Arc<CachedToken>> {
        match self {
            Self::Fixed(entry) => vec![entry.clone()],
            Self::Rotating(rotation) => rotation.entries(),
        }
    }

    /// The entries of the secrets that its files had before, the last first, and until when passes made under these are
    /// accepted.
    pub fn former_entries(&self) -> Vec<(Arc<CachedToken>, Instant)> {
        match self {
            Self::Fixed(_) => Vec::new(),
            Self::Rotating(rotation) => rotation.former(),
        }
    }

    /// Its secrets, in the order of the configuration.
    pub fn secrets(&self) -> Vec<SourcedSecret> {
        match self {
            Self::Fixed(entry) => {
                vec![SourcedSecret { value: entry.credentials().secret.clone(), file: None }]
            }
            Self::Rotating(rotation) => rotation.secrets(),
        }
    }

    /// Whether this is the entry of one of its secrets.
    pub fn has_entry(&self, entry: &Arc<CachedToken>) -> bool {
        match self {
            Self::Fixed(known) => Arc::ptr_eq(known, entry),
            Self::Rotating(rotation) => rotation.entries().iter().any(|known| Arc::ptr_eq(known, entry)),
        }
    }

    /// Whether a file had another secret when it was read again.
    pub fn has_changed_files(&self) -> bool {
        matches!(self, Self::Rotating(rotation) if rotation.has_changed_files())
    }

    /// The company's corpid.
    pub fn corpid(&self) -> &str {
        match self {
            Self::Fixed(entry) => &entry.credentials().corpid,
            Self::Rotating(rotation) => rotation.corpid(),
        }
    }

    /// Calls `visit` with the entry of its first secret.
    pub fn with_first_entry<T>(&self, visit: impl FnOnce(&CachedToken) -> T) -> T {
        match self {
            Self::Fixed(entry) => visit(entry),
            Self::Rotating(rotation) => visit(&rotation.first()),
        }
    }

    /// The first result of `visit`, called with the entry in use, then with those of all its secrets, and then with those
    /// that its files had before, while passes made under these are accepted.
    pub fn find_entry<T>(&self, mut visit: impl FnMut(&CachedToken) -> Option<T>) -> Option<T> {
        match self {
            Self::Fixed(entry) => visit(entry),
            Self::Rotating(rotation) => {
                let found = visit(&rotation.serving());
                let found = found.or_else(|| rotation.entries().iter().find_map(|entry| visit(entry)));
                found.or_else(|| {
                    let now = Instant::now();
                    let former = rotation.former();
                    former.iter().filter(|(_, until)| now < *until).find_map(|(entry, _)| visit(entry))
                })
            }
        }
    }
}
