//! The `[upstream]` section as used: trusted roots loaded, names parsed.

use std::time::Duration;

use arc_swap::ArcSwap;
use http::uri;
use rustls::pki_types::ServerName;

use super::{
    UpstreamSetupError, egress_proxies::EgressProxies, http1_only::Http1OnlyAddresses,
    open_connection::OpenConnections, suspects::SuspectConnections, trust::Trust,
};
use crate::config::{self, UpstreamId};

/// Where requests go, and the timeout of each step.
pub struct Settings {
    pub(super) id: UpstreamId,
    pub(super) tls: Option<UpstreamTls>,
    pub(super) host: String,
    pub(super) port: u16,
    /// Value of `Host`.
    pub(super) authority: String,
    /// What stands before each path.
    pub(super) path_prefix: String,
    pub(super) egress_proxies: EgressProxies,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) body_timeout: Duration,
    pub(super) idle_timeout: Duration,
    /// Zero: no probes.
    pub(super) tcp_keepalive: Duration,
    pub(super) max_age: Duration,
    /// Told to the pools of all workers.
    pub(super) suspects: SuspectConnections,
    pub(super) http1_only: Http1OnlyAddresses,
    pub(super) open_connections: OpenConnections,
}

/// TLS towards the upstream.
pub(super) struct UpstreamTls {
    pub(super) server_name: ServerName<'static>,
    /// [`Settings::authority`] for HTTP/2.
    pub(super) authority: uri::Authority,
    /// Replaced when `ca_file` has changed.
    pub(super) trust: ArcSwap<Trust>,
}

impl Settings {
    /// Builds the settings from the configuration section; reads `ca_file`. Errors: [`UpstreamSetupError`].
    pub fn new(id: UpstreamId, upstream: &config::UpstreamConfig) -> Result<Self, UpstreamSetupError> {
        let tls = match upstream.tls {
            false => None,
            true => {
                let host = upstream.host.trim_end_matches('.').to_owned();
                let invalid =
                    || UpstreamSetupError::ServerName { section: id.section(), host: upstream.host.clone() };
                let server_name = ServerName::try_from(host).map_err(|_| invalid())?;
                let authority = upstream.authority.parse().map_err(|_| invalid())?;
                let key = format!("{}.ca_file", id.section());
                let trust = ArcSwap::from_pointee(Trust::new(upstream.ca_file.as_deref(), &key)?);
                Some(UpstreamTls { server_name, authority, trust })
            }
        };
        Ok(Self {
            id,
            tls,
            host: upstream.host.clone(),
            port: upstream.port,
            authority: upstream.authority.clone(),
            path_prefix: upstream.path_prefix.clone(),
            egress_proxies: EgressProxies::new(&upstream.via),
            connect_timeout: upstream.connect_timeout,
            response_timeout: upstream.response_timeout,
            body_timeout: upstream.body_timeout,
            idle_timeout: upstream.idle_timeout,
            tcp_keepalive: upstream.tcp_keepalive,
            max_age: upstream.max_age,
            suspects: SuspectConnections::default(),
            http1_only: Http1OnlyAddresses::default(),
            open_connections: OpenConnections::default(),
        })
    }

    /// Takes the trusted certificates from settings that were read again. Returns whether they have changed; then idle
    /// connections are closed, and those with requests after these.
    pub fn replace_trust(&self, loaded: &Self) -> bool {
        let (Some(current), Some(loaded)) = (&self.tls, &loaded.tls) else { return false };
        let trust = loaded.trust.load_full();
        if current.trust.load().listed_certificates == trust.listed_certificates {
            return false;
        }
        current.trust.store(trust);
        self.suspects.retire_all();
        true
    }

    /// Which upstream it is.
    pub fn id(&self) -> &UpstreamId {
        &self.id
    }

    /// The number of open connections, of all workers.
    pub fn open_connections(&self) -> usize {
        self.open_connections.count()
    }

    /// The authority of each egress proxy, and whether the last connection through it succeeded.
    pub fn egress_proxies(&self) -> impl Iterator<Item = (String, bool)> {
        self.egress_proxies.iter().map(|(proxy, is_up)| (proxy.authority(), is_up))
    }

    /// The longest that connecting may take, over one route after the other.
    pub fn max_connect_time(&self) -> Duration {
        let routes = u32::try_from(self.egress_proxies.len()).unwrap_or(u32::MAX).max(1);
        self.connect_timeout.saturating_mul(routes)
    }

    /// Longest time to a response's head.
    pub fn response_timeout(&self) -> Duration {
        self.response_timeout
    }
}
