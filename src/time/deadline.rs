//! A deadline that is cheap to move: its timer is reset only when it fires too early.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

/// A point in time that a poll function can wait for. Moving it later costs one store; the timer wheel is updated only
/// when the old time passes. A deadline that is not polled wakes no task.
#[derive(Debug, Default)]
pub struct Deadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The waker registered with the timer.
    waker: Option<Waker>,
}

impl Deadline {
    /// A deadline that is not set.
    pub const fn unset() -> Self {
        Self { at: None, timer: None, waker: None }
    }

    /// Sets it to `after` from now.
    pub fn set(&mut self, after: Duration) {
        self.at = Instant::now().checked_add(after);
    }

    /// Sets it to `start` plus `after`.
    pub fn set_from(&mut self, start: Instant, after: Duration) {
        self.at = start.checked_add(after);
    }

    /// Sets it to `after` from now unless it is set.
    pub fn set_if_unset(&mut self, after: Duration) {
        if self.at.is_none() {
            self.set(after);
        }
    }

    /// Ready when a wait lasts longer than `timeout`. The first call begins the wait, [`Deadline::clear`] ends it.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>, timeout: Duration) -> Poll<()> {
        self.set_if_unset(timeout);
        self.poll_elapsed(cx)
    }

    /// Bounds a transfer: fails with [`io::ErrorKind::TimedOut`] when `polled` has been pending for `timeout`.
    pub fn bound_transfer<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        timeout: Duration,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.clear();
            return polled;
        }
        self.poll_stalled(cx, timeout).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Sets it to `after` from now unless it is set to an earlier time.
    pub fn set_if_earlier(&mut self, after: Duration) {
        let at = Instant::now().checked_add(after);
        if self.at.is_none_or(|set| at.is_some_and(|at| at < set)) {
            self.at = at;
        }
    }

    /// The time at which it elapses, if it is set.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Unsets it.
    pub fn clear(&mut self) {
        self.at = None;
    }

    /// Ready once the deadline has elapsed; pending, with the waker registered, before that; pending for ever if it is
    /// not set.
    pub fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        // One registration is enough as long as the same task waits.
        let is_registered = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if is_registered && !timer.is_elapsed() {
            return Poll::Pending;
        }
        if !is_registered {
            self.waker = Some(cx.waker().clone());
        }
        loop {
            // Without coop budget the timer would not register the waker, and it is polled only once.
            ready!(pin!(unconstrained(timer.as_mut())).poll(cx));
            if timer.deadline() >= at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        task::coop::{consume_budget, has_budget_remaining},
        time::timeout,
    };

    use super::*;

    /// Polls once in a task without coop budget, then yields to the runtime.
    async fn poll_without_budget(deadline: &mut Deadline) {
        while has_budget_remaining() {
            consume_budget().await;
        }
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll_elapsed(cx).is_pending())).await);
        tokio::task::yield_now().await;
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_first_polled_without_budget_elapses() {
        let mut deadline = Deadline::unset();
        deadline.set(Duration::from_secs(1));
        poll_without_budget(&mut deadline).await;
        let elapsed = timeout(Duration::from_secs(9), poll_fn(|cx| deadline.poll_elapsed(cx)));
        assert!(elapsed.await.is_ok(), "the task was not woken");
        // The same after the timer has fired and is reset.
        deadline.set(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        poll_without_budget(&mut deadline).await;
        let elapsed = timeout(Duration::from_secs(9), poll_fn(|cx| deadline.poll_elapsed(cx)));
        assert!(elapsed.await.is_ok(), "the task was not woken after a reset");
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_moved_later_or_earlier_elapses_on_time() {
        let start = Instant::now();
        let mut deadline = Deadline::unset();
        deadline.set(Duration::from_secs(1));
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll_elapsed(cx).is_pending())).await);
        deadline.set(Duration::from_secs(5));
        poll_fn(|cx| deadline.poll_elapsed(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 5);
        deadline.set(Duration::from_secs(60));
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll_elapsed(cx).is_pending())).await);
        deadline.set(Duration::from_secs(2));
        poll_fn(|cx| deadline.poll_elapsed(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 7);
    }
}
