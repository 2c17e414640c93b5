//! A deadline that is cheap to move: the timer behind it is touched only when it fires too early.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

/// A point in time that a poll function can wait for. Moving it later costs a store; the timer wheel learns of it only
/// when the old point passes. It stops by itself: a deadline that nobody polls wakes nobody.
#[derive(Debug, Default)]
pub struct Deadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes.
    waker: Option<Waker>,
}

impl Deadline {
    /// A deadline that is not running.
    pub const fn unset() -> Self {
        Self { at: None, timer: None, waker: None }
    }

    /// Sets it `after` from now, whatever it was.
    pub fn set(&mut self, after: Duration) {
        self.at = Instant::now().checked_add(after);
    }

    /// Sets it `after` that moment, whatever it was.
    pub fn set_from(&mut self, moment: Instant, after: Duration) {
        self.at = moment.checked_add(after);
    }

    /// Sets it `after` from now unless it runs already.
    pub fn set_if_unset(&mut self, after: Duration) {
        if self.at.is_none() {
            self.set(after);
        }
    }

    /// Sets it `after` from now unless it passes sooner.
    pub fn set_if_earlier(&mut self, after: Duration) {
        let at = Instant::now().checked_add(after);
        if self.at.is_none_or(|set| at.is_some_and(|at| at < set)) {
            self.at = at;
        }
    }

    /// When it passes, if it runs.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Stops it.
    pub fn clear(&mut self) {
        self.at = None;
    }

    /// Ready once the deadline has passed; pending, with the task to be woken, while it has not; pending for ever when
    /// it is not running.
    pub fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        // Telling it once is enough, as long as it is the same task that waits.
        let is_told = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if is_told && !timer.is_elapsed() {
            return Poll::Pending;
        }
        if !is_told {
            self.waker = Some(cx.waker().clone());
        }
        loop {
            // The timer would not listen to a task that has used up its turn, and it is told only once.
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

    /// Polls once in a task that has used up its turn, and lets the runtime go on.
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
        let passed = timeout(Duration::from_secs(9), poll_fn(|cx| deadline.poll_elapsed(cx)));
        assert!(passed.await.is_ok(), "the timer woke nobody");
        // The same where the timer has fired, and is set anew.
        deadline.set(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        poll_without_budget(&mut deadline).await;
        let passed = timeout(Duration::from_secs(9), poll_fn(|cx| deadline.poll_elapsed(cx)));
        assert!(passed.await.is_ok(), "the timer that was set anew woke nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_moved_later_or_earlier_elapses_on_time() {
        let began = Instant::now();
        let mut deadline = Deadline::unset();
        deadline.set(Duration::from_secs(1));
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll_elapsed(cx).is_pending())).await);
        deadline.set(Duration::from_secs(5));
        poll_fn(|cx| deadline.poll_elapsed(cx)).await;
        assert_eq!(began.elapsed().as_secs(), 5);
        deadline.set(Duration::from_secs(60));
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll_elapsed(cx).is_pending())).await);
        deadline.set(Duration::from_secs(2));
        poll_fn(|cx| deadline.poll_elapsed(cx)).await;
        assert_eq!(began.elapsed().as_secs(), 7);
    }
}
