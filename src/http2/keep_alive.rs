//! PINGs a peer that has been silent, and detects that it is gone.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::Instant;

use crate::time::deadline::Deadline;

/// Checks whether the peer of a connection is alive.
pub struct KeepAlive {
    ping_pong: Option<PingPong>,
    interval: Duration,
    pong_timeout: Duration,
    /// When the last PING was sent, until the peer was heard again.
    pinged_at: Option<Instant>,
    deadline: Deadline,
}

impl KeepAlive {
    /// `interval`: how long the peer may be silent before it is sent a PING. `pong_timeout`: how long it may take to
    /// answer with any frame.
    pub fn new(ping_pong: Option<PingPong>, interval: Duration, pong_timeout: Duration) -> Self {
        let mut deadline = Deadline::unset();
        deadline.set(interval);
        Self { ping_pong, interval, pong_timeout, pinged_at: None, deadline }
    }

    /// Whether a PING has had no answer that was noticed yet.
    pub fn awaits_pong(&self) -> bool {
        self.pinged_at.is_some()
    }

    /// Ready when the peer is gone. `last_read_at`: when bytes were last received.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, last_read_at: Instant) -> Poll<()> {
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
            self.deadline.set_from(now, self.pong_timeout);
        }
        Poll::Pending
    }
}
