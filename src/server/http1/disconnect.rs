//! Detects that the client of a request that is being handled has disconnected.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{
    http1::io::{CloseWatch, Stream},
    time::deadline::Deadline,
};

/// A request that still waits for a token, a ticket or a permit this long after FIN is dropped: most clients that
/// send FIN have closed the connection, and would not get the response.
const MAX_WAIT_AFTER_FIN: Duration = Duration::from_secs(1);

/// What is watched of a connection behind unread bytes, or after FIN. Most connections never have one.
#[derive(Default)]
pub(super) struct DisconnectWatch {
    /// `None` if there was no descriptor for it.
    socket: Option<CloseWatch>,
    /// When the request is dropped if it still waits; set once FIN is known.
    drop_at: Deadline,
}

impl DisconnectWatch {
    /// Ready when RST has arrived, or when the request has waited too long after FIN. `fin_read`: the end of the stream
    /// was read.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &Stream,
        fin_read: bool,
        is_waiting: bool,
    ) -> Poll<()> {
        if self.socket.is_none() {
            self.socket = CloseWatch::new(stream).ok();
        }
        if !fin_read {
            // Without a descriptor, the body's reader notices the disconnect.
            ready!(self.socket.as_ref().map_or(Poll::Pending, |socket| socket.poll_read_closed(cx)));
        }
        if self.socket.as_ref().is_some_and(|socket| socket.poll_write_closed(cx).is_ready()) {
            return Poll::Ready(());
        }
        if !is_waiting {
            return Poll::Pending;
        }
        self.drop_at.poll_stalled(cx, MAX_WAIT_AFTER_FIN)
    }
}
