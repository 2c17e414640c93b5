//! The settings of the proxy, from the configuration.

use std::{sync::Arc, time::Duration};

use crate::{
    callbacks::Callbacks,
    config::{Config, RateLimit},
    limits::{address_limit::AddressLimit, quotas::Quotas},
    proxy::{ProxySettings, UpstreamSettings},
    request_body::{BodyLimits, ReplayBudget},
    state::State,
    suites::Suites,
    upstream::Settings,
};

/// JS-SDK signatures without a client's key, for each address.
const SIGNATURES_PER_ADDRESS: RateLimit = RateLimit { requests: 60, per: Duration::from_secs(60) };

/// The settings that this configuration gives the proxy.
pub(super) fn proxy_settings(
    config: &Config,
    upstreams: &[Arc<Settings>],
    callbacks: Option<Arc<Callbacks>>,
    state: Option<Arc<State>>,
    suites: Arc<Suites>,
) -> ProxySettings {
    let replay_dir = config.replay.dir.clone().unwrap_or_else(std::env::temp_dir);
    let upstreams = config.all_upstreams().zip(upstreams);
    ProxySettings {
        suites,
        refresh_errcodes: config.tokens.refresh_errcodes.clone(),
        body_limits: BodyLimits {
            max_bytes: config.server.max_request_body,
            idle_timeout: config.server.body_timeout,
        },
        replay_budget: Arc::new(ReplayBudget::new(config.replay.memory, config.replay.disk, replay_dir)),
        signature_limit: AddressLimit::new(SIGNATURES_PER_ADDRESS),
        quotas: Quotas::new(&config.quotas),
        state,
        upstreams: upstreams
            .map(|((_, config), connections)| UpstreamSettings::new(connections.clone(), config))
            .collect(),
        callbacks,
    }
}
