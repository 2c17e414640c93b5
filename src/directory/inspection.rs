//! Whether an operator looks closely at an agent's exchanges, and until when.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

/// A switch that ends by itself. While it is off, asking costs one load.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Milliseconds since 1970; 0 while it is off.
    until: AtomicU64,
}

impl Inspection {
    /// Whether somebody looks now.
    pub fn is_on(&self) -> bool {
        match self.until.load(Ordering::Relaxed) {
            0 => false,
            until => self.goes_on(until),
        }
    }

    /// When it ends; `None` while it is off.
    pub fn until(&self) -> Option<SystemTime> {
        let on = self.is_on().then(|| self.until.load(Ordering::Relaxed));
        on.filter(|until| *until > 0).map(|until| SystemTime::UNIX_EPOCH + Duration::from_millis(until))
    }

    /// On for so long from now; zero ends it.
    pub fn last(&self, how_long: Duration) {
        let until = if how_long.is_zero() { 0 } else { now() + how_long.as_millis() as u64 };
        self.until.store(until, Ordering::Relaxed);
    }

    #[cold]
    fn goes_on(&self, until: u64) -> bool {
        if now() < until {
            return true;
        }
        // Unless somebody has switched it on again meanwhile.
        let _ = self.until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        false
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_itself() {
        let inspection = Inspection::default();
        assert!(!inspection.is_on() && inspection.until().is_none());
        inspection.last(Duration::from_secs(60));
        assert!(inspection.is_on() && inspection.until() > Some(SystemTime::now()));
        inspection.last(Duration::ZERO);
        assert!(!inspection.is_on());
        inspection.until.store(1, Ordering::Relaxed);
        assert!(!inspection.is_on());
        assert_eq!(inspection.until.load(Ordering::Relaxed), 0, "the next one asks no clock");
    }
}
