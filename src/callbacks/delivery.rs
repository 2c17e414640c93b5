//! Delivers the messages of one target, as fast as it accepts them; in one task for each target, so that none of them
//! waits for another.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    attempt::attempt,
    counters::DeliveryResult,
    handoff::{ClaimedEvent, NameClaim},
    queue::{CallbackQueue, MAX_FETCHED, PendingEvent},
    target::{Target, TargetSettings},
};
use crate::{
    secret::random_fraction,
    state::WriteError,
    time::{backoff::BackoffRange, clock},
};

/// Messages that are sent to a target at the same time.
const MAX_IN_FLIGHT: usize = 16;
/// Deliveries whose outcomes are being stored at the same time: a commit takes as long as several deliveries.
const MAX_OUTCOMES: usize = 128;
/// After this many failures in a row the target counts as down: one attempt at a time is made, with pauses, so that a long
/// queue does not wear out the disk. The first success ends this.
const MAX_FAILURES_IN_A_ROW: u32 = 2 * MAX_IN_FLIGHT as u32;
/// The pauses of a target that is down.
const PAUSE_RANGE: BackoffRange = BackoffRange { min: Duration::from_secs(1), max: Duration::from_secs(10) };
/// Bounds an attempt.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the state is looked at for messages that another process accepted.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long before the deadline the last attempt is due.
const LAST_ATTEMPT_MILLIS: u64 = 500;
/// The delays before a message is sent again.
const BACKOFF_RANGE: BackoffRange =
    BackoffRange { min: Duration::from_secs(1), max: Duration::from_secs(600) };

/// Delivers to one target while this process holds the lease.
pub(super) struct TargetDelivery {
    queue: CallbackQueue,
    target: Arc<Target>,
    is_held: watch::Receiver<bool>,
    /// Messages that were just stored.
    handed_over: mpsc::Receiver<ClaimedEvent>,
    /// Due, and not begun yet.
    waiting: VecDeque<ClaimedEvent>,
    attempts: JoinSet<EndedAttempt>,
    /// Attempts whose outcomes are being stored; each returns the claim of its message.
    outcomes: JoinSet<NameClaim>,
    failures_in_a_row: u32,
    /// When the next attempt is allowed, while the target is down.
    paused_until: Option<Instant>,
    /// When the state is looked at for messages that were not handed over.
    scan_at: Instant,
}

impl TargetDelivery {
    /// `None` if the target has a delivery already.
    pub(super) fn new(
        queue: CallbackQueue,
        target: Arc<Target>,
        is_held: watch::Receiver<bool>,
    ) -> Option<Self> {
        Some(Self {
            queue,
            handed_over: target.handoff.take_receiver()?,
            target,
            is_held,
            waiting: VecDeque::new(),
            attempts: JoinSet::new(),
            outcomes: JoinSet::new(),
            failures_in_a_row: 0,
            paused_until: None,
            scan_at: Instant::now(),
        })
    }

    /// Runs until the target is removed or `stop` turns true; attempts that were begun are finished.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut changed = self.target.changed.subscribe();
        while !*stop.borrow() {
            let Some(settings) = self.target.settings.load_full() else { break };
            if *self.is_held.borrow_and_update() {
                self.start_attempts(&settings).await;
            } else {
                self.forget_waiting();
            }
            let (wake_at, is_full) = (self.wake_at(), self.is_full(&settings));
            tokio::select! {
                Some(ended) = self.attempts.join_next() => self.end_attempt(ended.ok()),
                Some(stored) = self.outcomes.join_next() => drop(stored),
                Some(event) = self.handed_over.recv(), if self.waiting.len() < MAX_FETCHED => {
                    self.waiting.push_back(event);
                }
                _ = changed.changed() => self.scan_at = Instant::now(),
                _ = self.is_held.changed() => self.scan_at = Instant::now(),
                () = sleep_until(wake_at), if !is_full => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            while let Some(ended) = self.attempts.try_join_next() {
                self.end_attempt(ended.ok());
            }
            while self.outcomes.try_join_next().is_some() {}
        }
        while let Some(ended) = self.attempts.join_next().await {
            self.end_attempt(ended.ok());
        }
        while self.outcomes.join_next().await.is_some() {}
    }

    /// Leaves what waits to the process that holds the lease.
    fn forget_waiting(&mut self) {
        self.waiting.clear();
        while self.handed_over.try_recv().is_ok() {}
        self.scan_at = Instant::now() + POLL_INTERVAL;
    }

