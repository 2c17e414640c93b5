//! What `fuzz/` sees of a kept body beside its bytes.

use std::{
    future::{Future, poll_fn},
    io,
    task::Poll,
};

use tokio::runtime::Builder;

use super::{Kind, Upload};

/// Runs this on a runtime of its own, until all that it began to write has ended too.
pub fn on_runtime<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(Builder::new_current_thread().enable_time().build()?.block_on(work))
}

/// Waits until nothing of what was kept is still being written.
pub async fn written(upload: &Upload) {
    poll_fn(|cx| match &upload.0 {
        Kind::Whole(_) => Poll::Ready(()),
        Kind::Streamed(state) => {
            let mut state = state.borrow_mut();
            state.kept.as_mut().map_or(Poll::Ready(()), |kept| kept.poll_idle(cx))
        }
    })
    .await;
}

/// The capacity of the buffers that it keeps bytes in, and the bytes that it may have in a file.
pub fn held(upload: &Upload) -> (u64, u64) {
    match &upload.0 {
        Kind::Whole(_) => (0, 0),
        Kind::Streamed(state) => state.borrow().kept.as_ref().map_or((0, 0), super::Kept::held),
    }
}
