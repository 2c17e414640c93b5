//! Who waits for news of a name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// How often the store is asked whether another replica is done, where its news do not come through.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// By name; only what somebody watches.
#[derive(Default)]
pub(super) struct Subscriptions(Mutex<HashMap<String, Arc<Notify>>>);

/// The watch of one name, for as long as it is held.
pub struct Subscription<'a> {
    subscriptions: &'a Subscriptions,
    name: String,
    notify: Arc<Notify>,
}

impl Subscriptions {
    pub(super) fn subscribe(&self, name: &str) -> Subscription<'_> {
        let news = self.lock().entry(name.to_owned()).or_default().clone();
        Subscription { subscriptions: self, name: name.to_owned(), notify: news }
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

impl Subscription<'_> {
    /// Waits until something was said, or it is time to look without: when whoever makes it has had `left`, at the latest.
    pub async fn wait(&self, left: Duration) {
        let _ = timeout(left.clamp(Duration::from_millis(1), POLL_INTERVAL), self.notify.notified()).await;
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        let mut watches = self.subscriptions.lock();
        // The map's and this one.
        if Arc::strong_count(&self.notify) == 2 {
            watches.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn notification_before_waiting_is_not_lost() {
        let watches = Subscriptions::default();
        let (one, other) = (watches.subscribe("a"), watches.subscribe("a"));
        let began = Instant::now();
        watches.wake("a");
        one.wait(POLL_INTERVAL).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        other.wait(POLL_INTERVAL).await;
        assert_eq!(began.elapsed(), POLL_INTERVAL, "and nothing that is not said");
        drop((one, other));
        assert!(watches.lock().is_empty());
    }
}
