//! A receiver of messages, as configured now; it stays the same over reloads, so that one task delivers to it.

use std::{collections::BTreeMap, io, sync::Arc};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    counters::{DeliveryCounts, LastMinute},
    handoff::EventHandoff,
    status::DeliveryStatus,
    target_client::TargetClient,
};
use crate::{
    config::{CallbackConfig, CallbackTarget, DeliveryMethod, TargetForm},
    format_text,
    secret::Masked,
    text,
    text::TextError,
    wecom::callback::crypto::CallbackKeys,
};

/// A target of a callback.
pub(super) struct Target {
    pub(super) callback: String,
    pub(super) name: String,
    /// `None` once a reload has removed the target.
    pub(super) settings: ArcSwapOption<TargetSettings>,
    /// Wakes what waits for messages or other settings.
    pub(super) changed: watch::Sender<()>,
    pub(super) handoff: Arc<EventHandoff>,
    pub(super) counts: DeliveryCounts,
    pub(super) delivered_lately: LastMinute,
    pub(super) status: Mutex<DeliveryStatus>,
}

/// The configuration of a target, and what is made from it.
pub(super) struct TargetSettings {
    pub(super) config: CallbackTarget,
    /// `None` for a pull target.
    pub(super) push: Option<PushSettings>,
    /// The keys of the callback, for a raw message that has to be made from a plain one.
    pub(super) callback_keys: CallbackKeys,
}

/// What sending to a target needs.
pub(super) struct PushSettings {
    pub(super) client: TargetClient,
    /// The keys of the target, if it decrypts by itself under its own.
    pub(super) keys: Option<CallbackKeys>,
    pub(super) reply: bool,
    pub(super) ordered: bool,
}

impl Target {
    /// A target without settings; see [`Self::replace_settings`].
    pub(super) fn new(callback: &str, name: &str) -> Self {
        let changed = watch::Sender::new(());
        Self {
            callback: callback.to_owned(),
            name: name.to_owned(),
            settings: ArcSwapOption::empty(),
            handoff: Arc::new(EventHandoff::new(changed.clone())),
            changed,
            counts: DeliveryCounts::default(),
            delivered_lately: LastMinute::default(),
            status: Mutex::default(),
        }
    }

    /// Whether a client may read its events.
    pub(super) fn is_reader(&self, client: &str) -> bool {
        self.settings.load().as_ref().is_some_and(|settings| {
            matches!(&settings.config.method, DeliveryMethod::Pull { clients } if clients.contains(client))
        })
    }

    /// Whether a target with this configuration goes on with this one's task, or like this one needs none.
    pub(super) fn has_same_task(&self, config: &CallbackTarget) -> bool {
        let is_pull = |config: &CallbackTarget| matches!(config.method, DeliveryMethod::Pull { .. });
        self.name == config.name
            && self.settings.load().as_ref().is_some_and(|own| is_pull(&own.config) == is_pull(config))
    }

    /// Takes up other settings, or none.
    pub(super) fn replace_settings(&self, settings: Option<TargetSettings>) {
        self.settings.store(settings.map(Arc::new));
        self.changed.send_replace(());
    }
}

impl TargetSettings {
    /// Fails if TLS cannot be set up, or a host is no name that a certificate can contain.
    pub(super) fn new(config: &CallbackTarget, callback_keys: CallbackKeys) -> io::Result<Self> {
        let push = match &config.method {
            DeliveryMethod::Pull { .. } => None,
            DeliveryMethod::Push { url, form, reply, ordered } => Some(PushSettings {
                client: TargetClient::new(url)?,
                keys: match form {
                    TargetForm::Reencrypt(keys) => Some(usable_keys(&keys.token, &keys.aes_key)?),
                    TargetForm::Plain { .. } | TargetForm::Raw => None,
                },
                reply: *reply,
                ordered: *ordered,
            }),
        };
        Ok(Self { config: config.clone(), push, callback_keys })
    }
}

/// Whether the targets' certificates and hosts can be used; the error names the target. Opens no connection.
pub fn check_targets(configs: &BTreeMap<String, CallbackConfig>) -> io::Result<()> {
    for callback in configs.values() {
        for target in &callback.targets {
            let keys = usable_keys(&callback.token, &callback.aes_key)?;
            TargetSettings::new(target, keys).map_err(|error| {
                io::Error::other(TextError(format_text!(
                    "callbacks.{}, target {}: {}",
                    "callbacks.{} 的目标 {}：{}",
                    callback.name,
                    target.name,
                    error
                )))
            })?;
        }
    }
    Ok(())
}

/// The keys of an endpoint or target.
pub(super) fn usable_keys(token: &Masked, aes_key: &Masked) -> io::Result<CallbackKeys> {
    CallbackKeys::new(token.clone(), aes_key)
        .ok_or_else(|| io::Error::other(TextError(text!("unusable EncodingAESKey", "EncodingAESKey 不可用"))))
}
