//! The streams of an HTTP/2 connection, each with a bound on how long its client may leave an answer lying.
//!
//! Over HTTP/1 a client that reads nothing stops the connection's writes, which have a deadline. Over HTTP/2 it keeps its
//! window shut and goes on answering pings: nothing is ever written, and only the stream's own task can tell.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, ready},
    time::Duration,
};

use hyper::rt::Executor;

use crate::deadline::Deadline;

tokio::task_local! {
    static TURN: Arc<Turn>;
}

/// Whose turn it is on a stream. Odd while something lies there for the client; each piece has a number of its own.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicU64);

impl Turn {
    /// That of the stream whose task this is; none over HTTP/1.
    pub(super) fn of_this_stream() -> Option<Arc<Self>> {
        TURN.try_with(Arc::clone).ok()
    }

    /// There is a new piece for the client.
    pub(super) fn offer(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + 1 + now % 2, Ordering::Relaxed);
    }

    /// There is nothing for the client.
    pub(super) fn owe(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + now % 2, Ordering::Relaxed);
    }

    /// The number of what lies there for the client.
    fn offered(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|now| now % 2 == 1)
    }
}

/// Runs streams; one whose client does not take the piece that lies there for so long is reset.
#[derive(Debug, Clone)]
pub(super) struct Streams(pub(super) Duration);

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let (patience, turn) = (self.0, Arc::<Turn>::default());
        let watched = turn.clone();
        tokio::spawn(TURN.scope(turn, async move {
            let mut stream = pin!(stream);
            let (mut deadline, mut seen) = (Deadline::idle(), None);
            poll_fn(|cx| {
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let offered = watched.offered();
                if offered != seen {
                    seen = offered;
                    if offered.is_some() { deadline.set(patience) } else { deadline.clear() }
                }
                ready!(deadline.poll_passed(cx));
                tracing::debug!("a client took nothing of an answer for too long");
                Poll::Ready(())
            })
            .await;
        }));
    }
}
