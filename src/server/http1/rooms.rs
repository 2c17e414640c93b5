//! Room for the futures that answer a request. A connection needs it only while there is a request, so it is lent out.

use std::{cell::RefCell, future::Future, future::poll_fn};

use tokio_util::sync::ReusableBoxFuture;

use super::Conversation;

/// A connection, and whether it is to be kept.
type Answered = (Conversation, bool);

/// Most rooms that wait on one thread.
const MOST: usize = 64;

thread_local! {
    static EMPTY: RefCell<Vec<ReusableBoxFuture<'static, Answered>>> = const { RefCell::new(Vec::new()) };
}

/// Runs a future in a room that was used before, if there is one. Not an `async fn`, for that would keep the future a
/// second time.
pub(super) fn run(
    future: impl Future<Output = Answered> + Send + 'static,
) -> impl Future<Output = Answered> + Send {
    let mut room = match EMPTY.with_borrow_mut(Vec::pop) {
        Some(mut room) => {
            room.set(future);
            room
        }
        None => ReusableBoxFuture::new(future),
    };
    async move {
        let answered = poll_fn(|cx| room.poll(cx)).await;
        EMPTY.with_borrow_mut(|empty| {
            if empty.len() < MOST {
                empty.push(room);
            }
        });
        answered
    }
}
