//! A configuration together with the files that it names.

use std::{io, sync::Arc};

use crate::{
    callbacks,
    config::{self, Config},
    display_text, format_text,
    server::tls,
    store,
    telemetry::traces::{Collector, CollectorError},
    text::Text,
    upstream::{Settings, UpstreamSetupError},
};

/// A configuration whose certificates, store and collector are read and usable.
pub struct PreparedConfig {
    pub(super) config: Config,
    pub(super) upstreams: Vec<Arc<Settings>>,
    pub(super) tls: Option<Arc<tls::TlsTermination>>,
    pub(super) store: Option<store::PreparedStore>,
    pub(super) collector: Option<Collector>,
}

/// A part of the configuration that is valid, but names something unusable.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `[upstream]` or one of `[upstreams.*]`.
    Upstream(#[from] UpstreamSetupError),
    /// `[server.tls]`.
    Tls(#[from] tls::TlsError),
    /// `tokens.store`.
    Store(#[from] store::StoreError),
    /// `[callbacks.*]`.
    Callbacks(#[from] io::Error),
    /// `admin.otlp`.
    Collector(#[from] CollectorError),
}

display_text!(SetupError);

impl SetupError {
    fn text(&self) -> Text {
        match self {
            Self::Upstream(error) => error.text(),
            Self::Tls(error) => error.text(),
            Self::Store(error) => error.text(),
            Self::Callbacks(error) => Text::of(error),
            Self::Collector(error) => error.text(),
        }
    }
}

impl PreparedConfig {
    /// Reads the certificates that the configuration names. Opens no connection.
    pub fn new(mut config: Config) -> Result<Self, SetupError> {
        let upstreams =
            config.all_upstreams().map(|(id, upstream)| Settings::new(id, upstream).map(Arc::new));
        let upstreams = upstreams.collect::<Result<_, _>>()?;
        let tls = config.server.tls.as_ref().map(tls::load_termination).transpose()?;
        if let Some(message) = tls.as_ref().and_then(|tls| tls.warning()) {
            let (file, key) = (config.path.as_path().into(), Some("server.tls.cert".to_owned()));
            config.warnings.push(config::Warning { file, line: None, key, message });
        }
        callbacks::check_targets(&config.callbacks)?;
        let store = match &config.tokens.store {
            config::StoreConfig::Memory => None,
            config::StoreConfig::Redis(redis) => Some(store::PreparedStore::new(redis)?),
        };
        let collector = match config.traces.as_ref().map(Collector::new).transpose() {
            // As every value of the environment that cannot be used.
            Err(error @ CollectorError::Certificate(_)) => {
                let file = config.path.as_path().into();
                let message = format_text!("{}; no traces are exported", "{}；不导出链路追踪", error);
                config.warnings.push(config::Warning { file, line: None, key: None, message });
                None
            }
            collector => collector?,
        };
        Ok(Self { config, upstreams, tls, store, collector })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The settings of connections to each upstream, by its index.
    pub fn upstreams(&self) -> &[Arc<Settings>] {
        &self.upstreams
    }

    /// The settings of the log.
    pub fn log(&self) -> &config::LogConfig {
        &self.config.log
    }

    /// Settings that are valid but not advisable.
    pub fn warnings(&self) -> &[config::Warning] {
        &self.config.warnings
    }
}
