//! The result of the last reload, for `/readyz` and the metrics.

use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{settings::SettingsInForce, unix_seconds};
use crate::{config::Config, telemetry::metrics::TextEncoder};

/// The last load of the configuration; the start counts as a successful one.
#[derive(Debug)]
pub struct LastReload {
    result: Mutex<LoadResult>,
    /// The settings in force.
    pub settings: SettingsInForce,
}

#[derive(Debug)]
struct LoadResult {
    /// When the last load succeeded.
    succeeded_at: SystemTime,
    /// Why the last load failed, if it did.
    failure: Option<String>,
}

impl LastReload {
    /// The start with this configuration.
    pub fn of_start(config: &Config) -> Self {
        let result = Mutex::new(LoadResult { succeeded_at: SystemTime::now(), failure: None });
        Self { result, settings: SettingsInForce::new(config) }
    }

    /// Records the result of a reload.
    pub fn record<T, E: ToString>(&self, outcome: &Result<T, E>) {
        let mut last = self.result.lock();
        match outcome {
            Ok(_) => *last = LoadResult { succeeded_at: SystemTime::now(), failure: None },
            Err(error) => last.failure = Some(error.to_string()),
        }
    }

    /// Whether the file in use is the one on disk, as far as a reload has seen it.
    pub(super) fn to_json(&self) -> Value {
        let last = self.result.lock();
        json!({
            "ok": last.failure.is_none(),
            "loaded_at": unix_seconds(last.succeeded_at),
            "failure": last.failure,
        })
    }

    pub(super) fn is_ok(&self) -> bool {
        self.result.lock().failure.is_none()
    }

    pub(super) fn write_metrics(&self, text: &mut TextEncoder) {
        let last = self.result.lock();
        let help = "1 if the last reload of the configuration succeeded, 0 if it failed and the one before is in use.";
        let name = "wecom_proxy_config_last_reload_successful";
        text.write_single(name, "gauge", help, u8::from(last.failure.is_none()));
        let help = "When the configuration in use was loaded, in seconds since 1970.";
        let name = "wecom_proxy_config_last_reload_success_timestamp_seconds";
        text.write_single(name, "gauge", help, unix_seconds(last.succeeded_at));
    }
}
