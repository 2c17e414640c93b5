//! Callbacks: receives what WeCom pushes, stores it durably, and delivers it to the targets.
//!
//! The workers receive; delivery has a thread of its own, so that slow targets and many of them take no time from
//! requests and token refreshes. A message that was answered with 200 is in the state until each target has accepted it.

mod accept;
mod attempt;
mod counters;
mod delivery;
mod endpoint;
mod handoff;
mod lease;
mod operator;
mod pull;
mod queue;
mod reload;
mod reply;
mod status;
mod stored_event;
mod suite_message;
mod target;
mod target_client;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, mpsc as std_mpsc},
    thread,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Handle},
    sync::{Semaphore, mpsc, watch},
};

pub(crate) use self::reply::TEXT;
pub use self::{
    counters::{DeliveryCounts, DeliveryResult, ReceiveCounts, ReceiveResult},
    endpoint::{Endpoint, PushedMessage},
    operator::{CallbackCounts, CallbackOverview, CallbackStatus, EventQueue, EventSummary, TargetStatus},
    pull::ReadPermission,
    reply::CallbackResponse,
    status::caller_of,
    target::check_targets,
    target_client::probe_target,
};
use self::{lease::DeliveryLease, pull::PullReader, queue::CallbackQueue};
use crate::{config::CallbackConfig, secret::random_u64, state::State, suites::Suites};

/// Largest body that is received.
pub const MAX_BODY_BYTES: u64 = 1024 * 1024;
/// Bounds the clients that read events at the same time.
const MAX_READERS: usize = 256;

/// Why a client cannot read events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// No target lists it.
    #[error("no target lists the client")]
    NotListed,
    /// Too many clients read.
    #[error("too many clients read events")]
    TooManyReaders,
}

/// The receiver URLs, by name.
type Endpoints = BTreeMap<String, Arc<Endpoint>>;

/// The service: receives messages and delivers them.
pub struct Callbacks {
    endpoints: ArcSwap<Endpoints>,
    suites: Arc<Suites>,
    /// One reload at a time.
    reload: Mutex<()>,
    queue: CallbackQueue,
    runtime: Handle,
    /// Whether this process delivers.
    is_held: watch::Sender<bool>,
    has_targets: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    /// Held by each delivery; `None` once the service stops.
    delivery_guard: Mutex<Option<mpsc::Sender<()>>>,
    reader_permits: Arc<Semaphore>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Callbacks({})", self.endpoints.load().len())
    }
}

impl Callbacks {
    /// Starts the service and its thread. Fails if the thread cannot be had, or a target's host is no name for TLS.
    pub fn start(
        state: Arc<State>,
        suites: Arc<Suites>,
        configs: &BTreeMap<String, CallbackConfig>,
    ) -> io::Result<Arc<Self>> {
        let (stop, stop_seen) = watch::channel(false);
        let (is_held, _) = watch::channel(false);
        let (handle_sender, handle) = std_mpsc::channel();
        let (delivery_guard, deliveries_ended) = mpsc::channel(1);
        let (has_targets, is_wanted) = watch::channel(false);
        let lease =
            DeliveryLease::new(state.clone(), format!("{:016x}", random_u64()), is_held.clone(), is_wanted);
        let thread = thread::Builder::new().name("callbacks".to_owned()).spawn(move || {
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(handle_sender.send(Err(error))),
            };
            let _ = handle_sender.send(Ok(runtime.handle().clone()));
            runtime.block_on(lease.run(stop_seen, deliveries_ended));
        })?;
        let runtime = handle.recv().map_err(io::Error::other)??;
        let callbacks = Arc::new(Self {
            endpoints: ArcSwap::default(),
            suites,
            reload: Mutex::default(),
            queue: CallbackQueue { state },
            runtime,
            is_held,
            has_targets,
            stop,
            delivery_guard: Mutex::new(Some(delivery_guard)),
            reader_permits: Arc::new(Semaphore::new(MAX_READERS)),
            thread: Mutex::new(Some(thread)),
        });
        callbacks.prepare(configs)?.commit();
        Ok(callbacks)
    }

    /// The receiver URL of this name.
    pub fn endpoint(&self, name: &str) -> Option<Arc<Endpoint>> {
        self.endpoints.load().get(name).cloned()
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.endpoints.load().is_empty()
    }

    /// The events of the pull target that lists the client, behind the event that it read last. They end once it is not
    /// permitted any more.
    pub fn subscribe(
        &self,
        endpoint: &Endpoint,
        client: &str,
        is_permitted: ReadPermission,
        last_event_id: Option<String>,
    ) -> Result<mpsc::Receiver<Bytes>, SubscribeError> {
        let target = endpoint.targets.iter().find(|target| target.is_reader(client));
        let target = target.ok_or(SubscribeError::NotListed)?.clone();
        let permit =
            self.reader_permits.clone().try_acquire_owned().map_err(|_| SubscribeError::TooManyReaders)?;
        let (sender, events) = mpsc::channel(1);
        let (queue, client) = (self.queue.clone(), client.to_owned());
        let reader =
            PullReader { queue, target, client, is_permitted, last_event_id, sender, _permit: permit };
        self.runtime.spawn(reader.run(self.stop.subscribe()));
        Ok(events)
    }

    /// Ends the streams of events, and begins no more deliveries. Messages are still accepted: another process delivers
    /// them, or this program after its next start.
    pub fn begin_stop(&self) {
        self.stop.send_replace(true);
        self.delivery_guard.lock().take();
    }

    /// Ends the thread, once the deliveries in progress have ended; after [`Self::begin_stop`].
    pub async fn finish_stop(&self) {
        let thread = self.thread.lock().take();
        let _ = crate::blocking::spawn(move || thread.map(thread::JoinHandle::join)).await;
    }
}
