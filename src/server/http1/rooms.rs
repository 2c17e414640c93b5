//! Where requests are answered. The futures that do it take some kilobytes, and a connection needs them only while it has
//! a request: so they stay where they are, and connections come and go.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use super::Conversation;

/// Most rooms that wait on one thread.
const MOST: usize = 64;

/// A future that answers one request after the other.
type Room = Pin<Box<dyn Future<Output = ()>>>;

/// Who comes in has a request; who goes out, whether the connection is to be kept.
type In = Box<Conversation>;
type Out = (Box<Conversation>, bool);

thread_local! {
    static EMPTY: RefCell<Vec<Room>> = const { RefCell::new(Vec::new()) };
    /// The door of all rooms. Whoever comes in or goes out passes it while the room is polled, so it is never in anybody's way.
    static IN: Cell<Option<In>> = const { Cell::new(None) };
    static OUT: Cell<Option<Out>> = const { Cell::new(None) };
}

/// Has one request answered. The connection comes back, with whether it is to be kept.
pub(super) async fn answer(conversation: Box<Conversation>) -> (Box<Conversation>, bool) {
    let mut room = EMPTY.with_borrow_mut(Vec::pop).unwrap_or_else(open);
    let mut coming = Some(conversation);
    let answered = poll_fn(|cx| {
        if coming.is_some() {
            IN.set(coming.take());
        }
        // It goes on for ever; what counts is whether somebody has come out.
        let _ = room.as_mut().poll(cx);
        OUT.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await;
    EMPTY.with_borrow_mut(|empty| {
        if empty.len() < MOST {
            empty.push(room);
        }
    });
    answered
}

fn open() -> Room {
    Box::pin(async {
        loop {
            // Whoever comes in polls.
            let mut conversation = poll_fn(|_| IN.take().map_or(Poll::Pending, Poll::Ready)).await;
            let keep = conversation.answer().await;
            OUT.set(Some((conversation, keep)));
        }
    })
}
