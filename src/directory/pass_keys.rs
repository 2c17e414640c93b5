//! The keys of one agent's passes.

use std::sync::{Arc, LazyLock, OnceLock};

use tokio::time::Instant;

use crate::{
    config::ClientKey,
    secret::Masked,
    tokens::{
        AgentToken,
        passes::{KeptPassKey, MAX_AGE, PassError, PassKey, UnverifiedPass},
    },
};

/// Secrets before the present one whose passes are accepted: of more changes within the lifetime of a pass, the last.
const MAX_PREVIOUS_KEYS: usize = 8;

/// The keys of one agent's passes, beside those under its secrets (`CachedToken::pass_key`).
#[derive(Default)]
pub(super) struct AgentPassKeys {
    /// Derived from `tokens.pass_key`; for passes bought with a client's key. Derived on first use, because there can
    /// be very many agents.
    of_pass_key: OnceLock<Box<PassKey>>,
    pass_key: Option<Arc<Masked>>,
    /// The agent's generation in the state; of a corp of a file that cancelled once, the one chosen then; 0 for others of a
    /// file.
    generation: u64,
    /// Derived from the secrets before, the last first, and until when they serve: then their last pass has expired.
    previous: Vec<(KeptPassKey, Instant)>,
}

impl AgentPassKeys {
    /// The keys of an agent with this token; `pass_key` is `tokens.pass_key`, `generation` that of
    /// [`crate::config::Origin`]. `before` has the keys and token of the same agent before its secrets were changed.
    pub(super) fn new(
        pass_key: Option<Arc<Masked>>,
        generation: u64,
        token: &AgentToken,
        before: Option<(&Self, &AgentToken)>,
    ) -> Self {
        let (now, entries) = (Instant::now(), token.entries());
        let mut previous = Vec::new();
        if let Some((keys, token)) = before {
            let replaced = token.entries().into_iter().map(|entry| (entry, now + MAX_AGE));
            let replaced = replaced.chain(token.former_entries());
            let replaced =
                replaced.filter(|(entry, _)| !entries.iter().any(|present| Arc::ptr_eq(present, entry)));
            previous.extend(replaced.map(|(entry, until)| (entry.kept_pass_key(), until)));
            previous.extend(keys.previous.iter().cloned());
        }
        previous.retain(|(_, until)| now < *until);
        previous.truncate(MAX_PREVIOUS_KEYS);
        previous.shrink_to_fit();
        Self { pass_key, generation, previous, ..Self::default() }
    }

    /// The same behind a pointer; those that most agents have, without any key of their own, are there once.
    pub(super) fn shared(self) -> Arc<Self> {
        static NONE: LazyLock<Arc<AgentPassKeys>> = LazyLock::new(Arc::default);
        match self.pass_key.is_none() && self.generation == 0 && self.previous.is_empty() {
            true => NONE.clone(),
            false => Arc::new(self),
        }
    }

    /// The generation that the keys are derived for.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The same keys for this generation.
    pub(super) fn of_generation(self: &Arc<Self>, generation: u64, token: &AgentToken) -> Arc<Self> {
        match self.generation == generation {
            true => self.clone(),
            false => self.renewed(generation, token, Some((&**self, token))).shared(),
        }
    }

    /// The keys of the same agent with another token and generation.
    pub(super) fn renewed(
        &self,
        generation: u64,
        token: &AgentToken,
        before: Option<(&Self, &AgentToken)>,
    ) -> Self {
        Self::new(self.pass_key.clone(), generation, token, before)
    }

    /// Issues a pass with `issue`: bought with a client's key, under `tokens.pass_key` or else the agent's first secret.
    pub(super) fn with_client_key<T>(&self, token: &AgentToken, issue: impl FnOnce(&PassKey) -> T) -> T {
        match &self.pass_key {
            Some(pass_key) => issue(self.of_pass_key(token.corpid(), pass_key)),
            None => token.with_first_entry(|entry| issue(entry.pass_key())),
        }
    }

    /// Verifies a pass at `now`, in seconds since 1970. `client_key` is `None` for a pass bought with the
    /// agent's secret.
    pub(super) fn verify(
        &self,
        token: &AgentToken,
        pass: &UnverifiedPass<'_>,
        client_key: Option<&ClientKey>,
        now: u64,
    ) -> Result<(), PassError> {
        if let (Some(pass_key), Some(_)) = (&self.pass_key, client_key) {
            return self.of_pass_key(token.corpid(), pass_key).verify(pass, client_key, now);
        }
        let verify = |key: &PassKey| {
            let verdict = key.verify(pass, client_key, now);
            (verdict != Err(PassError::Unverified)).then_some(verdict)
        };
        if let Some(verdict) = token.find_entry(|entry| verify(entry.pass_key())) {
            return verdict;
        }
        let serving = self.previous.iter().filter(|(_, until)| Instant::now() < *until);
        let mut verdicts = serving.filter_map(|(key, _)| verify(&key.to_pass_key()));
        verdicts.next().unwrap_or(Err(PassError::Unverified))
    }

    fn of_pass_key(&self, corpid: &str, pass_key: &Masked) -> &PassKey {
        self.of_pass_key
            .get_or_init(|| Box::new(PassKey::derive_from_pass_key(corpid, pass_key, self.generation)))
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, time::Duration};

    use tokio::{runtime::Handle, time::advance};

    use super::*;
    use crate::{
        config::UpstreamId,
        tokens::{Credentials, FetchError, FetchToken, RefreshSettings, TokenCache, passes::DecodeBuf},
        wecom::response::GettokenResponse,
    };

    const NOW: u64 = 1_790_000_000;

    /// Needed by no pass.
    struct NoGettoken;

    impl FetchToken for NoGettoken {
        fn fetch<'a>(
            &'a self,
            _: &'a Credentials,
        ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
            Box::pin(async { Err(FetchError::Cancelled) })
        }
    }

    fn token(cache: &Arc<TokenCache>, secret: &str) -> AgentToken {
        let credentials = Credentials {
            corpid: "ww1".into(),
            secret: Masked::new(secret),
            upstream: UpstreamId::default(),
            generation: 0,
        };
        AgentToken::new(cache, &"hr".into(), std::iter::once((credentials, None)), None, false)
    }

    #[tokio::test(start_paused = true)]
    async fn passes_under_a_changed_secret_serve_for_four_hours() {
        let settings = RefreshSettings { refresh_ahead: Duration::from_secs(300), renewals_per_hour: None };
        let cache = TokenCache::new(Box::new(NoGettoken), Handle::current(), settings);
        let (before, after) = (token(&cache, "before"), token(&cache, "after"));
        let keys = AgentPassKeys::new(None, 0, &before, None);
        let pass = keys.with_client_key(&before, |key| key.issue("hr", "", None, NOW));
        let keys = AgentPassKeys::new(None, 0, &after, Some((&keys, &before)));
        let verify = |now| {
            let mut scratch = DecodeBuf::default();
            let pass = UnverifiedPass::parse(pass.expose(), &mut scratch).expect("a pass");
            keys.verify(&after, &pass, None, now)
        };
        advance(MAX_AGE - Duration::from_secs(1)).await;
        assert_eq!(verify(NOW + MAX_AGE.as_secs() - 1), Ok(()));
        assert_eq!(verify(NOW + MAX_AGE.as_secs()), Err(PassError::Expired));
        // Also by the monotonic clock, whatever the wall clock says.
        advance(Duration::from_secs(1)).await;
        assert_eq!(verify(NOW), Err(PassError::Unverified));
    }
}
