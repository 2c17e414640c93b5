//! Idle HTTP/1 connections, and the shared HTTP/2 ones. One pool belongs to one runtime.

use std::{
    cell::{Cell, RefCell, RefMut},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::{task::spawn_local, time::Instant};

use super::{Settings, connection::Connection, h2};

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);
/// A connection idle for longer than this is asked about in the kernel before it carries a request.
const DOUBTFUL: Duration = Duration::from_millis(100);

/// Most HTTP/2 connections at once. With a hundred requests on each they carry more than `upstream.max_in_flight` usually
/// allows.
const MOST_SHARED: usize = 64;

/// The connections that are open and not in use.
pub(super) struct Pool {
    pub(super) settings: Arc<Settings>,
    kept: RefCell<Kept>,
    /// Large answers that are on their way.
    pub(super) large: Cell<usize>,
}

#[derive(Default)]
struct Kept {
    idle: Vec<(Box<Connection>, Instant)>,
    /// With the moment at which each was last asked for.
    shared: Vec<(h2::Sender, Instant)>,
    sweeping: bool,
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>) -> Rc<Self> {
        Rc::new(Self { settings, kept: RefCell::default(), large: Cell::new(0) })
    }

    /// The connection used last, if it still looks open.
    pub(super) fn take(&self, now: Instant) -> Option<Box<Connection>> {
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
    pub(super) fn put(self: &Rc<Self>, connection: Box<Connection>, now: Instant) {
        let mut kept = self.kept();
        kept.idle.push((connection, now));
        self.see_to_sweeping(&mut kept);
    }

    fn see_to_sweeping(self: &Rc<Self>, kept: &mut Kept) {
        if !kept.sweeping {
            kept.sweeping = true;
            spawn_local(sweep(Rc::downgrade(self)));
        }
    }

    /// A place on an HTTP/2 connection, if there is one with room, or if there may be no more connections.
    pub(super) fn shared(&self) -> Option<h2::Place> {
        let mut kept = self.kept();
        kept.forget_idle_shared(self.settings.idle_timeout);
        if let Some((sender, asked_for)) = kept.shared.iter_mut().find(|(sender, _)| sender.has_room()) {
            *asked_for = Instant::now();
            return Some(sender.place());
        }
        if kept.shared.len() < MOST_SHARED { None } else { kept.least_crowded() }
    }

    /// A place on an HTTP/2 connection where it may have to wait until others have ended.
    pub(super) fn crowded(&self) -> Option<h2::Place> {
        self.kept().least_crowded()
    }

    /// Lets others use this HTTP/2 connection; a place on it.
    pub(super) fn share(self: &Rc<Self>, sender: h2::Sender) -> h2::Place {
        let mut kept = self.kept();
        let place = sender.place();
        kept.shared.push((sender, Instant::now()));
        self.see_to_sweeping(&mut kept);
        place
    }

    /// Gives no more requests to this HTTP/2 connection. It may be dead before it knows; what is on it goes on.
    pub(super) fn shun(&self, connection: &h2::Mark) {
        self.kept().shared.retain(|(sender, _)| !sender.is_on(connection));
    }

    fn kept(&self) -> RefMut<'_, Kept> {
        self.kept.borrow_mut()
    }
}

impl Kept {
    /// Lets HTTP/2 connections go that are closed, or carry nothing and were idle for too long.
    fn forget_idle_shared(&mut self, idle_timeout: Duration) {
        self.shared.retain(|(sender, asked_for)| {
            !sender.is_closed() && (sender.open() > 0 || asked_for.elapsed() < idle_timeout)
        });
    }

    fn least_crowded(&mut self) -> Option<h2::Place> {
        let (sender, asked_for) = self.shared.iter_mut().min_by_key(|(sender, _)| sender.open())?;
        *asked_for = Instant::now();
        Some(sender.place())
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
        if kept.idle.is_empty() && kept.shared.is_empty() {
            kept.sweeping = false;
            return;
        }
    }
}
