//! Pool of handler futures. Such a future takes several kilobytes, and a connection needs one only while it has a
//! request: the futures stay in place, and a connection is moved in and out through a pair of [`Handoff`] slots.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
};

use super::{Http1Connection, head::RequestHead};
use crate::server::handoff::Handoff;

/// Maximum number of parked futures per thread.
const MAX_IDLE_HANDLERS: usize = 64;

/// A future that handles one request after another and never completes.
type HandlerFuture = Pin<Box<dyn Future<Output = ()>>>;

/// A connection with a request, and the same connection with whether it may be kept.
type HandlerInput = Box<Http1Connection>;
type HandlerOutput = (Box<Http1Connection>, bool);

thread_local! {
    static IDLE: RefCell<Vec<HandlerFuture>> = const { RefCell::new(Vec::new()) };
    /// The request of the connection in `INPUT`, put right before by the same poll: the head takes memory that an idle
    /// connection must not have.
    static HEAD: Handoff<RequestHead> = const { Handoff::empty() };
    /// Input and output slot of the handler that is being polled. The input is put right before its poll and taken at
    /// its start, the output put at its end and taken right after it, so one pair per thread is enough.
    static INPUT: Handoff<HandlerInput> = const { Handoff::empty() };
    static OUTPUT: Handoff<HandlerOutput> = const { Handoff::empty() };
}

/// Stores the head that was read; [`run`] must follow in the same poll of the connection's task.
pub(super) fn put_head(head: RequestHead) {
    HEAD.with(|slot| slot.put(head));
}

/// Handles the connection's request, whose head was stored by [`put_head`]. Returns the connection and whether it may be kept.
pub(super) async fn run(connection: Box<Http1Connection>) -> (Box<Http1Connection>, bool) {
    let mut handler = IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(new_handler);
    let mut input = Some(connection);
    let output = poll_fn(|cx| {
        if let Some(connection) = input.take() {
            INPUT.with(|slot| slot.put(connection));
        }
        // The handler never completes; its output tells whether the request was handled.
        let _ = handler.as_mut().poll(cx);
        OUTPUT.with(Handoff::poll_take)
    })
    .await;
    IDLE.with_borrow_mut(|idle| {
        if idle.len() < MAX_IDLE_HANDLERS {
            idle.push(handler);
        }
    });
    output
}

fn new_handler() -> HandlerFuture {
    Box::pin(async {
        loop {
            // `run` polls right after it has filled the slot, so no waker is needed.
            let mut connection = poll_fn(|_| INPUT.with(Handoff::poll_take)).await;
            let head = poll_fn(|_| HEAD.with(Handoff::poll_take)).await;
            let keep = connection.handle_request(head).await;
            OUTPUT.with(|slot| slot.put((connection, keep)));
        }
    })
}
