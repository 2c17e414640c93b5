//! Which process delivers: with a shared state, or during a takeover, one at a time. The others accept messages and wait.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{
    state::{Collection, Precondition, State, Write, WriteError},
    time::clock,
};

/// The record of the lease; its value is the owner's id.
const NAME: &str = "delivery";
/// A process that was killed is replaced after this, at most.
const TTL: Duration = Duration::from_secs(24);
const RENEW_INTERVAL: Duration = Duration::from_secs(8);
/// How often the other processes look whether the lease is free.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Without a renewal for this long, another process may own the lease soon.
const SAFE_PERIOD: Duration = Duration::from_secs(18);

/// How long deliveries in progress may take once the process stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Holds the lease, or tries to.
pub(super) struct DeliveryLease {
    state: Arc<State>,
    owner: String,
    is_held: watch::Sender<bool>,
    /// Whether there is anything to deliver to; without it, nothing is written.
    is_wanted: watch::Receiver<bool>,
    renewed_at: Option<Instant>,
}

impl DeliveryLease {
    pub(super) fn new(
        state: Arc<State>,
        owner: String,
        is_held: watch::Sender<bool>,
        is_wanted: watch::Receiver<bool>,
    ) -> Self {
        Self { state, owner, is_held, is_wanted, renewed_at: None }
    }

    /// Acquires and renews the lease until `stop` turns true, then gives it up when the deliveries in progress, which
    /// hold senders of `deliveries_ended`, have ended.
    pub(super) async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
        mut deliveries_ended: mpsc::Receiver<()>,
    ) {
        loop {
            if !*self.is_wanted.borrow() {
                self.renewed_at = None;
                self.update_is_held();
            }
            tokio::select! {
                _ = self.is_wanted.wait_for(|wanted| *wanted) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            let began = Instant::now();
            // The lease is not held for longer while the state does not respond.
            let hold_end = self.hold_end().unwrap_or(began + SAFE_PERIOD);
            match timeout_at(hold_end, self.acquire()).await {
                Ok(Ok(true)) => self.renewed_at = Some(began),
                Ok(Ok(false)) => self.renewed_at = None,
                Ok(Err(error)) => tracing::debug!(%error, "callback lease not renewed"),
                Err(_) => tracing::debug!("callback lease not renewed: the state does not respond"),
            }
            let is_held = self.update_is_held();
            let next = Instant::now() + if is_held { RENEW_INTERVAL } else { POLL_INTERVAL };
            let wake_at = self.hold_end().map_or(next, |end| next.min(end));
            tokio::select! {
                () = sleep_until(wake_at) => {}
                Ok(_) = self.is_wanted.wait_for(|wanted| !*wanted) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        self.is_held.send_replace(false);
        let _ = timeout(STOP_TIMEOUT, deliveries_ended.recv()).await;
        // Later, another process may own it.
        if self.hold_end().is_some_and(|end| Instant::now() < end) {
            let _ = self.state.write(vec![Write::delete(Collection::CallbackLease, NAME)]).await;
        }
    }

    /// Until when the last renewal is good.
    fn hold_end(&self) -> Option<Instant> {
        self.renewed_at.map(|at| at + SAFE_PERIOD)
    }

    /// Tells the deliveries whether the lease is held, and returns it.
    fn update_is_held(&mut self) -> bool {
        self.renewed_at = self.renewed_at.filter(|at| at.elapsed() < SAFE_PERIOD);
        let is_held = self.renewed_at.is_some();
        self.is_held.send_if_modified(|before| std::mem::replace(before, is_held) != is_held);
        is_held
    }

    /// Whether this process owns the lease now.
    async fn acquire(&self) -> Result<bool, String> {
        let current = self.state.read(Collection::CallbackLease, NAME).await;
        let precondition = match current.map_err(|error| error.to_string())? {
            None => Precondition::Absent,
            Some(record) if record.value.as_deref().is_some_and(|owner| *owner == self.owner.as_bytes()) => {
                Precondition::Version(record.version)
            }
            Some(_) => return Ok(false),
        };
        let expires_at = clock::unix_now() + TTL.as_secs();
        let write = Write::put(Collection::CallbackLease, NAME, self.owner.as_bytes())
            .when(precondition)
            .expires_at(expires_at);
        match self.state.write(vec![write]).await {
            Ok(_) => Ok(true),
            Err(WriteError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }
}
