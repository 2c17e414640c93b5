//! Pool of idle HTTP/1 connections and shared HTTP/2 connections, one per runtime.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeMetrics},
    task::spawn_local,
    time::Instant,
};

use super::{
    Settings,
    connection::{UpstreamConnection, spread},
    h2,
};

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
    /// The version of the suspects that this pool has looked through.
    suspects_seen: Cell<u64>,
    /// Connections dialled until then trusted other certificates.
    retired_until: Cell<Option<Instant>>,
    /// Counts the runtime's waits for events.
    runtime: OnceCell<RuntimeMetrics>,
}

/// An HTTP/1.1 connection without a request.
struct IdleConnection {
    connection: Box<UpstreamConnection>,
    idle_since: Instant,
    /// See [`Pool::event_waits`].
    idle_since_wait: u64,
    reusable_until: Instant,
}

#[derive(Default)]
struct PooledConnections {
    idle_http1: Vec<IdleConnection>,
    /// With the time of each one's last checkout.
    http2: Vec<(h2::Http2Sender, Instant)>,
    sweeping: bool,
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>) -> Rc<Self> {
        Rc::new(Self {
            settings,
            connections: RefCell::default(),
            large_responses: Cell::new(0),
            suspects_seen: Cell::new(0),
            retired_until: Cell::new(None),
            runtime: OnceCell::new(),
        })
    }

    /// Takes the most recently used idle connection that is still open. `is_resendable`: a request that finds it
    /// closed can be sent again, so that a close of the last moment need not be seen. For other requests the socket is
    /// peeked at, unless the runtime has waited for events since the connection became idle: then an event has told it
    /// of a close, and a system call is saved.
    pub(super) fn take_idle(&self, now: Instant, is_resendable: bool) -> Option<Box<UpstreamConnection>> {
        self.close_suspects();
        let mut connections = self.connections.borrow_mut();
        while let Some(idle) = connections.idle_http1.pop() {
            let IdleConnection { mut connection, idle_since, idle_since_wait, reusable_until } = idle;
            let peeks = now > idle_since + PEEK_IDLE_TIMEOUT
                || !is_resendable && idle_since_wait == self.event_waits();
            if now < reusable_until
                && if peeks { connection.is_reusable_by_peek() } else { connection.is_reusable() }
            {
                return Some(connection);
            }
        }
        None
    }

    /// After a request that got no response on a reused connection: closes those to the same address, in the pools of
    /// all workers, that have been idle since `silent_since` or longer. A firewall that forgot one forgot them too.
    pub(super) fn report_dead(&self, connection: &UpstreamConnection, silent_since: Instant) {
        if let Some(peer) = connection.peer.filter(|_| connection.idle_since.is_some()) {
            self.settings.suspects.add(peer, silent_since, self.settings.idle_timeout);
        }
    }

    fn close_suspects(&self) {
        let version = self.settings.suspects.version();
        if self.suspects_seen.replace(version) != version {
            let (suspects, mut connections) =
                (self.settings.suspects.snapshot(), self.connections.borrow_mut());
            self.retired_until.set(suspects.retired_until);
            connections.idle_http1.retain(|idle| {
                !self.is_retired(idle.connection.dialed_at)
                    && !suspects.contains(idle.connection.peer, idle.idle_since)
            });
            connections.http2.retain(|(sender, last_used)| {
                if self.is_retired(sender.dialed_at()) {
                    sender.retire();
                }
                sender.open_streams() > 0 || !suspects.contains(sender.peer(), *last_used)
            });
        }
    }

    fn is_retired(&self, dialed_at: Instant) -> bool {
        Some(dialed_at) <= self.retired_until.get()
    }

    /// Returns a connection to the pool.
    pub(super) fn put_idle(self: &Rc<Self>, mut connection: Box<UpstreamConnection>, now: Instant) {
        let reusable_until = connection.reusable_until(now, self.settings.idle_timeout);
        if reusable_until <= now || self.is_retired(connection.dialed_at) {
            return;
        }
        connection.idle_since = Some(now);
        let idle_since_wait = self.event_waits();
        let mut connections = self.connections.borrow_mut();
        connections.idle_http1.push(IdleConnection {
            connection,
            idle_since: now,
            idle_since_wait,
            reusable_until,
        });
        self.ensure_sweeper(&mut connections);
    }

    /// How often the runtime has waited for events so far. It has one worker, whose tasks use this pool.
    fn event_waits(&self) -> u64 {
        self.runtime.get_or_init(|| Handle::current().metrics()).worker_park_count(0)
    }

    fn ensure_sweeper(self: &Rc<Self>, connections: &mut PooledConnections) {
        if !connections.sweeping {
            connections.sweeping = true;
            spawn_local(sweep_idle(Rc::downgrade(self)));
        }
    }

    /// Reserves a stream on a connection with capacity, or on any if no more may be opened.
    pub(super) fn http2_slot(&self) -> Option<h2::StreamSlot> {
        self.close_suspects();
        let (mut connections, now) = (self.connections.borrow_mut(), Instant::now());
        connections.evict_idle_http2(self.settings.idle_timeout, now);
        if let Some((sender, last_used)) =
            connections.http2.iter_mut().find(|(sender, _)| sender.accepts_stream(now))
        {
            *last_used = now;
            return Some(sender.reserve_stream());
        }
        if connections.http2.len() < MAX_HTTP2_CONNECTIONS { None } else { connections.least_loaded() }
    }

    /// Reserves a stream on the least loaded connection, where it may wait for another to end.
    pub(super) fn overflow_slot(&self) -> Option<h2::StreamSlot> {
        self.connections.borrow_mut().least_loaded()
    }

    /// Adds a connection to the pool and reserves a stream on it.
    pub(super) fn add_http2(self: &Rc<Self>, sender: h2::Http2Sender) -> h2::StreamSlot {
        let mut connections = self.connections.borrow_mut();
        let slot = sender.reserve_stream();
        if self.is_retired(sender.dialed_at()) {
            sender.retire();
        }
        connections.http2.push((sender, Instant::now()));
        self.ensure_sweeper(&mut connections);
        slot
    }

    /// Removes a connection from the pool. It may be dead without h2 knowing; its open streams continue.
    pub(super) fn mark_unusable(&self, connection: &h2::ConnectionId) {
        let mut connections = self.connections.borrow_mut();
        let found = connections.http2.iter().position(|(sender, _)| sender.has_id(connection));
        let Some((_, last_used)) = found.map(|nth| connections.http2.swap_remove(nth)) else { return };
        if let Some(peer) = connection.peer().filter(|_| connection.is_dead()) {
            self.settings.suspects.add(peer, last_used, self.settings.idle_timeout);
        }
    }

    /// A longest age for a new connection.
    pub(super) fn max_age(&self) -> Duration {
        spread(self.settings.max_age)
    }
}

