//! Pool of idle HTTP/1 connections and shared HTTP/2 connections, one per runtime.

use std::{
    cell::{Cell, RefCell, RefMut},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::{task::spawn_local, time::Instant};

use super::{Settings, connection::UpstreamConnection, h2};

/// Interval of the sweep of idle connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A connection idle for longer than this is peeked at before reuse.
const PEEK_IDLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Maximum HTTP/2 connections. With a hundred streams each they exceed any usual `upstream.max_in_flight`.
const MAX_HTTP2_CONNECTIONS: usize = 64;

/// Open connections that accept a request.
pub(super) struct Pool {
    pub(super) settings: Arc<Settings>,
    connections: RefCell<PooledConnections>,
    /// Number of large responses in progress.
    pub(super) large_responses: Cell<usize>,
}

#[derive(Default)]
struct PooledConnections {
    idle_http1: Vec<(Box<UpstreamConnection>, Instant)>,
    /// With the time of each one's last checkout.
    http2: Vec<(h2::Http2Sender, Instant)>,
    sweeping: bool,
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>) -> Rc<Self> {
        Rc::new(Self { settings, connections: RefCell::default(), large_responses: Cell::new(0) })
    }

    /// Takes the most recently used idle connection that is still open.
    pub(super) fn take_idle(&self, now: Instant) -> Option<Box<UpstreamConnection>> {
        let mut connections = self.connections();
        while let Some((mut connection, idle_since)) = connections.idle_http1.pop() {
            let idle_time = now.saturating_duration_since(idle_since);
            let is_open = match idle_time > PEEK_IDLE_TIMEOUT {
                true => idle_time < self.settings.idle_timeout && connection.is_reusable_by_peek(),
                false => connection.is_reusable(),
            };
            if is_open {
                return Some(connection);
            }
        }
        None
    }

    /// Returns a connection to the pool.
    pub(super) fn put_idle(self: &Rc<Self>, connection: Box<UpstreamConnection>, now: Instant) {
        let mut connections = self.connections();
        connections.idle_http1.push((connection, now));
        self.ensure_sweeper(&mut connections);
    }

    fn ensure_sweeper(self: &Rc<Self>, connections: &mut PooledConnections) {
        if !connections.sweeping {
            connections.sweeping = true;
            spawn_local(sweep_idle(Rc::downgrade(self)));
        }
    }

    /// Reserves a stream on a connection with capacity, or on any if no more may be opened.
    pub(super) fn http2_slot(&self) -> Option<h2::StreamSlot> {
        let mut connections = self.connections();
        connections.evict_idle_http2(self.settings.idle_timeout);
        if let Some((sender, last_used)) =
            connections.http2.iter_mut().find(|(sender, _)| sender.has_capacity())
        {
            *last_used = Instant::now();
            return Some(sender.reserve_stream());
        }
        if connections.http2.len() < MAX_HTTP2_CONNECTIONS { None } else { connections.least_loaded() }
    }

    /// Reserves a stream on the least loaded connection, where it may wait for another to end.
    pub(super) fn overflow_slot(&self) -> Option<h2::StreamSlot> {
        self.connections().least_loaded()
    }

    /// Adds a connection to the pool and reserves a stream on it.
    pub(super) fn add_http2(self: &Rc<Self>, sender: h2::Http2Sender) -> h2::StreamSlot {
        let mut connections = self.connections();
        let slot = sender.reserve_stream();
        connections.http2.push((sender, Instant::now()));
        self.ensure_sweeper(&mut connections);
        slot
    }

    /// Removes a connection from the pool. It may be dead without hyper knowing; its open streams continue.
    pub(super) fn mark_unusable(&self, connection: &h2::ConnectionId) {
        self.connections().http2.retain(|(sender, _)| !sender.has_id(connection));
    }

    fn connections(&self) -> RefMut<'_, PooledConnections> {
        self.connections.borrow_mut()
    }
}

impl PooledConnections {
    /// Drops HTTP/2 connections that are closed, or have had no stream for `idle_timeout`.
    fn evict_idle_http2(&mut self, idle_timeout: Duration) {
        self.http2.retain(|(sender, last_used)| {
            !sender.is_closed() && (sender.open_streams() > 0 || last_used.elapsed() < idle_timeout)
        });
    }

    fn least_loaded(&mut self) -> Option<h2::StreamSlot> {
        let (sender, last_used) = self.http2.iter_mut().min_by_key(|(sender, _)| sender.open_streams())?;
        *last_used = Instant::now();
        Some(sender.reserve_stream())
    }
}

/// Closes idle connections that the upstream has closed or that timed out; ends when the pool is empty.
async fn sweep_idle(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(pool) = pool.upgrade() else { return };
        let idle_timeout = pool.settings.idle_timeout;
        let mut connections = pool.connections();
        connections.idle_http1.retain_mut(|(connection, idle_since)| {
            idle_since.elapsed() < idle_timeout && connection.is_reusable()
        });
        connections.evict_idle_http2(idle_timeout);
        if connections.idle_http1.is_empty() && connections.http2.is_empty() {
            connections.sweeping = false;
            return;
        }
    }
}
