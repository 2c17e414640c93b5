//! Tasks that wait for notifications of a name.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use tokio::{sync::Notify, time::timeout};

/// How often a waiting task polls the store, in case a notification was lost.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// By name; an entry exists while it has a subscription.
#[derive(Default)]
pub(super) struct Subscriptions(Mutex<HashMap<String, Arc<Notify>>>);

/// A subscription to one name; ends when dropped.
pub struct Subscription<'a> {
    subscriptions: &'a Subscriptions,
    name: String,
    notify: Arc<Notify>,
}

impl Subscriptions {
    pub(super) fn subscribe(&self, name: &str) -> Subscription<'_> {
        let notify = self.0.lock().entry(name.to_owned()).or_default().clone();
        Subscription { subscriptions: self, name: name.to_owned(), notify }
    }

    pub(super) fn wake(&self, name: &str) {
        if let Some(notify) = self.0.lock().get(name) {
            notify.notify_waiters();
            // Stores a permit for a task that has read the store but does not wait yet.
            notify.notify_one();
        }
    }
}

impl Subscription<'_> {
    /// Waits for a notification, at most `remaining` (the rest of the holder's lease) or the poll interval.
    pub async fn wait(&self, remaining: Duration) {
        let _ =
            timeout(remaining.clamp(Duration::from_millis(1), POLL_INTERVAL), self.notify.notified()).await;
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        let mut subscriptions = self.subscriptions.0.lock();
        // Two references: the map's and this one.
        if Arc::strong_count(&self.notify) == 2 {
            subscriptions.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn notification_before_waiting_is_not_lost() {
        let subscriptions = Subscriptions::default();
        let (first, second) = (subscriptions.subscribe("a"), subscriptions.subscribe("a"));
        let started_at = Instant::now();
        subscriptions.wake("a");
        first.wait(POLL_INTERVAL).await;
        assert_eq!(started_at.elapsed(), Duration::ZERO);
        second.wait(POLL_INTERVAL).await;
        assert_eq!(started_at.elapsed(), POLL_INTERVAL, "one notification wakes once");
        drop((first, second));
        assert!(subscriptions.0.lock().is_empty());
    }
}
