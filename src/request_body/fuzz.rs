//! What `fuzz/` observes of a replay buffer beside its bytes.

use std::{
    future::{Future, poll_fn},
    io,
    task::Poll,
};

use tokio::runtime::Builder;

use super::{Kind, ReplayBody};

/// Runs `future` on its own runtime, until all blocking writes that it started have completed.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    Ok(Builder::new_current_thread().enable_time().build()?.block_on(future))
}

/// Waits until no write to the file is in progress.
pub async fn wait_until_written(body: &ReplayBody) {
    poll_fn(|cx| match &body.0 {
        Kind::Buffered(_) => Poll::Ready(()),
        Kind::Streamed(state) => {
            let mut state = state.borrow_mut();
            state
                .replay_buffer
                .as_mut()
                .map_or(Poll::Ready(()), |replay_buffer| replay_buffer.poll_write_done(cx))
        }
    })
    .await;
}

/// Capacity of the buffers in memory, and bytes reserved on disk.
pub fn usage(body: &ReplayBody) -> (u64, u64) {
    match &body.0 {
        Kind::Buffered(_) => (0, 0),
        Kind::Streamed(state) => {
            state.borrow().replay_buffer.as_ref().map_or((0, 0), super::ReplayBuffer::usage)
        }
    }
}
