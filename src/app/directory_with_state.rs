//! The directory, with the records of the state in force.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use crate::{
    config::{self, Config},
    directory::{Directory, DirectoryUpdater},
    limits::RateLimiterFactory,
    state::{OpenError, State, StateDelivery},
    suites::Suites,
    tokens::TokenCache,
};

/// The directory, what changes it, and the state that does.
pub(super) struct DirectoryWithState {
    pub(super) directory: Arc<ArcSwap<Directory>>,
    pub(super) updater: Arc<DirectoryUpdater>,
    pub(super) suites: Arc<Suites>,
    pub(super) state: Option<Arc<State>>,
}

impl DirectoryWithState {
    /// Builds the directory with the entries of the files, and applies the records of the state.
    pub(super) fn open(config: &mut Config, token_cache: &Arc<TokenCache>) -> Result<Self, OpenError> {
        let suites = Arc::new(Suites::default());
        let (directory, updater) = build_directory(config, token_cache);
        let state = open_state(config, &updater, &suites)?;
        if let Some(state) = &state {
            let limits = rate_limiters(token_cache);
            suites.attach(state.clone(), directory.clone(), token_cache.clone(), limits);
        }
        config.warnings = Vec::new();
        Ok(Self { directory, updater, suites, state })
    }

    /// Refuses a proxy that would be open on an address that other machines can reach. Where the state is not known yet,
    /// it starts closed instead: it most likely has clients.
    pub(super) fn reject_unintended_open(&self, config: &Config) -> Result<(), config::Error> {
        let directory = self.directory.load();
        if !directory.is_complete() {
            tracing::error!(
                "the shared state does not respond, so what it has is not known yet: requests that need it get 503"
            );
        }
        if directory.has_clients() {
            return Ok(());
        }
        match config.reject_open_on_public_address() {
            Err(_) if !directory.is_complete() => {
                self.updater.forbid_open();
                Ok(())
            }
            outcome => outcome,
        }
    }
}

/// The directory with the entries of the files, and what replaces it.
fn build_directory(
    config: &mut Config,
    token_cache: &Arc<TokenCache>,
) -> (Arc<ArcSwap<Directory>>, Arc<DirectoryUpdater>) {
    let limits = rate_limiters(token_cache);
    let directory = Arc::new(ArcSwap::from_pointee(Directory::new(config, token_cache, &limits)));
    let updater = DirectoryUpdater::new(directory.clone(), token_cache.clone(), limits);
    (directory, Arc::new(updater))
}

/// The state, where there is one. Its records must be in force before the first request is served.
fn open_state(
    config: &Config,
    updater: &Arc<DirectoryUpdater>,
    suites: &Arc<Suites>,
) -> Result<Option<Arc<State>>, OpenError> {
    let open = |state| {
        let (updater, suites) = (updater.clone(), suites.clone());
        let apply = move |delivery: StateDelivery<'_>| {
            let corps = updater.apply_records(delivery);
            suites.apply_records(delivery.records);
            suites.apply_names(&corps);
        };
        State::open(state, Box::new(apply))
    };
    config.state.as_ref().map(open).transpose()
}

/// The rate limiters of the replicas together where there is a store, else of this process.
fn rate_limiters(token_cache: &TokenCache) -> RateLimiterFactory {
    token_cache
        .store()
        .map(|store| RateLimiterFactory::with_store(store, &Handle::current()))
        .unwrap_or_default()
}
