//! What `fuzz/` observes of a replay buffer beside its bytes.

use std::{future::poll_fn, task::Poll};

use super::{Kind, ReplayBody};

/// Waits until no write to the file is in progress.
pub async fn wait_until_written(body: &ReplayBody) {
    poll_fn(|cx| match &body.0 {
        Kind::Complete(_) => Poll::Ready(()),
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
        Kind::Complete(_) => (0, 0),
        Kind::Streamed(state) => {
            state.borrow().replay_buffer.as_ref().map_or((0, 0), super::ReplayBuffer::usage)
        }
    }
}
