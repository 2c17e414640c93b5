//! Where connections are served, on one worker. A table is a task: it serves one connection to its end, and then the next.
//! What a new connection would have to make anew, the task itself to begin with, costs more than many a request.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
};

use tokio::task::spawn_local;

use super::{Server, connection_limit::ConnectionPermit, http1::Recycled, serve_connection};
use crate::{http1::io::Stream, proxy::Proxy};

/// Most tables that wait for a guest.
const MAX_IDLE_TASKS: usize = 64;

/// A connection that is to be served.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) peer: Option<IpAddr>,
    pub(super) permit: Arc<ConnectionPermit>,
}

/// The tables of one listener on one worker.
pub(super) struct TaskPool {
    pub(super) server: Arc<Server>,
    pub(super) proxy: Rc<Proxy>,
    idle: RefCell<Vec<Rc<IdleTask>>>,
}

/// A table that waits, and its next guest.
#[derive(Default)]
struct IdleTask {
    next: Cell<Option<Accepted>>,
    waker: OnceCell<Waker>,
}

impl TaskPool {
    pub(super) fn new(server: Arc<Server>, proxy: Rc<Proxy>) -> Rc<Self> {
        Rc::new(Self { server, proxy, idle: RefCell::default() })
    }

    /// Has a connection served.
    pub(super) fn serve(self: &Rc<Self>, guest: Accepted) {
        let free = self.idle.borrow_mut().pop();
        match free {
            Some(table) => {
                table.next.set(Some(guest));
                if let Some(waker) = table.waker.get() {
                    waker.wake_by_ref();
                }
            }
            None => drop(spawn_local(run(self.clone(), guest))),
        }
    }

    /// Takes a table back; none where there are enough.
    fn park(&self, table: &Rc<IdleTask>) -> bool {
        let mut free = self.idle.borrow_mut();
        let is_wanted = free.len() < MAX_IDLE_TASKS;
        if is_wanted {
            free.push(table.clone());
        }
        is_wanted
    }
}

/// A table's life.
async fn run(tables: Rc<TaskPool>, first: Accepted) {
    let (table, mut leftovers) = (Rc::new(IdleTask::default()), Recycled::default());
    poll_fn(|cx| {
        table.waker.get_or_init(|| cx.waker().clone());
        Poll::Ready(())
    })
    .await;
    let mut guest = first;
    loop {
        serve_connection(guest, &tables.server, &tables.proxy, &mut leftovers).await;
        if !tables.park(&table) {
            return;
        }
        guest = poll_fn(|_| table.next.take().map_or(Poll::Pending, Poll::Ready)).await;
    }
}
