//! A configuration together with the files that it names.

use std::sync::Arc;

use crate::{
    config::{self, Config},
    server::tls,
    store,
    telemetry::traces::{Collector, CollectorError},
    upstream::{Settings, UpstreamSetupError},
};

/// A configuration whose certificates, store and collector are read and usable.
pub struct PreparedConfig {
    pub(super) config: Config,
    pub(super) upstream: Arc<Settings>,
    pub(super) tls: Option<Arc<tls::TlsTermination>>,
    pub(super) store: Option<store::PreparedStore>,
    pub(super) collector: Option<Collector>,
}

/// A part of the configuration that is valid, but names something unusable.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `[upstream]`.
    #[error(transparent)]
    Upstream(#[from] UpstreamSetupError),
    /// `[server.tls]`.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// `tokens.store`.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// `[admin.otlp]`.
    #[error(transparent)]
    Collector(#[from] CollectorError),
}

impl PreparedConfig {
    /// Reads the certificates that the configuration names. Opens no connection.
    pub fn new(config: Config) -> Result<Self, SetupError> {
        let upstream = Arc::new(Settings::new(&config.upstream)?);
        let tls = config.server.tls.as_ref().map(tls::load_termination).transpose()?;
        let store = match &config.tokens.store {
            config::StoreConfig::Memory => None,
            config::StoreConfig::Redis(redis) => Some(store::PreparedStore::new(redis)?),
        };
        let otlp = config.admin.as_ref().and_then(|admin| admin.otlp.as_ref());
        let collector = otlp.map(Collector::new).transpose()?;
        Ok(Self { config, upstream, tls, store, collector })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The settings of connections to WeCom.
    pub fn upstream(&self) -> &Arc<Settings> {
        &self.upstream
    }

    /// The settings of the log.
    pub fn log(&self) -> config::LogConfig {
        self.config.log
    }

    /// Settings that are valid but not advisable.
    pub fn warnings(&self) -> &[config::Warning] {
        &self.config.warnings
    }
}
