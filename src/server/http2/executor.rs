//! Runs the streams of an HTTP/2 connection, each with a bound on how long its client may leave response data unread.
//!
//! Over HTTP/1 a client that reads nothing blocks the connection's writes, which have a deadline. Over HTTP/2 it keeps
//! the stream's window closed and still replies to pings: no write blocks, and only the stream's own task can detect
//! it.

use std::{
    future::{Future, poll_fn},
    rc::Rc,
    sync::Arc,
    task::{Poll, ready},
};

use hyper::rt::Executor;
use tokio::task::spawn_local;

use super::activity::{Activity, WriteProgress};
use crate::{server::Timeouts, time::deadline::Deadline};

/// Spawns a task per stream, and resets a stream whose waiting chunk is not sent within the write time-out.
#[derive(Debug, Clone)]
pub(super) struct StreamExecutor(Rc<(Timeouts, Activity)>);

impl StreamExecutor {
    /// Creates the executor of one connection.
    pub(super) fn new(timeouts: Timeouts, activity: Activity) -> Self {
        Self(Rc::new((timeouts, activity)))
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future + 'static,
{
    fn execute(&self, stream: F) {
        let (Self(shared), progress) = (self.clone(), Arc::<WriteProgress>::default());
        let (watched_progress, mut deadline, mut last_queued) = (progress.clone(), Deadline::unset(), None);
        // Boxed, because a future that is moved into a task takes its size twice.
        let mut stream = Box::pin(stream);
        spawn_local(progress.scope(poll_fn(move |cx| {
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let queued = watched_progress.queued_seq();
            if queued != last_queued {
                last_queued = queued;
                let (timeouts, activity) = &*shared;
                match queued {
                    Some(_) => deadline.set(timeouts.write_timeout(activity.permit())),
                    None => deadline.clear(),
                }
            }
            ready!(deadline.poll_elapsed(cx));
            tracing::debug!("response write timed out, stream reset");
            Poll::Ready(())
        })));
    }
}
