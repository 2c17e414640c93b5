//! What `fuzz/` sees of a kept body beside its bytes.

use std::{
    future::{Future, poll_fn},
    io,
    task::Poll,
};

use tokio::runtime::Builder;

use super::{Kind, ReplayBody};

/// Runs this on a runtime of its own, until all that it began to write has ended too.
pub fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(Builder::new_current_thread().enable_time().build()?.block_on(work))
}

/// Waits until nothing of what was kept is still being written.
pub async fn wait_until_written(upload: &ReplayBody) {
    poll_fn(|cx| match &upload.0 {
        Kind::Buffered(_) => Poll::Ready(()),
        Kind::Streamed(state) => {
            let mut state = state.borrow_mut();
            state.replay_buffer.as_mut().map_or(Poll::Ready(()), |kept| kept.poll_write_done(cx))
        }
    })
    .await;
}

/// The capacity of the buffers that it keeps bytes in, and the bytes that it may have in a file.
pub fn usage(upload: &ReplayBody) -> (u64, u64) {
    match &upload.0 {
        Kind::Buffered(_) => (0, 0),
        Kind::Streamed(state) => {
            state.borrow().replay_buffer.as_ref().map_or((0, 0), super::ReplayBuffer::usage)
        }
    }
}
