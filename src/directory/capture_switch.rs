//! Whether an operator looks closely at an agent's exchanges, and until when.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

/// A switch that ends by itself. While it is off, asking costs one load.
#[derive(Debug, Default)]
pub struct CaptureSwitch {
    /// Milliseconds since 1970; 0 while it is off.
    until_ms: AtomicU64,
}

impl CaptureSwitch {
    /// Whether somebody looks now.
    pub fn is_on(&self) -> bool {
        match self.until_ms.load(Ordering::Relaxed) {
            0 => false,
            until => self.check_expiry(until),
        }
    }

    /// When it ends; `None` while it is off.
    pub fn until(&self) -> Option<SystemTime> {
        let on = self.is_on().then(|| self.until_ms.load(Ordering::Relaxed));
        on.filter(|until| *until > 0).map(|until| SystemTime::UNIX_EPOCH + Duration::from_millis(until))
    }

    /// On for so long from now; zero ends it.
    pub fn enable_for(&self, how_long: Duration) {
        let until = if how_long.is_zero() { 0 } else { now_ms() + how_long.as_millis() as u64 };
        self.until_ms.store(until, Ordering::Relaxed);
    }

    #[cold]
    fn check_expiry(&self, until: u64) -> bool {
        if now_ms() < until {
            return true;
        }
        // Unless somebody has switched it on again meanwhile.
        let _ = self.until_ms.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        false
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_switch_past_its_end_is_off() {
        let inspection = CaptureSwitch::default();
        assert!(!inspection.is_on() && inspection.until().is_none());
        inspection.enable_for(Duration::from_secs(60));
        assert!(inspection.is_on() && inspection.until() > Some(SystemTime::now()));
        inspection.enable_for(Duration::ZERO);
        assert!(!inspection.is_on());
        inspection.until_ms.store(1, Ordering::Relaxed);
        assert!(!inspection.is_on());
        assert_eq!(inspection.until_ms.load(Ordering::Relaxed), 0, "the next one asks no clock");
    }
}
