//! Who waits for news of a name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// How often the store is asked whether another replica is done, where its news do not come through.
const LOOK: Duration = Duration::from_millis(250);

/// By name; only what somebody watches.
#[derive(Default)]
pub(super) struct Watches(Mutex<HashMap<String, Arc<Notify>>>);

/// The watch of one name, for as long as it is held.
pub struct Watch<'a> {
    watches: &'a Watches,
    name: String,
    news: Arc<Notify>,
}

impl Watches {
    pub(super) fn of(&self, name: &str) -> Watch<'_> {
        let news = self.lock().entry(name.to_owned()).or_default().clone();
        Watch { watches: self, name: name.to_owned(), news }
    }

    pub(super) fn wake(&self, name: &str) {
        if let Some(news) = self.lock().get(name) {
            news.notify_waiters();
            // For who has asked the store and does not wait yet.
            news.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch<'_> {
    /// Waits until something was said, or it is time to look without: when whoever makes it has had `left`, at the latest.
    pub async fn news(&self, left: Duration) {
        let _ = timeout(left.clamp(Duration::from_millis(1), LOOK), self.news.notified()).await;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watches = self.watches.lock();
        // The map's and this one.
        if Arc::strong_count(&self.news) == 2 {
            watches.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_said_between_asking_and_waiting_is_heard() {
        let watches = Watches::default();
        let (one, other) = (watches.of("a"), watches.of("a"));
        let began = Instant::now();
        watches.wake("a");
        one.news(LOOK).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        other.news(LOOK).await;
        assert_eq!(began.elapsed(), LOOK, "and nothing that is not said");
        drop((one, other));
        assert!(watches.lock().is_empty());
    }
}
