//! Pool of connection tasks of one listener on one worker. A task serves connection after connection, because spawning
//! one for each, with a timer and a head cache of its own, costs nearly half as much as serving a small request. A
//! connection reaches a parked task through a [`Handoff`].

use std::{
    cell::{OnceCell, RefCell},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
};

use tokio::task::spawn_local;

use super::{
    Accepted, Server, handoff::Handoff, http1::ReusedByTask, serve_connection,
    worker_share::CountedConnection,
};
use crate::proxy::Proxy;

/// Maximum number of parked tasks.
const MAX_IDLE_TASKS: usize = 64;

/// The connection tasks of one listener on one worker.
pub(super) struct TaskPool {
    server: Arc<Server>,
    proxy: Rc<Proxy>,
    idle: RefCell<Vec<Rc<PooledTask>>>,
}

/// How a task of the pool is given its next connection.
struct PooledTask {
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
            None => {
                let task = Rc::new(PooledTask { next: Handoff::empty(), waker: OnceCell::new() });
                task.next.put(accepted);
                spawn_local(run(self.clone(), task));
            }
        }
    }

    /// Parks a task; false if enough are parked.
    fn park(&self, task: &Rc<PooledTask>) -> bool {
        let mut idle = self.idle.borrow_mut();
        let has_room = idle.len() < MAX_IDLE_TASKS;
        if has_room {
            idle.push(task.clone());
        }
        has_room
    }
}

/// Body of a connection task: serves each connection that is handed over to it.
async fn run(pool: Rc<TaskPool>, task: Rc<PooledTask>) {
    let mut reused = ReusedByTask::default();
    poll_fn(|cx| {
        task.waker.get_or_init(|| cx.waker().clone());
        Poll::Ready(())
    })
    .await;
    loop {
        let counted = CountedConnection::new();
        serve_connection(&task.next, &pool.server, &pool.proxy, &mut reused).await;
        drop(counted);
        if !pool.park(&task) {
            return;
        }
    }
}
