//! Whether an operator captures an agent's exchanges, and until when.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use crate::time::clock::unix_now_millis;

/// A switch that turns itself off. While it is off, a check costs one load.
#[derive(Debug, Default)]
pub struct CaptureSwitch {
    /// Milliseconds since 1970; 0 while it is off.
    until_ms: AtomicU64,
}

impl CaptureSwitch {
    /// Whether it is on now.
    pub fn is_on(&self) -> bool {
        match self.until_ms.load(Ordering::Relaxed) {
            0 => false,
            until => self.check_expiry(until),
        }
    }

    /// When it turns off; `None` while it is off.
    pub fn until(&self) -> Option<SystemTime> {
        let on = self.is_on().then(|| self.until_ms.load(Ordering::Relaxed));
        on.filter(|until| *until > 0).map(|until| SystemTime::UNIX_EPOCH + Duration::from_millis(until))
    }

    /// Turns it on for this long; zero turns it off.
    pub fn enable_for(&self, duration: Duration) {
        let until = if duration.is_zero() { 0 } else { unix_now_millis() + duration.as_millis() as u64 };
        self.until_ms.store(until, Ordering::Relaxed);
    }

    #[cold]
    fn check_expiry(&self, until: u64) -> bool {
        if unix_now_millis() < until {
            return true;
        }
        // Fails if it was enabled again meanwhile.
        let _ = self.until_ms.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        false
    }
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
        switch.until_ms.store(1, Ordering::Relaxed);
        assert!(!switch.is_on());
        assert_eq!(switch.until_ms.load(Ordering::Relaxed), 0, "the next check reads no clock");
    }
}
