//! The streams of an HTTP/2 connection, each with a bound on how long its client may leave an answer lying.
//!
//! Over HTTP/1 a client that reads nothing stops the connection's writes, which have a deadline. Over HTTP/2 it keeps its
//! window shut and goes on answering pings: nothing is ever written, and only the stream's own task can tell.

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

/// Runs streams; one whose client does not take the piece that lies there for so long is reset.
#[derive(Debug, Clone)]
pub(super) struct StreamExecutor(Rc<(Timeouts, Activity)>);

impl StreamExecutor {
    /// Those of one connection.
    pub(super) fn new(timeouts: Timeouts, link: Activity) -> Self {
        Self(Rc::new((timeouts, link)))
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future + 'static,
{
    fn execute(&self, stream: F) {
        let (Self(shared), turn) = (self.clone(), Arc::<WriteProgress>::default());
        let (watched, mut deadline, mut seen) = (turn.clone(), Deadline::unset(), None);
        // In a box of its own: what a task's future moves around takes its room twice.
        let mut stream = Box::pin(stream);
        spawn_local(turn.scope(poll_fn(move |cx| {
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let offered = watched.queued_seq();
            if offered != seen {
                seen = offered;
                let (timeouts, link) = &*shared;
                match offered {
                    Some(_) => deadline.set(timeouts.write_timeout(link.permit())),
                    None => deadline.clear(),
                }
            }
            ready!(deadline.poll_elapsed(cx));
            tracing::debug!("a client took nothing of an answer for too long");
            Poll::Ready(())
        })));
    }
}