    /// When there is something to do if nothing happens before.
    fn wake_at(&self) -> Instant {
        match self.paused_until {
            Some(until) if self.waiting.is_empty() => until.max(self.scan_at),
            Some(until) => until,
            None => self.scan_at,
        }
    }

    fn end_attempt(&mut self, ended: Option<EndedAttempt>) {
        // One that panicked is begun again: its message is still in the state.
        let Some(ended) = ended else { return };
        match &ended.result {
            Ok(()) => (self.failures_in_a_row, self.paused_until) = (0, None),
            Err(_) if ended.is_expired => {}
            Err(_) => {
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                if let Some(beyond) = self.failures_in_a_row.checked_sub(MAX_FAILURES_IN_A_ROW) {
                    let pause = PAUSE_RANGE.delay(beyond);
                    self.paused_until = Some(Instant::now() + pause);
                }
            }
        }
        let (queue, target) = (self.queue.clone(), self.target.clone());
        self.outcomes.spawn(async move { ended.store(&queue, &target).await });
    }

    /// Whether no attempt may be begun now.
    fn is_full(&self, settings: &TargetSettings) -> bool {
        // The next message of an ordered target waits until it is certain that the one before is not sent again.
        if settings.push.as_ref().is_some_and(|push| push.ordered) {
            return !self.attempts.is_empty() || !self.outcomes.is_empty();
        }
        let is_down = self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW;
        self.attempts.len() >= if is_down { 1 } else { MAX_IN_FLIGHT } || self.outcomes.len() >= MAX_OUTCOMES
    }

    /// Begins as many attempts as are due and allowed.
    async fn start_attempts(&mut self, settings: &Arc<TargetSettings>) {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let is_ordered = settings.push.as_ref().is_some_and(|push| push.ordered);
        while !self.is_full(settings) {
            if self.waiting.is_empty() && Instant::now() >= self.scan_at {
                self.fetch(is_ordered).await;
            }
            let Some(event) = self.waiting.pop_front() else { return };
            let (target, settings) = (self.target.clone(), settings.clone());
            self.attempts.spawn(async move { deliver(&target, settings, event).await });
        }
    }

    /// Reads the next messages that are due from the state, without those in memory.
    async fn fetch(&mut self, is_ordered: bool) {
        // Before the read: what is delivered during it may still be among what is read.
        let claimed = self.target.handoff.claimed_names();
        let limit = if is_ordered { 1 } else { MAX_FETCHED } + claimed.len();
        let pending = self.queue.pending(&self.target.callback, &self.target.name, limit).await;
        let now = Instant::now();
        self.scan_at = now + POLL_INTERVAL;
        let (pending, has_more) = match pending {
            Ok(pending) => pending,
            Err(error) => {
                let (callback, target) = (&*self.target.callback, &*self.target.name);
                return tracing::warn!(callback, target, %error, "callback queue unreadable");
            }
        };
        let unix_now = clock::unix_now_millis();
        for pending in pending {
            if let Some(wait @ 1..) = pending.event.head.due.checked_sub(unix_now) {
                self.scan_at = (now + Duration::from_millis(wait)).min(now + POLL_INTERVAL);
                return;
            }
            if claimed.contains(&pending.name) {
                continue;
            }
            // It may have been handed over during the read.
            if let Some(claim) = NameClaim::new(self.target.handoff.clone(), pending.name.clone()) {
                self.waiting.push_back(ClaimedEvent { pending, claim });
            }
        }
        if has_more && !self.waiting.is_empty() {
            self.scan_at = now;
        }
    }
}

/// An attempt that was made, and its outcome, which is not stored yet.
struct EndedAttempt {
    event: ClaimedEvent,
    settings: Arc<TargetSettings>,
    result: Result<(), String>,
    /// Whether none was made, because the deadline has passed.
    is_expired: bool,
}

/// Makes one attempt.
async fn deliver(target: &Target, settings: Arc<TargetSettings>, event: ClaimedEvent) -> EndedAttempt {
    let head = &event.pending.event.head;
    let is_expired = clock::unix_now_millis() >= head.deadline;
    let result = match is_expired {
        false => attempt(target, &settings, &event.pending.event, ATTEMPT_TIMEOUT).await.map(drop),
        // It waited while no process delivered, or the target was down.
        true => Err(head.last_error.clone().unwrap_or_else(|| "no attempt was made in its time".to_owned())),
    };
    EndedAttempt { event, settings, result, is_expired }
}

