//! Limits and settings of the proxy, and those of each upstream.

use std::{sync::Arc, time::Duration};

use crate::{
    callbacks::Callbacks,
    config,
    limits::{
        address_limit::AddressLimit, concurrency_limit::ConcurrencyLimit, quotas::Quotas,
        wait_limit::WaitLimit,
    },
    request_body::{BodyLimits, ReplayBudget},
    state::State,
    suites::Suites,
    upstream,
};

/// Limits and settings shared by all workers.
pub struct ProxySettings {
    /// The suites at run time.
    pub suites: Arc<Suites>,
    /// Errcodes that mean the token is no longer valid.
    pub refresh_errcodes: Vec<i64>,
    /// Limits of request bodies.
    pub body_limits: BodyLimits,
    /// Memory and disk budget of bodies buffered for a retry.
    pub replay_budget: Arc<ReplayBudget>,
    /// Limits JS-SDK signatures without a key.
    pub signature_limit: AddressLimit,
    /// Where requests with `Idempotency-Key` are kept; `None` without `[state]`.
    pub state: Option<Arc<State>>,
    /// WeCom's quotas.
    pub quotas: Arc<Quotas>,
    /// By the index of [`config::UpstreamId`]; never empty.
    pub upstreams: Vec<UpstreamSettings>,
    /// Receiver URLs, where there is a state to keep messages in.
    pub callbacks: Option<Arc<Callbacks>>,
}

/// Limits and settings of the requests to one upstream.
pub struct UpstreamSettings {
    /// Its connections.
    pub connections: Arc<upstream::Settings>,
    /// Limit of requests in flight.
    pub in_flight: Arc<ConcurrencyLimit>,
    /// Limit of requests that wait for a token or a ticket.
    pub wait_limit: WaitLimit,
    /// Maximum wait for an in-flight permit, and for a quota.
    pub queue_timeout: Duration,
    /// How long a repeat with `Idempotency-Key` waits for the first: `response_timeout`.
    pub response_timeout: Duration,
    /// Whether each body is received completely before it is sent, because the upstream requires `Content-Length`.
    pub require_length: bool,
    /// `host[:port]`, accepted in absolute-form targets: clients send these that are configured to use this proxy as a
    /// forward proxy.
    pub authority: String,
}

impl UpstreamSettings {
    /// The limits and settings of an upstream with these connections.
    pub fn new(connections: Arc<upstream::Settings>, config: &config::UpstreamConfig) -> Self {
        Self {
            connections,
            in_flight: Arc::new(ConcurrencyLimit::new(config.max_in_flight)),
            wait_limit: WaitLimit::new(config.max_in_flight),
            queue_timeout: config.queue_timeout,
            response_timeout: config.response_timeout,
            require_length: config.require_length,
            authority: config.authority.clone(),
        }
    }
}
