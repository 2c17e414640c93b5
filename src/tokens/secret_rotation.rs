//! Two secrets of one agent, or a secret whose file may change: which is used, and which is tried where WeCom refuses it.
//!
//! Each secret has a cache entry with a backoff of its own. After WeCom refused the preferred secret, the files are
//! read again and one more secret is tried: the one that has changed, or else the other one. A third one is tried only
//! when the preferred secret was refused once more after its backoff. The secret that works is preferred from then on.
//! A refresh never waits for that of another secret, so that two agents with the same secrets in reverse order do not
//! wait for each other.

mod secret_files;

use std::{
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{CachedToken, FetchError, Outcome, PathKey, ReplaceOutcome, Token, TokenCache, TokenStatus};
use crate::{config::SourcedSecret, text::SharedStr};

/// Secrets that a file had before and whose passes are accepted: of more changes within the lifetime of a pass, the last.
const MAX_FORMER_SECRETS: usize = 8;

/// The secrets of one agent. See the module.
pub struct SecretRotation {
    agent_name: SharedStr,
    corpid: SharedStr,
    cache: Weak<TokenCache>,
    /// The entry whose token serves. It may have been taken out of `secrets`; then it serves until its token expires.
    serving: ArcSwap<CachedToken>,
    has_changed_files: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// In the order of the configuration; never empty.
    secrets: Vec<Secret>,
    /// The index of the secret that is tried first.
    preferred: usize,
    /// What is tried after the last refusal of the preferred secret.
    second: Option<Second>,
    /// Secrets that a file had before, the last first, and until when their passes are accepted.
    former: Vec<(Arc<CachedToken>, Instant)>,
}

struct Secret {
    entry: Arc<CachedToken>,
    file: Option<PathBuf>,
}

/// The secret to be tried after a refusal of the preferred one.
struct Second {
    entry: Arc<CachedToken>,
    /// WeCom refused it too.
    is_refused: bool,
}

impl SecretRotation {
    /// The rotation of these secrets; `in_use` is the secret that the agent used before a reload, and that stays in
    /// use if it is among them.
    pub(super) fn new(
        cache: &Arc<TokenCache>,
        agent: &SharedStr,
        secrets: Vec<(Arc<CachedToken>, Option<PathBuf>)>,
        in_use: Option<&Arc<CachedToken>>,
    ) -> Arc<Self> {
        let secrets: Vec<_> = secrets.into_iter().map(|(entry, file)| Secret { entry, file }).collect();
        let kept =
            in_use.and_then(|in_use| secrets.iter().position(|secret| Arc::ptr_eq(&secret.entry, in_use)));
        let is_usable = |secret: &Secret| !secret.entry.is_refused_secret();
        let preferred = kept
            .filter(|kept| is_usable(&secrets[*kept]))
            .or_else(|| secrets.iter().position(is_usable))
            .or(kept)
            .unwrap_or_default();
        let rotation = Arc::new(Self {
            agent_name: agent.clone(),
            corpid: secrets[preferred].entry.credentials().corpid.clone(),
            cache: Arc::downgrade(cache),
            serving: ArcSwap::new(secrets[preferred].entry.clone()),
            has_changed_files: AtomicBool::new(false),
            state: Mutex::new(State { secrets, preferred, second: None, former: Vec::new() }),
        });
        for entry in rotation.entries() {
            entry.add_rotation(&rotation);
        }
        rotation
    }

    /// Whether it has these secrets now, from these files.
    pub(super) fn has_secrets(&self, secrets: &[(Arc<CachedToken>, Option<PathBuf>)]) -> bool {
        let state = self.state.lock();
        state.secrets.len() == secrets.len()
            && state
                .secrets
                .iter()
                .zip(secrets)
                .all(|(known, (entry, file))| Arc::ptr_eq(&known.entry, entry) && known.file == *file)
    }

    pub(super) fn serving(&self) -> Guard<Arc<CachedToken>> {
        self.serving.load()
    }

    /// The entry that is tried first.
    pub(super) fn preferred(&self) -> Arc<CachedToken> {
        let state = self.state.lock();
        state.secrets[state.preferred].entry.clone()
    }

    /// The secrets in the order of the configuration.
    pub(super) fn secrets(&self) -> Vec<SourcedSecret> {
        let sourced = |Secret { entry, file }: &Secret| SourcedSecret {
            value: entry.credentials().secret.clone(),
            file: file.clone(),
        };
        self.state.lock().secrets.iter().map(sourced).collect()
    }

    /// Whether a file had another secret when it was read again. Takes no lock.
    pub(super) fn has_changed_files(&self) -> bool {
        self.has_changed_files.load(Ordering::Relaxed)
    }

    pub(super) fn corpid(&self) -> &str {
        &self.corpid
    }

    /// The entry of the first secret.
    pub(super) fn first(&self) -> Arc<CachedToken> {
        self.state.lock().secrets[0].entry.clone()
    }

    /// The entries in the order of the configuration.
    pub(super) fn entries(&self) -> Vec<Arc<CachedToken>> {
        self.state.lock().secrets.iter().map(|secret| secret.entry.clone()).collect()
    }

    /// Secrets that a file had before, and until when their passes are accepted.
    pub(super) fn former(&self) -> Vec<(Arc<CachedToken>, Instant)> {
        self.state.lock().former.clone()
    }

    /// The valid token; fetches one if there is none.
    pub(super) async fn current_or_fetch(self: &Arc<Self>) -> Outcome {
        if let Some(token) = self.serving().cached(Instant::now()) {
            return Ok(token);
        }
        let first = self.preferred();
        match first.current_or_fetch().await {
            Ok(token) => {
                self.serve_from(&first);
                Ok(token)
            }
            Err(failure) => self.try_next(&first, failure).await,
        }
    }

    /// Replaces a token that WeCom refused on this path.
    pub(super) async fn replace_refused(self: &Arc<Self>, refused: &Token, path: PathKey) -> ReplaceOutcome {
        let first = self.preferred();
        let serving = self.serving.load_full();
        if !Arc::ptr_eq(&serving, &first) {
            // The secret of the token that serves was taken out, so it buys no other token.
            serving.mark_refused(refused, path);
        }
        match first.replace_refused(refused, path).await {
            ReplaceOutcome::Unavailable(failure) => {
                ReplaceOutcome::from_outcome(self.try_next(&first, failure).await, refused)
            }
            outcome @ (ReplaceOutcome::Refreshed(_) | ReplaceOutcome::Unchanged(_)) => {
                self.serve_from(&first);
                outcome
            }
            outcome @ ReplaceOutcome::Throttled(_) => outcome,
        }
    }

    /// Fetches a token in spite of backoff, because an operator requested it.
    pub(super) async fn force_refresh(self: &Arc<Self>) -> Outcome {
        let first = self.preferred();
        let failure = match first.force_refresh().await {
            Ok(token) => {
                self.serve_from(&first);
                return Ok(token);
            }
            Err(failure) if !failure.is_credential_error() => return Err(failure),
            Err(failure) => failure,
        };
        let Some(second) = self.next_after(&first) else { return Err(failure) };
        // The end of the refresh of `first` may have tried it already.
        let outcome = match (second.cached(Instant::now()), second.backoff().last_failure()) {
            (Some(token), _) => Ok(token),
            (None, Some(later)) if self.has_refused_second() => Err(later),
            (None, _) => second.force_refresh().await,
        };
        self.finish_second(&second, outcome, failure)
    }

    /// Tries the selected secret after `first`, which was preferred, failed for a request.
    async fn try_next(self: &Arc<Self>, first: &Arc<CachedToken>, failure: Arc<FetchError>) -> Outcome {
        if !failure.is_credential_error() {
            return Err(failure);
        }
        let Some(next) = self.next_after(first) else { return Err(failure) };
        self.finish_second(&next, next.current_or_fetch().await, failure)
    }

    /// Tries the selected secret after `first` failed.
    async fn try_second(self: &Arc<Self>, first: &Arc<CachedToken>, failure: Arc<FetchError>) -> Outcome {
        if !failure.is_credential_error() {
            return Err(failure);
        }
        let Some(second) = self.second_after(first) else { return Err(failure) };
        self.finish_second(&second, second.current_or_fetch().await, failure)
    }

    fn finish_second(
        &self,
        second: &Arc<CachedToken>,
        outcome: Outcome,
        failure: Arc<FetchError>,
    ) -> Outcome {
        match outcome {
            Ok(token) => {
                self.serve_from(second);
                Ok(token)
            }
            Err(later) if later.is_credential_error() => Err(later),
            Err(_) => Err(failure),
        }
    }

    /// The secret to be tried after `first`; `None`: there is none, or `first` is itself that one.
    fn second_after(&self, first: &Arc<CachedToken>) -> Option<Arc<CachedToken>> {
        let state = self.state.lock();
        let second = state.second.as_ref().map(|second| &second.entry);
        second.filter(|second| !Arc::ptr_eq(second, first)).cloned()
    }

    /// The same, or the secret that is preferred by now: while a request waited for `first`, it may have been found to work.
    fn next_after(&self, first: &Arc<CachedToken>) -> Option<Arc<CachedToken>> {
        let state = self.state.lock();
        let second = state.second.as_ref().map(|second| &second.entry);
        let mut candidates = second.into_iter().chain([&state.secrets[state.preferred].entry]);
        candidates.find(|next| !Arc::ptr_eq(next, first)).cloned()
    }

    /// Selects the secret to be tried after WeCom refused `refused`: the one that a file has now, or else the other one.
    /// Returns whether it is the former. Nothing is selected after the refusal of the selected secret itself.
    async fn select_second(self: &Arc<Self>, refused: &Arc<CachedToken>) -> bool {
        {
            let mut state = self.state.lock();
            if let Some(second) = &mut state.second
                && Arc::ptr_eq(&second.entry, refused)
                && !second.is_refused
            {
                second.is_refused = true;
                return false;
            }
            if !Arc::ptr_eq(&state.secrets[state.preferred].entry, refused) {
                return false;
            }
            state.second = None;
        }
        let has_changed = self.read_files_again().await;
        let mut state = self.state.lock();
        let next = match has_changed {
            true => Some(state.secrets[state.preferred].entry.clone()),
            false => state.other_than(refused),
        };
        state.second = next.map(|entry| Second { entry, is_refused: false });
        has_changed
    }

    /// Uses the token of this entry from now on.
    fn serve_from(&self, entry: &Arc<CachedToken>) {
        let mut state = self.state.lock();
        let Some(position) = state.secrets.iter().position(|secret| Arc::ptr_eq(&secret.entry, entry)) else {
            return;
        };
        (state.preferred, state.second) = (position, None);
        if !Arc::ptr_eq(&self.serving.load(), entry) {
            // Without its use by this agent, its token is not refreshed before it expires.
            self.serving.swap(entry.clone()).used.store(false, Ordering::Relaxed);
            let (agent, of) = (self.agent_name.as_str(), state.secrets.len());
            tracing::info!(
                agent,
                secret = position + 1,
                of,
                "another secret of the agent works and is used now"
            );
        }
    }

    /// The state for operators: of the token that serves, and of the secret that is tried first.
    pub(super) fn status(&self) -> TokenStatus {
        let (serving, preferred) = (self.serving.load_full(), self.preferred());
        let serving_status = serving.status();
        if Arc::ptr_eq(&serving, &preferred) {
            return serving_status;
        }
        let TokenStatus { usable, refused, first_seen_and_expiry, .. } = serving_status;
        TokenStatus { usable, refused, first_seen_and_expiry, ..preferred.status() }
    }

    fn has_refused_second(&self) -> bool {
        self.state.lock().second.as_ref().is_some_and(|second| second.is_refused)
    }
}

impl State {
    fn other_than(&self, entry: &Arc<CachedToken>) -> Option<Arc<CachedToken>> {
        let mut entries = self.secrets.iter().map(|secret| &secret.entry);
        entries.find(|other| !Arc::ptr_eq(other, entry)).cloned()
    }
}

impl CachedToken {
    /// Registers a rotation that has this secret.
    pub(super) fn add_rotation(&self, rotation: &Arc<SecretRotation>) {
        let mut rotations = self.rotations.get_or_init(Box::default).lock();
        rotations
            .retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), &raw const **rotation));
        rotations.push(Arc::downgrade(rotation));
    }

    fn rotations(&self) -> Vec<Arc<SecretRotation>> {
        let Some(rotations) = self.rotations.get() else { return Vec::new() };
        rotations.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Decides what is tried next, after WeCom refused this secret and before the refresh ends. Returns whether its
    /// file has another secret now, so that the refusal is no failure of the agent.
    pub(super) async fn select_next_secret(self: &Arc<Self>) -> bool {
        let mut is_superseded = false;
        for rotation in self.rotations() {
            is_superseded |= rotation.select_second(self).await;
        }
        is_superseded
    }

    /// Tries the secrets that [`CachedToken::select_next_secret`] selected, after the refresh has ended: no request may
    /// wait for it.
    pub(super) async fn try_next_secret(self: &Arc<Self>, failure: &Arc<FetchError>) {
        for rotation in self.rotations() {
            let _ = rotation.try_second(self, failure.clone()).await;
        }
    }

    /// Marks the current token as refused on this path, if it is this one.
    fn mark_refused(&self, refused: &Token, path: PathKey) {
        if let Some(current) = self.current.load().as_ref().filter(|current| current.is_same_as(refused)) {
            current.mark_refused_on(path);
        }
    }

    /// Whether WeCom refused this secret when it was last tried.
    fn is_refused_secret(&self) -> bool {
        self.state.lock().backoff.last_failure().is_some_and(|failure| failure.is_credential_error())
    }
}