impl EndedAttempt {
    /// Stores what follows from the attempt.
    async fn store(self, queue: &CallbackQueue, target: &Target) -> NameClaim {
        let ClaimedEvent { mut pending, claim } = self.event;
        let stored = finish(queue, target, &self.settings, &mut pending, self.result).await;
        if let Err(error) = stored {
            tracing::warn!(callback = target.callback, target = target.name, %error, "callback queue not updated");
            // The message is still in the queue, and would be sent again at once.
            sleep(PAUSE_RANGE.min).await;
        }
        claim
    }
}

/// Stores the outcome of an attempt: done, another one later, or a dead letter.
pub(super) async fn finish(
    queue: &CallbackQueue,
    target: &Target,
    settings: &TargetSettings,
    pending: &mut PendingEvent,
    result: Result<(), String>,
) -> Result<(), WriteError> {
    let (callback, name) = (&*target.callback, &*target.name);
    let now = clock::unix_now_millis();
    let error = match result {
        Ok(()) => {
            target.counts.count(DeliveryResult::Delivered);
            target.delivered_lately.add(now / 1000);
            let note = target.status.lock().note_success([callback, name], now);
            return queue.complete(&pending.name, note).await;
        }
        Err(error) => error,
    };
    let note = target.status.lock().note_error([callback, name], now, &error);
    let head = &mut pending.event.head;
    head.attempts = head.attempts.saturating_add(1);
    // The last attempt is made right before the deadline.
    head.due = (now + backoff_millis(head.attempts, random_fraction()))
        .min(head.deadline.saturating_sub(LAST_ATTEMPT_MILLIS));
    if head.due <= now {
        target.counts.count(DeliveryResult::Dead);
        tracing::warn!(
            callback,
            target = name,
            event_id = head.id,
            error,
            "callback undeliverable, now a dead letter"
        );
        head.last_error = Some(error);
        return queue.bury(callback, name, pending, note, now).await;
    }
    target.counts.count(DeliveryResult::Failed);
    tracing::debug!(
        callback,
        target = name,
        event_id = head.id,
        attempt = head.attempts,
        error,
        "callback delivery failed"
    );
    head.last_error = Some(error);
    let is_ordered = settings.push.as_ref().is_some_and(|push| push.ordered);
    queue.retry(callback, name, is_ordered, pending, note).await
}

/// Milliseconds until the attempt that follows the nth one.
fn backoff_millis(attempts: u32, fraction: f64) -> u64 {
    let delay = BACKOFF_RANGE.jittered(attempts.saturating_sub(1), fraction);
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, pin::pin};

    use tokio::time::timeout;

    use super::{
        super::tests::{Fixture, settings},
        *,
    };

    /// How often the delivery of a target that was down is polled within half a second. Its message is due in an hour.
    async fn polls_of_idle_delivery(is_held: bool) -> u32 {
        let fixture = Fixture::new();
        fixture.target.replace_settings(Some(settings(false)));
        fixture.insert(clock::unix_now_millis() + 3_600_000).await;
        let (_lease, is_held) = watch::channel(is_held);
        let (_stop, stop_seen) = watch::channel(false);
        let mut delivery = TargetDelivery::new(fixture.queue.clone(), fixture.target.clone(), is_held)
            .expect("the only one");
        delivery.failures_in_a_row = MAX_FAILURES_IN_A_ROW;
        delivery.paused_until = Some(Instant::now());
        let polls = Cell::new(0);
        let mut run = pin!(delivery.run(stop_seen));
        let counted = poll_fn(|context| {
            polls.set(polls.get() + 1);
            run.as_mut().poll(context)
        });
        assert!(timeout(Duration::from_millis(500), counted).await.is_err(), "it runs on");
        polls.get()
    }

    #[tokio::test]
    async fn target_that_was_down_waits_until_a_message_is_due() {
        let polls = polls_of_idle_delivery(true).await;
        assert!(polls < 20, "{polls} polls");
    }

    #[tokio::test]
    async fn delivery_without_the_lease_waits() {
        let polls = polls_of_idle_delivery(false).await;
        assert!(polls < 20, "{polls} polls");
    }

    #[test]
    fn backoff_grows_from_a_second_to_ten_minutes() {
        assert_eq!((backoff_millis(1, 0.0), backoff_millis(2, 1.0)), (1000, 2400));
        assert_eq!(backoff_millis(u32::MAX, 1.0), 600_000);
    }
}
