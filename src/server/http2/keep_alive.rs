//! PINGs a client that has been silent while its requests are handled, and detects that it is gone.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::Instant;

use crate::time::deadline::Deadline;

/// How long the client may take to answer a PING with any frame.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// Checks whether a client is alive.
pub(super) struct KeepAlive {
    ping_pong: Option<PingPong>,
    interval: Duration,
    /// When the last PING was sent, until the client was heard again.
    pinged_at: Option<Instant>,
    deadline: Deadline,
}

impl KeepAlive {
    /// `interval`: how long the client may be silent before it is sent a PING.
    pub(super) fn new(ping_pong: Option<PingPong>, interval: Duration) -> Self {
        let mut deadline = Deadline::unset();
        deadline.set(interval);
        Self { ping_pong, interval, pinged_at: None, deadline }
    }

    /// Ready when the client is gone. `last_read_at`: when bytes were last received.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>, last_read_at: Instant) -> Poll<()> {
        while self.deadline.poll_elapsed(cx).is_ready() {
            if self.pinged_at.is_some_and(|pinged_at| last_read_at <= pinged_at) {
                return Poll::Ready(());
            }
            self.pinged_at = None;
            let now = Instant::now();
            if last_read_at + self.interval > now {
                self.deadline.set_from(last_read_at, self.interval);
                continue;
            }
            if let Some(ping_pong) = &mut self.ping_pong {
                // Takes the reply to the last PING, without which no other can be sent.
                let _ = ping_pong.poll_pong(cx);
                let _ = ping_pong.send_ping(Ping::opaque());
            }
            self.pinged_at = Some(now);
            self.deadline.set_from(now, PONG_TIMEOUT);
        }
        Poll::Pending
    }
}
