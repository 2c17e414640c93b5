//! Idle HTTP/1 connections, and the shared HTTP/2 ones. One pool belongs to one runtime.

use std::{
    cell::{Cell, RefCell, RefMut},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::{task::spawn_local, time::Instant};

use super::{Settings, connection::UpstreamConnection, h2};

/// How often idle connections are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A connection idle for longer than this is asked about in the kernel before it carries a request.
const PEEK_IDLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Most HTTP/2 connections at once. With a hundred requests on each they carry more than `upstream.max_in_flight` usually
/// allows.
const MAX_HTTP2_CONNECTIONS: usize = 64;

/// The connections that are open and not in use.
pub(super) struct Pool {
    pub(super) settings: Arc<Settings>,
    connections: RefCell<PooledConnections>,
    /// Large answers that are on their way.
    pub(super) large_responses: Cell<usize>,
}

#[derive(Default)]
struct PooledConnections {
    idle_http1: Vec<(Box<UpstreamConnection>, Instant)>,
    /// With the moment at which each was last asked for.
    http2: Vec<(h2::Http2Sender, Instant)>,
    sweeping: bool,
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>) -> Rc<Self> {
        Rc::new(Self { settings, connections: RefCell::default(), large_responses: Cell::new(0) })
    }

    /// The connection used last, if it still looks open.
    pub(super) fn take_idle(&self, now: Instant) -> Option<Box<UpstreamConnection>> {
        let mut kept = self.connections();
        while let Some((mut connection, since)) = kept.idle_http1.pop() {
            let idle = now.saturating_duration_since(since);
            let open = match idle > PEEK_IDLE_TIMEOUT {
                true => idle < self.settings.idle_timeout && connection.is_reusable_by_peek(),
                false => connection.is_reusable(),
            };
            if open {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(super) fn put_idle(self: &Rc<Self>, connection: Box<UpstreamConnection>, now: Instant) {
        let mut kept = self.connections();
        kept.idle_http1.push((connection, now));
        self.ensure_sweeper(&mut kept);
    }

    fn ensure_sweeper(self: &Rc<Self>, kept: &mut PooledConnections) {
        if !kept.sweeping {
            kept.sweeping = true;
            spawn_local(sweep_idle(Rc::downgrade(self)));
        }
    }

    /// A place on an HTTP/2 connection, if there is one with room, or if there may be no more connections.
    pub(super) fn http2_slot(&self) -> Option<h2::StreamSlot> {
        let mut kept = self.connections();
        kept.evict_idle_http2(self.settings.idle_timeout);
        if let Some((sender, asked_for)) = kept.http2.iter_mut().find(|(sender, _)| sender.has_capacity()) {
            *asked_for = Instant::now();
            return Some(sender.reserve_stream());
        }
        if kept.http2.len() < MAX_HTTP2_CONNECTIONS { None } else { kept.least_loaded() }
    }

    /// A place on an HTTP/2 connection where it may have to wait until others have ended.
    pub(super) fn overflow_slot(&self) -> Option<h2::StreamSlot> {
        self.connections().least_loaded()
    }

    /// Lets others use this HTTP/2 connection; a place on it.
    pub(super) fn add_http2(self: &Rc<Self>, sender: h2::Http2Sender) -> h2::StreamSlot {
        let mut kept = self.connections();
        let place = sender.reserve_stream();
        kept.http2.push((sender, Instant::now()));
        self.ensure_sweeper(&mut kept);
        place
    }

    /// Gives no more requests to this HTTP/2 connection. It may be dead before it knows; what is on it goes on.
    pub(super) fn mark_unusable(&self, connection: &h2::ConnectionId) {
        self.connections().http2.retain(|(sender, _)| !sender.has_id(connection));
    }

    fn connections(&self) -> RefMut<'_, PooledConnections> {
        self.connections.borrow_mut()
    }
}

impl PooledConnections {
    /// Lets HTTP/2 connections go that are closed, or carry nothing and were idle for too long.
    fn evict_idle_http2(&mut self, idle_timeout: Duration) {
        self.http2.retain(|(sender, asked_for)| {
            !sender.is_closed() && (sender.open_streams() > 0 || asked_for.elapsed() < idle_timeout)
        });
    }

    fn least_loaded(&mut self) -> Option<h2::StreamSlot> {
        let (sender, asked_for) = self.http2.iter_mut().min_by_key(|(sender, _)| sender.open_streams())?;
        *asked_for = Instant::now();
        Some(sender.reserve_stream())
    }
}

/// Closes what the upstream has closed, and what was idle too long, until nothing is idle any more.
async fn sweep_idle(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(pool) = pool.upgrade() else { return };
        let idle_timeout = pool.settings.idle_timeout;
        let mut kept = pool.connections();
        kept.idle_http1
            .retain_mut(|(connection, since)| since.elapsed() < idle_timeout && connection.is_reusable());
        kept.evict_idle_http2(idle_timeout);
        if kept.idle_http1.is_empty() && kept.http2.is_empty() {
            kept.sweeping = false;
            return;
        }
    }
}
