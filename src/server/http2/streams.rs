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

use super::link::{Link, Turn};
use crate::{deadline::Deadline, server::Timeouts};

/// Runs streams; one whose client does not take the piece that lies there for so long is reset.
#[derive(Debug, Clone)]
pub(super) struct Streams(Rc<(Timeouts, Link)>);

impl Streams {
    /// Those of one connection.
    pub(super) fn new(timeouts: Timeouts, link: Link) -> Self {
        Self(Rc::new((timeouts, link)))
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + 'static,
{
    fn execute(&self, stream: F) {
        let (Self(shared), turn) = (self.clone(), Arc::<Turn>::default());
        let (watched, mut deadline, mut seen) = (turn.clone(), Deadline::idle(), None);
        // In a box of its own: what a task's future moves around takes its room twice.
        let mut stream = Box::pin(stream);
        spawn_local(turn.scope(poll_fn(move |cx| {
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let offered = watched.offered();
            if offered != seen {
                seen = offered;
                let (timeouts, link) = &*shared;
                match offered {
                    Some(_) => deadline.set(timeouts.stall(link.seat())),
                    None => deadline.clear(),
                }
            }
            ready!(deadline.poll_passed(cx));
            tracing::debug!("a client took nothing of an answer for too long");
            Poll::Ready(())
        })));
    }
}
