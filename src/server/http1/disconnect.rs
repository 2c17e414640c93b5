//! Detects that the client of a request that is being handled has disconnected.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use super::transport::{MAX_READ_AHEAD_BYTES, Shared};
use crate::{http1::framing::Framing, http1::io::CloseWatch, time::deadline::Deadline};

/// A waiting request that is not sent to WeCom within this time of FIN is dropped: most clients that send FIN have
/// closed the connection, and nobody would read the response.
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
    fn poll(&mut self, cx: &mut Context<'_>, fin_read: bool, is_waiting: bool) -> Poll<()> {
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
        self.drop_at.set_if_unset(MAX_WAIT_AFTER_FIN);
        self.drop_at.poll_elapsed(cx)
    }
}

impl Shared {
    /// Ready when the client has disconnected. Bytes that it sends ahead are buffered, up to a bound. While a body is
    /// being read, its reader notices the end; while the request waits (`is_waiting`) before that, the end is detected
    /// behind the unread bytes.
    ///
    /// FIN after a complete request ends only the client's sending (RFC 9112 §9.6): the response is still written. A
    /// client that has closed its socket replies to the response with RST, which is a disconnect, as any read error is.
    pub(super) fn poll_disconnected(&mut self, cx: &mut Context<'_>, is_waiting: bool) -> Poll<()> {
        while !self.fin_read && self.framing == Framing::Done && self.read_buf.len() < MAX_READ_AHEAD_BYTES {
            match self.poll_read_buf(cx) {
                Poll::Ready(Ok(read)) => self.fin_read = read == 0,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let is_unread = match self.framing {
            Framing::Done => self.read_buf.len() >= MAX_READ_AHEAD_BYTES,
            _ => self.body_unread,
        };
        if (self.fin_read || (is_waiting && is_unread)) && self.poll_closed(cx, is_waiting).is_ready() {
            return Poll::Ready(());
        }
        if self.framing != Framing::Done {
            self.disconnect_waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>, is_waiting: bool) -> Poll<()> {
        let mut watch = self.disconnect_watch.take().unwrap_or_default();
        if watch.socket.is_none() {
            watch.socket = CloseWatch::new(self.stream()).ok();
        }
        let closed = watch.poll(cx, self.fin_read, is_waiting);
        self.disconnect_watch = Some(watch);
        closed
    }

    /// Whether no further request can come: FIN and everything before it was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.fin_read && self.read_buf.is_empty()
    }
}
