//! Idle HTTP/1 connections, and the shared HTTP/2 one. One pool belongs to one runtime.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicUsize},
    time::Duration,
};

use tokio::time::Instant;

use super::{Settings, connection::Connection, h2};

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);
/// A connection idle for longer than this is asked about in the kernel before it carries a request.
const DOUBTFUL: Duration = Duration::from_millis(100);

/// The connections that are open and not in use.
pub(super) struct Pool {
    pub(super) settings: Arc<Settings>,
    kept: Mutex<Kept>,
    /// Large answers that are on their way.
    pub(super) large: AtomicUsize,
}

#[derive(Default)]
struct Kept {
    idle: Vec<(Connection, Instant)>,
    /// With the moment at which it was last asked for.
    shared: Option<(h2::Sender, Instant)>,
    sweeping: bool,
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>) -> Arc<Self> {
        Arc::new(Self { settings, kept: Mutex::default(), large: AtomicUsize::new(0) })
    }

    /// The connection used last, if it still looks open.
    pub(super) fn take(&self, now: Instant) -> Option<Connection> {
        let mut kept = self.kept();
        while let Some((mut connection, since)) = kept.idle.pop() {
            let idle = now.saturating_duration_since(since);
            let open = match idle > DOUBTFUL {
                true => idle < self.settings.idle_timeout && connection.is_quiet_in_kernel(),
                false => connection.is_quiet(),
            };
            if open {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(self: &Arc<Self>, connection: Connection, now: Instant) {
        let mut kept = self.kept();
        kept.idle.push((connection, now));
        self.see_to_sweeping(&mut kept);
    }

    fn see_to_sweeping(self: &Arc<Self>, kept: &mut Kept) {
        if !kept.sweeping {
            kept.sweeping = true;
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// The HTTP/2 connection, if there is one that takes requests.
    pub(super) fn shared(&self) -> Option<h2::Sender> {
        let mut kept = self.kept();
        kept.forget_idle_shared(self.settings.idle_timeout);
        let (sender, asked_for) = kept.shared.as_mut()?;
        *asked_for = Instant::now();
        Some(sender.clone())
    }

    /// Makes this the HTTP/2 connection.
    pub(super) fn share(self: &Arc<Self>, sender: h2::Sender) {
        let mut kept = self.kept();
        kept.shared = Some((sender, Instant::now()));
        self.see_to_sweeping(&mut kept);
    }

    /// Gives no more requests to this HTTP/2 connection. It may be dead before it knows; what is on it goes on.
    pub(super) fn shun(&self, connection: &h2::Mark) {
        let mut kept = self.kept();
        if kept.shared.as_ref().is_some_and(|(sender, _)| sender.is_on(connection)) {
            kept.shared = None;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Lets the HTTP/2 connection go if it is closed or was idle for too long. It closes when its last request has ended.
    fn forget_idle_shared(&mut self, idle_timeout: Duration) {
        let gone = |(sender, asked_for): &(h2::Sender, Instant)| {
            sender.is_closed() || asked_for.elapsed() >= idle_timeout
        };
        if self.shared.as_ref().is_some_and(gone) {
            self.shared = None;
        }
    }
}

/// Closes what the upstream has closed, and what was idle too long, until nothing is idle any more.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(pool) = pool.upgrade() else { return };
        let idle_timeout = pool.settings.idle_timeout;
        let mut kept = pool.kept();
        kept.idle.retain_mut(|(connection, since)| since.elapsed() < idle_timeout && connection.is_quiet());
        kept.forget_idle_shared(idle_timeout);
        if kept.idle.is_empty() && kept.shared.is_none() {
            kept.sweeping = false;
            return;
        }
    }
}
