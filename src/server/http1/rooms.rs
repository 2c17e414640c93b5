//! Where requests are answered. The futures that do it take some kilobytes, and a connection needs them only while it has
//! a request: so they stay where they are, and connections come and go.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use super::{Conversation, head::Head};
use crate::proxy::Proxy;

/// Most rooms that wait on one thread.
const MOST: usize = 64;

thread_local! {
    static EMPTY: RefCell<Vec<Room>> = const { RefCell::new(Vec::new()) };
}

/// A future that answers one request after the other, and the door through which they come.
struct Room {
    door: Arc<Mutex<Door>>,
    answering: Pin<Box<dyn Future<Output = ()> + Send>>,
}

enum Door {
    Shut,
    /// A connection with a request.
    In(Conversation, Head, Arc<Proxy>),
    /// The connection, and whether it is to be kept.
    Out(Conversation, bool),
}

/// Has one request answered. The connection comes back, with whether it is to be kept.
pub(super) async fn answer(
    conversation: Conversation,
    head: Head,
    proxy: Arc<Proxy>,
) -> (Conversation, bool) {
    let mut room = EMPTY.with_borrow_mut(Vec::pop).unwrap_or_else(Room::open);
    *room.door() = Door::In(conversation, head, proxy);
    let answered = poll_fn(|cx| {
        // It goes on for ever; what counts is whether somebody has come out.
        let _ = room.answering.as_mut().poll(cx);
        room.door().go_out()
    })
    .await;
    EMPTY.with_borrow_mut(|empty| {
        if empty.len() < MOST {
            empty.push(room);
        }
    });
    answered
}

impl Door {
    fn come_in(&mut self) -> Poll<(Conversation, Head, Arc<Proxy>)> {
        match std::mem::replace(self, Self::Shut) {
            Self::In(conversation, head, proxy) => Poll::Ready((conversation, head, proxy)),
            other => {
                *self = other;
                Poll::Pending
            }
        }
    }

    fn go_out(&mut self) -> Poll<(Conversation, bool)> {
        match std::mem::replace(self, Self::Shut) {
            Self::Out(conversation, keep) => Poll::Ready((conversation, keep)),
            other => {
                *self = other;
                Poll::Pending
            }
        }
    }
}

impl Room {
    fn open() -> Self {
        let door = Arc::new(Mutex::new(Door::Shut));
        let inside = door.clone();
        let answering = Box::pin(async move {
            loop {
                // Whoever comes in polls.
                let (mut conversation, head, proxy) = poll_fn(|_| lock(&inside).come_in()).await;
                let keep = conversation.answer(head, &proxy).await;
                *lock(&inside) = Door::Out(conversation, keep);
            }
        });
        Self { door, answering }
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        lock(&self.door)
    }
}

fn lock(door: &Mutex<Door>) -> MutexGuard<'_, Door> {
    door.lock().unwrap_or_else(PoisonError::into_inner)
}
