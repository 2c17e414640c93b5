//! Pool of connection tasks of one listener on one worker. Spawning a task per connection costs more than serving a
//! small request, so a task serves connection after connection. A connection reaches a parked task through a
//! [`Handoff`].

use std::{
    cell::{OnceCell, RefCell},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
};

use tokio::task::spawn_local;

use super::{Accepted, Server, handoff::Handoff, http1::Recycled, serve_connection};
use crate::proxy::Proxy;

/// Maximum number of parked tasks.
const MAX_IDLE_TASKS: usize = 64;

/// The connection tasks of one listener on one worker.
pub(super) struct TaskPool {
    server: Arc<Server>,
    proxy: Rc<Proxy>,
    idle: RefCell<Vec<Rc<IdleTask>>>,
}

/// A parked task and the connection that it serves next.
struct IdleTask {
    next: Handoff<Accepted>,
    waker: OnceCell<Waker>,
}

impl TaskPool {
    pub(super) fn new(server: Arc<Server>, proxy: Rc<Proxy>) -> Rc<Self> {
        Rc::new(Self { server, proxy, idle: RefCell::default() })
    }

    /// Serves a connection on a parked task, or on a new one if none is parked.
    pub(super) fn serve(self: &Rc<Self>, accepted: Accepted) {
        let idle = self.idle.borrow_mut().pop();
        match idle {
            Some(task) => {
                task.next.put(accepted);
                if let Some(waker) = task.waker.get() {
                    waker.wake_by_ref();
                }
            }
            None => drop(spawn_local(run(self.clone(), accepted))),
        }
    }

    /// Parks a task; false if enough are parked.
    fn park(&self, task: &Rc<IdleTask>) -> bool {
        let mut idle = self.idle.borrow_mut();
        let has_room = idle.len() < MAX_IDLE_TASKS;
        if has_room {
            idle.push(task.clone());
        }
        has_room
    }
}

/// Body of a connection task: serves `first`, then each connection that [`TaskPool::serve`] hands over.
async fn run(pool: Rc<TaskPool>, first: Accepted) {
    let task = Rc::new(IdleTask { next: Handoff::empty(), waker: OnceCell::new() });
    let mut recycled = Recycled::default();
    poll_fn(|cx| {
        task.waker.get_or_init(|| cx.waker().clone());
        Poll::Ready(())
    })
    .await;
    let mut accepted = first;
    loop {
        serve_connection(accepted, &pool.server, &pool.proxy, &mut recycled).await;
        if !pool.park(&task) {
            return;
        }
        accepted = poll_fn(|_| task.next.poll_take()).await;
    }
}