impl PooledConnections {
    /// Drops HTTP/2 connections that are closed, and those without a stream that are old or have had none for
    /// `idle_timeout`.
    fn evict_idle_http2(&mut self, idle_timeout: Duration, now: Instant) {
        self.http2.retain_mut(|(sender, last_used)| {
            let is_usable =
                !sender.is_retired(now) && now.saturating_duration_since(*last_used) < idle_timeout;
            !sender.is_closed() && (sender.open_streams() > 0 || is_usable)
        });
    }

    fn least_loaded(&mut self) -> Option<h2::StreamSlot> {
        let usable = self.http2.iter_mut().filter(|(sender, _)| !sender.is_unusable());
        let (sender, last_used) = usable.min_by_key(|(sender, _)| sender.open_streams())?;
        *last_used = Instant::now();
        Some(sender.reserve_stream())
    }
}

/// Closes idle connections that the upstream has closed or that timed out; ends when the pool is empty.
async fn sweep_idle(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(pool) = pool.upgrade() else { return };
        pool.close_suspects();
        let (idle_timeout, now) = (pool.settings.idle_timeout, Instant::now());
        let mut connections = pool.connections.borrow_mut();
        connections.idle_http1.retain_mut(|idle| now < idle.reusable_until && idle.connection.is_reusable());
        connections.evict_idle_http2(idle_timeout, now);
        if connections.idle_http1.is_empty() && connections.http2.is_empty() {
            connections.sweeping = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::{
        net::TcpStream,
        runtime::{Builder, LocalOptions},
    };

    use super::*;
    use crate::{
        config::{self, UpstreamId},
        http1::io::Stream,
    };

    fn settings() -> Settings {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-secret\"\n")
            .expect("written");
        let config = config::load(file.path()).expect("a configuration");
        Settings::new(UpstreamId::default(), &config.upstream).expect("valid settings")
    }

    /// A pool with one idle connection, and the upstream's end of it.
    async fn pool_with_idle() -> (Rc<Pool>, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (upstream, _) = listener.accept().expect("a connection");
        let pool = Pool::new(Arc::new(settings()));
        let (now, open) = (Instant::now(), pool.settings.open_connections.open());
        let connection = UpstreamConnection::new(Stream::Tcp(stream), now, Duration::from_secs(60), open);
        pool.put_idle(Box::new(connection), now);
        (pool, upstream)
    }

    /// A close on the loopback interface has arrived when the call returns.
    #[test]
    fn closed_connection_is_not_taken_for_a_request_sent_once() {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        runtime.expect("a runtime").block_on(async {
            for waits in [false, true] {
                let (pool, upstream) = pool_with_idle().await;
                let before = pool.event_waits();
                drop(upstream);
                if waits {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                assert_eq!(pool.event_waits() > before, waits);
                assert!(pool.take_idle(Instant::now(), false).is_none(), "{waits}");
            }
            let (pool, _upstream) = pool_with_idle().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(pool.take_idle(Instant::now(), false).is_some());
        });
    }
}
