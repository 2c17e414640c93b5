//! Where requests are answered. The futures that do it take some kilobytes, and a connection needs them only while it has
//! a request: so they stay where they are, and connections come and go.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use super::Http1Connection;

/// Most rooms that wait on one thread.
const MAX_IDLE_HANDLERS: usize = 64;

/// A future that answers one request after the other.
type HandlerFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Who comes in has a request; who goes out, whether the connection is to be kept.
type HandlerInput = Box<Http1Connection>;
type HandlerOutput = (Box<Http1Connection>, bool);

thread_local! {
    static IDLE: RefCell<Vec<HandlerFuture>> = const { RefCell::new(Vec::new()) };
    /// The door of all rooms. Whoever comes in or goes out passes it while the room is polled, so it is never in anybody's way.
    static INPUT: Cell<Option<HandlerInput>> = const { Cell::new(None) };
    static OUTPUT: Cell<Option<HandlerOutput>> = const { Cell::new(None) };
}

/// Has one request answered. The connection comes back, with whether it is to be kept.
pub(super) async fn run(conversation: Box<Http1Connection>) -> (Box<Http1Connection>, bool) {
    let mut room = IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(new_handler);
    let mut coming = Some(conversation);
    let answered = poll_fn(|cx| {
        if coming.is_some() {
            INPUT.set(coming.take());
        }
        // It goes on for ever; what counts is whether somebody has come out.
        let _ = room.as_mut().poll(cx);
        OUTPUT.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await;
    IDLE.with_borrow_mut(|empty| {
        if empty.len() < MAX_IDLE_HANDLERS {
            empty.push(room);
        }
    });
    answered
}

fn new_handler() -> HandlerFuture {
    Box::pin(async {
        loop {
            // Whoever comes in polls.
            let mut conversation = poll_fn(|_| INPUT.take().map_or(Poll::Pending, Poll::Ready)).await;
            let keep = conversation.handle_request().await;
            OUTPUT.set(Some((conversation, keep)));
        }
    })
}
