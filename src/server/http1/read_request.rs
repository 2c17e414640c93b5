//! Waits for the next request head of an HTTP/1 connection, with its time-outs.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use tokio::time::Instant;

use super::{
    Http1Connection, handler_pool,
    head::{self, HeadError},
};
use crate::server::{HTTP2_PREFACE, MAX_HEAD_BYTES, SHUTDOWN_GRACE_TIMEOUT, large_head::LargeHead};

/// So many bytes of an incomplete head any connection may hold before a request on it was authorized: with its buffer's spare
/// capacity it takes less than 64 KiB. More takes a [`LargeHead`].
const MAX_UNAUTHORIZED_HEAD_BYTES: usize = 44 * 1024;
/// The same under TLS, whose state takes 8 KiB: the buffer doubles beyond 32 KiB.
const MAX_UNAUTHORIZED_TLS_HEAD_BYTES: usize = 28 * 1024;

/// Result of waiting for a request.
pub(super) enum NextRequest {
    /// The head is stored for the handler.
    Head,
    Malformed(HeadError),
    /// The client speaks HTTP/2.
    Http2,
    /// The client disconnected or timed out, or the server stops.
    Closed,
}

impl Http1Connection {
    /// Waits for the next request's head.
    pub(super) async fn read_request(&mut self) -> NextRequest {
        let mut examined = 0;
        self.timer.clear();
        poll_fn(|cx| self.poll_read_request(cx, &mut examined)).await
    }

    fn poll_read_request(&mut self, cx: &mut Context<'_>, examined: &mut usize) -> Poll<NextRequest> {
        let mut state = self.transport.state();
        let is_idle = loop {
            // A head that arrives in small parts is parsed again at each line end, not for each byte.
            let unexamined = &state.read_buf[*examined..];
            if !unexamined.is_empty()
                && (*examined == 0 || unexamined.contains(&b'\n') || state.read_buf.len() >= MAX_HEAD_BYTES)
            {
                if self.may_be_http2 && is_http2_preface(&state.read_buf) {
                    if state.read_buf.len() >= HTTP2_PREFACE.len() {
                        return Poll::Ready(NextRequest::Http2);
                    }
                } else {
                    match head::parse(&mut state.read_buf, &mut self.head_cache) {
                        Ok(Some(head)) => {
                            self.permit.mark_active();
                            handler_pool::put_head(head);
                            self.large_head = None;
                            return Poll::Ready(NextRequest::Head);
                        }
                        Ok(None) => {}
                        Err(malformed) => return Poll::Ready(NextRequest::Malformed(malformed)),
                    }
                }
            }
            let is_idle = state.read_buf.is_empty();
            *examined = state.read_buf.len();
            match state.poll_read_buf(cx) {
                Poll::Ready(Ok(read)) if read > 0 => {
                    if is_idle {
                        self.timer.clear();
                    }
                }
                Poll::Ready(read) => {
                    // Without close_notify, a client that has only stopped sending takes its response for cut off.
                    if read.is_ok() && !state.stream().is_plaintext() {
                        let _ = state.poll_shutdown(cx);
                    }
                    return Poll::Ready(NextRequest::Closed);
                }
                Poll::Pending => break is_idle,
            }
        };
        match is_idle {
            true => state.release_buffer(),
            // A partial head that arrives slowly.
            false => state.release_spare_capacity(),
        }
        drop(state);
        if !self.may_hold_head() {
            return Poll::Ready(NextRequest::Malformed(head::too_many_large_heads()));
        }
        if self.timer.at().is_none() {
            let (since, timeout) = match is_idle {
                true => (self.responded_at.take(), self.server.timeouts.idle),
                false => (None, self.server.timeouts.header),
            };
            self.timer.set_from(since.unwrap_or_else(Instant::now), timeout);
        }
        if self.should_close(is_idle) {
            return Poll::Ready(NextRequest::Closed);
        }
        ready!(self.timer.poll_elapsed(cx));
        Poll::Ready(NextRequest::Closed)
    }

    /// Whether the connection may hold so many bytes of an incomplete head: until a request was authorized, more than a
    /// connection without a key may use takes a [`LargeHead`].
    fn may_hold_head(&mut self) -> bool {
        let state = self.transport.state();
        let held_bytes = state.read_buf.len() + state.stream().incomplete_record_bytes();
        let max_bytes = match state.stream().is_plaintext() {
            true => MAX_UNAUTHORIZED_HEAD_BYTES,
            false => MAX_UNAUTHORIZED_TLS_HEAD_BYTES,
        };
        drop(state);
        if held_bytes > max_bytes && !self.permit.is_authorized() && self.large_head.is_none() {
            self.large_head = LargeHead::try_acquire();
            return self.large_head.is_some();
        }
        true
    }

    /// Whether a connection without a complete request is to be closed. When the server stops, a new connection and one
    /// with a partial head get [`SHUTDOWN_GRACE_TIMEOUT`]: a request is on the way, and its client has seen an accepted
    /// connection. When the connection limit is reached, a partial head on an authorized connection counts as a
    /// request only for a while (`mark_partial`).
    fn should_close(&mut self, is_idle: bool) -> bool {
        if self.server.is_stopping() {
            if is_idle && !self.is_new {
                return true;
            }
            self.timer.set_if_earlier(SHUTDOWN_GRACE_TIMEOUT);
        }
        let since = |timeout| self.timer.at().and_then(|deadline| deadline.checked_sub(timeout));
        match is_idle {
            true => since(self.server.timeouts.idle).is_some_and(|since| self.permit.mark_idle(since)),
            false => since(self.server.timeouts.header).is_some_and(|since| self.permit.mark_partial(since)),
        }
    }
}

/// Whether the received bytes are a prefix of the HTTP/2 preface, or begin with it.
fn is_http2_preface(received: &[u8]) -> bool {
    let common = received.len().min(HTTP2_PREFACE.len());
    received[..common] == HTTP2_PREFACE[..common]
}
