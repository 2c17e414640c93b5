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

use super::{Server, converse, house::Seat, http1::Leftovers};
use crate::{io::Stream, proxy::Proxy};

/// Most tables that wait for a guest.
const MOST: usize = 64;

/// A connection that is to be served.
pub(super) struct Guest {
    pub(super) stream: Stream,
    pub(super) peer: Option<IpAddr>,
    pub(super) seat: Arc<Seat>,
}

/// The tables of one listener on one worker.
pub(super) struct Tables {
    pub(super) server: Arc<Server>,
    pub(super) proxy: Rc<Proxy>,
    free: RefCell<Vec<Rc<Table>>>,
}

/// A table that waits, and its next guest.
#[derive(Default)]
struct Table {
    guest: Cell<Option<Guest>>,
    waker: OnceCell<Waker>,
}

impl Tables {
    pub(super) fn new(server: Arc<Server>, proxy: Rc<Proxy>) -> Rc<Self> {
        Rc::new(Self { server, proxy, free: RefCell::default() })
    }

    /// Has a connection served.
    pub(super) fn serve(self: &Rc<Self>, guest: Guest) {
        let free = self.free.borrow_mut().pop();
        match free {
            Some(table) => {
                table.guest.set(Some(guest));
                if let Some(waker) = table.waker.get() {
                    waker.wake_by_ref();
                }
            }
            None => drop(spawn_local(wait_at_one(self.clone(), guest))),
        }
    }

    /// Takes a table back; none where there are enough.
    fn take_back(&self, table: &Rc<Table>) -> bool {
        let mut free = self.free.borrow_mut();
        let is_wanted = free.len() < MOST;
        if is_wanted {
            free.push(table.clone());
        }
        is_wanted
    }
}

/// A table's life.
async fn wait_at_one(tables: Rc<Tables>, first: Guest) {
    let (table, mut leftovers) = (Rc::new(Table::default()), Leftovers::default());
    poll_fn(|cx| {
        table.waker.get_or_init(|| cx.waker().clone());
        Poll::Ready(())
    })
    .await;
    let mut guest = first;
    loop {
        converse(guest, &tables.server, &tables.proxy, &mut leftovers).await;
        if !tables.take_back(&table) {
            return;
        }
        guest = poll_fn(|_| table.guest.take().map_or(Poll::Pending, Poll::Ready)).await;
    }
}
