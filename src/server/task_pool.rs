//! Pool of connection tasks of one listener on one worker. A task serves connection after connection, because spawning
//! one for each, with a timer and a head cache of its own, costs nearly half as much as serving a small request. A
//! connection reaches a parked task through a [`Handoff`].

use std::{
    cell::RefCell,
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
const MAX_PARKED_TASKS: usize = 64;

/// The connection tasks of one listener on one worker.
pub(super) struct TaskPool {
    server: Arc<Server>,
    proxy: Rc<Proxy>,
    parked: RefCell<Vec<Rc<WaitingTask>>>,
}

/// A task that waits for its next connection. Only a new or a parked task has it: a connection would keep its memory.
pub(super) struct WaitingTask {
    pub(super) next: Handoff<(Accepted, CountedConnection)>,
    /// `None`: the task is new.
    waker: Option<Waker>,
}

impl TaskPool {
    pub(super) fn new(server: Arc<Server>, proxy: Rc<Proxy>) -> Rc<Self> {
        Rc::new(Self { server, proxy, parked: RefCell::default() })
    }

    /// Serves a connection on a parked task, or on a new one if none is parked.
    pub(super) fn serve(self: &Rc<Self>, accepted: Accepted) {
        let counted = (accepted, CountedConnection::new());
        let parked = self.parked.borrow_mut().pop();
        match parked {
            Some(task) => {
                task.next.put(counted);
                task.waker.iter().for_each(Waker::wake_by_ref);
            }
            None => {
                let task = Rc::new(WaitingTask { next: Handoff::empty(), waker: None });
                task.next.put(counted);
                spawn_local(run(self.clone(), task));
            }
        }
    }

    /// Parks the task with this waker; `None` if enough are parked.
    fn park(&self, waker: &Waker) -> Option<Rc<WaitingTask>> {
        let mut parked = self.parked.borrow_mut();
        (parked.len() < MAX_PARKED_TASKS).then(|| {
            let task = Rc::new(WaitingTask { next: Handoff::empty(), waker: Some(waker.clone()) });
            parked.push(task.clone());
            task
        })
    }
}

/// Body of a connection task: serves each connection that is handed over to it.
async fn run(pool: Rc<TaskPool>, mut waiting: Rc<WaitingTask>) {
    let mut reused = ReusedByTask::default();
    loop {
        serve_connection(waiting, &pool.server, &pool.proxy, &mut reused).await;
        let parked = poll_fn(|cx| Poll::Ready(pool.park(cx.waker()))).await;
        let Some(parked) = parked else { return };
        waiting = parked;
    }
}
