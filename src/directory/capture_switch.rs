//! Whether an operator captures an agent's exchanges, and until when.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use crate::time::clock::unix_now_millis;

/// A switch that turns itself off, and is the same for its clones. A check of one that was never on costs one load.
#[derive(Debug, Default)]
pub struct CaptureSwitch {
    /// Milliseconds since 1970; 0 while it is off. Allocated on first use, because there can be very many agents.
    until_ms: OnceLock<Arc<AtomicU64>>,
}

impl Clone for CaptureSwitch {
    fn clone(&self) -> Self {
        Self { until_ms: OnceLock::from(self.shared().clone()) }
    }
}

impl CaptureSwitch {
    /// Whether it is on now.
    pub fn is_on(&self) -> bool {
        self.until_ms.get().is_some_and(|until_ms| match until_ms.load(Ordering::Relaxed) {
            0 => false,
            until => check_expiry(until_ms, until),
        })
    }

    fn shared(&self) -> &Arc<AtomicU64> {
        self.until_ms.get_or_init(Arc::default)
    }

    /// When it turns off; `None` while it is off.
    pub fn until(&self) -> Option<SystemTime> {
        let on = self.is_on().then(|| self.shared().load(Ordering::Relaxed));
        on.filter(|until| *until > 0).map(|until| SystemTime::UNIX_EPOCH + Duration::from_millis(until))
    }

    /// Turns it on for this long; zero turns it off.
    pub fn enable_for(&self, duration: Duration) {
        let until = if duration.is_zero() { 0 } else { unix_now_millis() + duration.as_millis() as u64 };
        self.shared().store(until, Ordering::Relaxed);
    }
}

#[cold]
fn check_expiry(until_ms: &AtomicU64, until: u64) -> bool {
    if unix_now_millis() < until {
        return true;
    }
    // Fails if it was enabled again meanwhile.
    let _ = until_ms.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_switch_past_its_end_is_off() {
        let switch = CaptureSwitch::default();
        assert!(!switch.is_on() && switch.until().is_none());
        switch.enable_for(Duration::from_secs(60));
        assert!(switch.is_on() && switch.until() > Some(SystemTime::now()));
        switch.enable_for(Duration::ZERO);
        assert!(!switch.is_on());
        let clone = switch.clone();
        switch.shared().store(1, Ordering::Relaxed);
        assert!(!switch.is_on());
        assert_eq!(clone.shared().load(Ordering::Relaxed), 0, "the next check reads no clock");
        clone.enable_for(Duration::from_secs(60));
        assert!(switch.is_on());
    }
}
