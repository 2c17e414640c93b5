//! `/api/config`: the settings in force, without secrets, and which of them need a restart.

use std::collections::BTreeMap;

use http::{Response, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    Admin,
    response::{AdminBody, json_response},
};
use crate::config::{self, Config};

/// The settings that a reload applies; those that end with a dot stand for all that begin with them.
const RELOADED: [&str; 7] = [
    "log.level",
    "quotas.",
    "server.client_address",
    "server.open",
    "server.proxy_protocol",
    "server.tls",
    "server.trusted_proxies",
];

/// The settings in force.
#[derive(Debug)]
pub struct SettingsInForce {
    settings: Mutex<BTreeMap<String, Setting>>,
    /// Where traces are sent: name, value and source of each setting.
    traces: Vec<(&'static str, String, &'static str)>,
}

#[derive(Debug)]
struct Setting {
    value: Value,
    /// The file has another value since the start.
    is_changed: bool,
}

impl SettingsInForce {
    /// Those of the start.
    pub fn new(config: &Config) -> Self {
        let settings = flat_settings(config).into_iter();
        let settings = settings.map(|(key, value)| (key, Setting { value, is_changed: false }));
        let traces = config.traces.as_ref().map(|traces| traces.shown.clone()).unwrap_or_default();
        Self { settings: Mutex::new(settings.collect()), traces }
    }

    /// Takes over what a reload applies, and notes what the file has otherwise.
    pub fn reload(&self, loaded: &Config) {
        let mut settings = self.settings.lock();
        let mut loaded = flat_settings(loaded);
        for (key, setting) in &mut *settings {
            let in_file = loaded.remove(key).unwrap_or(Value::Null);
            match needs_restart(key) {
                true => setting.is_changed = in_file != setting.value,
                false => setting.value = in_file,
            }
        }
        for (key, value) in loaded {
            let is_changed = needs_restart(&key);
            let value = if is_changed { Value::Null } else { value };
            settings.insert(key, Setting { value, is_changed });
        }
    }

    fn to_json(&self) -> Value {
        let settings = self.settings.lock();
        let settings = settings.iter().map(|(key, setting)| {
            json!({
                "key": key,
                "value": setting.value,
                "needs_restart": needs_restart(key),
                "changed": setting.is_changed,
            })
        });
        let traces = self.traces.iter();
        let traces =
            traces.map(|(name, value, source)| json!({ "name": name, "value": value, "source": source }));
        json!({ "settings": settings.collect::<Vec<_>>(), "traces": traces.collect::<Vec<_>>() })
    }
}

impl Admin {
    /// The settings in force.
    pub(super) fn config(&self) -> Response<AdminBody> {
        json_response(StatusCode::OK, &self.last_reload.settings.to_json())
    }
}

fn needs_restart(key: &str) -> bool {
    let is_reloaded =
        |reloaded: &&str| key == *reloaded || (reloaded.ends_with('.') && key.starts_with(*reloaded));
    let is_ca_file = key.starts_with("upstream") && key.ends_with(".ca_file");
    !is_ca_file && !RELOADED.iter().any(is_reloaded)
}

/// The settings by their dotted keys.
fn flat_settings(config: &Config) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (section, table) in config::effective_settings(config) {
        let Value::Object(table) = table else { continue };
        for (key, value) in table {
            match (&*section, value) {
                ("upstreams", Value::Object(upstream)) => {
                    let settings = upstream.into_iter();
                    flat.extend(settings.map(|(name, value)| (format!("{section}.{key}.{name}"), value)));
                }
                (_, value) => drop(flat.insert(format!("{section}.{key}"), value)),
            }
        }
    }
    flat
}
