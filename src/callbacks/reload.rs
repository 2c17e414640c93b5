//! Another configuration of the callbacks: what can fail comes first, so that a reload that fails changes nothing.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use parking_lot::MutexGuard;

use super::{
    Callbacks, Endpoints,
    delivery::TargetDelivery,
    endpoint::Endpoint,
    target::{Target, TargetSettings, usable_keys},
};
use crate::config::CallbackConfig;

/// A configuration that can be used, and is not yet.
pub struct PreparedCallbacks<'a> {
    callbacks: &'a Callbacks,
    endpoints: Endpoints,
    /// Of each target, and whether it is new.
    settings: Vec<(Arc<Target>, bool, TargetSettings)>,
    _guard: MutexGuard<'a, ()>,
}

impl PreparedCallbacks<'_> {
    /// Takes it up.
    pub fn commit(self) {
        self.callbacks.replace(self.endpoints, self.settings);
    }
}

impl fmt::Debug for PreparedCallbacks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PreparedCallbacks({})", self.endpoints.len())
    }
}

impl Callbacks {
    /// Checks whether another configuration can be used; it is taken up by [`PreparedCallbacks::commit`].
    pub fn prepare(&self, configs: &BTreeMap<String, CallbackConfig>) -> io::Result<PreparedCallbacks<'_>> {
        let guard = self.reload.lock();
        let before = self.endpoints.load_full();
        let mut settings = Vec::new();
        let mut endpoints = Endpoints::new();
        for (name, config) in configs {
            let previous = before.get(name);
            let mut targets = Vec::with_capacity(config.targets.len());
            for target_config in &config.targets {
                let known = previous.and_then(|previous| {
                    previous.targets.iter().find(|target| target.has_same_task(target_config))
                });
                let target =
                    known.cloned().unwrap_or_else(|| Arc::new(Target::new(name, &target_config.name)));
                let keys = usable_keys(&config.token, &config.aes_key)?;
                settings.push((target.clone(), known.is_none(), TargetSettings::new(target_config, keys)?));
                targets.push(target);
            }
            let received = previous.map_or_else(Arc::default, |known| known.received.clone());
            endpoints.insert(name.clone(), Arc::new(Endpoint::new(config, targets, received)?));
        }
        Ok(PreparedCallbacks { callbacks: self, endpoints, settings, _guard: guard })
    }

    fn replace(&self, endpoints: Endpoints, settings: Vec<(Arc<Target>, bool, TargetSettings)>) {
        let before = self.endpoints.load_full();
        let kept = |target: &Arc<Target>| settings.iter().any(|(kept, ..)| Arc::ptr_eq(kept, target));
        for target in before.values().flat_map(|endpoint| &endpoint.targets).filter(|target| !kept(target)) {
            target.replace_settings(None);
        }
        let is_push = |target: &Arc<Target>| {
            settings.iter().any(|(of, _, settings)| Arc::ptr_eq(of, target) && settings.push.is_some())
        };
        let has_targets = endpoints.values().flat_map(|endpoint| &endpoint.targets).any(is_push);
        self.has_targets.send_if_modified(|before| std::mem::replace(before, has_targets) != has_targets);
        self.endpoints.store(Arc::new(endpoints));
        for (target, is_new, settings) in settings {
            let is_delivered = is_new && settings.push.is_some();
            target.replace_settings(Some(settings));
            let delivery = || TargetDelivery::new(self.queue.clone(), target, self.is_held.subscribe());
            if let Some(delivery) = is_delivered.then(delivery).flatten() {
                let (guard, stop) = (self.delivery_guard.lock().clone(), self.stop.subscribe());
                self.runtime.spawn(async move {
                    delivery.run(stop).await;
                    drop(guard);
                });
            }
        }
    }
}
