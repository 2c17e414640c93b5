//! One answer on its way to the client: head and body in as few writes as they take.

use std::{
    fmt::Write as _,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::BufMut;
use http::{Method, StatusCode, Version};
use tokio::time::Instant;

use super::transport::Transport;
use crate::{
    http1::{buffer_pool, write_buf::WriteBuf},
    proxy::{Response, ResponseAborted, ResponseBody},
    time::deadline::Deadline,
};

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// All of it was handed over.
    Complete,
    /// It broke off, or the client does not take it.
    Aborted,
}

/// What the request says of how it is to be answered.
#[derive(Clone, Copy)]
pub(super) struct ResponseOptions {
    pub(super) version: Version,
    pub(super) is_head: bool,
    /// The connection is to be kept.
    pub(super) keep_alive: bool,
}

impl ResponseOptions {
    pub(super) fn new(method: &Method, version: Version, keep_alive: bool) -> Self {
        Self { version, is_head: method == Method::HEAD, keep_alive }
    }
}

/// An answer that is being written.
pub(super) struct ResponseWriter {
    write_buf: WriteBuf,
    /// It lasts until all was handed over, and with it the request's record.
    body: ResponseBody,
    /// The last piece is in hand, or gone.
    body_ended: bool,
    chunked: bool,
    /// The connection ends with it.
    closing: bool,
    /// How much of the body is still owed, where that was said.
    remaining: Option<u64>,
    write_deadline: Deadline,
}

impl ResponseWriter {
    /// Writes the head. Whether the connection can be kept after it is returned too; where it is not, it must be shut down
    /// when the answer has ended.
    pub(super) fn start(reply: Response, manner: ResponseOptions) -> (Self, bool) {
        let Response { status, headers: lines, has_date: dated, content_length: length, body, .. } = reply;
        let mut out = buffer_pool::acquire();
        let new = manner.version == Version::HTTP_11;
        let bodiless = manner.is_head || matches!(status.as_u16(), 204 | 304);
        let until_close = length.is_none() && !bodiless && !new;
        let keep = manner.keep_alive && !until_close;
        out.put_slice(if new { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        out.put_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.put_slice(b"\r\n");
        out.put_slice(lines.as_bytes());
        match length {
            _ if status == StatusCode::NO_CONTENT => {}
            Some(length) => {
                out.put_slice(b"content-length: ");
                out.put_slice(itoa::Buffer::new().format(length).as_bytes());
                out.put_slice(b"\r\n");
            }
            None if new && !bodiless => out.put_slice(b"transfer-encoding: chunked\r\n"),
            None => {}
        }
        if !dated {
            let _ = write!(out, "date: {}\r\n", httpdate::HttpDate::from(SystemTime::now()));
        }
        match (new, keep) {
            (true, false) => out.put_slice(b"connection: close\r\n"),
            (false, true) => out.put_slice(b"connection: keep-alive\r\n"),
            _ => {}
        }
        out.put_slice(b"\r\n");
        let delivery = Self {
            write_buf: WriteBuf::with_buffer(out),
            body_ended: bodiless,
            body,
            chunked: new && length.is_none() && !bodiless,
            closing: !keep,
            remaining: length.filter(|_| !bodiless),
            write_deadline: Deadline::unset(),
        };
        (delivery, keep)
    }

    /// Writes as much as the client takes. `stall` is how long it may take nothing.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        wire: &Transport,
        stall: Duration,
    ) -> Poll<WriteOutcome> {
        loop {
            let mut starved = false;
            if !self.body_ended && self.write_buf.can_buffer() {
                match self.poll_next_chunk(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(ResponseAborted)) => return Poll::Ready(WriteOutcome::Aborted),
                    Poll::Pending => starved = true,
                }
            }
            let mut wire = wire.shared();
            if self.write_buf.is_empty() {
                let flushed = wire.poll_flush(cx);
                if matches!(flushed, Poll::Ready(Err(_))) {
                    return Poll::Ready(WriteOutcome::Aborted);
                }
                if starved {
                    ready!(wire.poll_disconnected(cx, false, false));
                    return Poll::Ready(WriteOutcome::Aborted);
                }
                if !self.body_ended {
                    continue;
                }
                if flushed.is_ready() {
                    return Poll::Ready(WriteOutcome::Complete);
                }
                return self.poll_write_timeout(cx, stall);
            }
            match wire.poll_write(cx, &mut self.write_buf, self.closing && self.body_ended) {
                Poll::Ready(Ok(())) => {
                    self.write_deadline.clear();
                    // Nothing is left in a plain stream that would have to be flushed.
                    if self.body_ended && self.write_buf.is_empty() && wire.stream().is_plaintext() {
                        return Poll::Ready(WriteOutcome::Complete);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(WriteOutcome::Aborted),
                Poll::Pending => {
                    drop(wire);
                    // A client may send all of its request before it reads any of the answer.
                    self.body.drive_request_body(cx);
                    return self.poll_write_timeout(cx, stall);
                }
            }
        }
    }

    /// Waits for a client that takes nothing, as long as it may.
    fn poll_write_timeout(&mut self, cx: &mut Context<'_>, stall: Duration) -> Poll<WriteOutcome> {
        self.write_deadline.set_if_unset(stall);
        self.write_deadline.poll_elapsed(cx).map(|()| WriteOutcome::Aborted)
    }

    /// Takes the body's next piece. It is in hand then, or the body is over.
    fn poll_next_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ResponseAborted>> {
        let piece = ready!(self.body.poll_chunk(cx)).transpose()?;
        let ended = piece.is_none() || self.body.is_ended();
        let piece = piece.unwrap_or_default();
        if let Some(owed) = &mut self.remaining {
            *owed = owed.checked_sub(piece.len() as u64).ok_or(ResponseAborted)?;
            if ended && *owed > 0 {
                return Poll::Ready(Err(ResponseAborted));
            }
        }
        self.write_buf.push_chunk(piece, self.chunked, ended);
        self.body_ended = ended;
        Poll::Ready(Ok(()))
    }

    /// It has ended by this moment.
    pub(super) fn finish(mut self, now: Instant) {
        self.body.mark_ended(now);
    }
}

impl Drop for ResponseWriter {
    fn drop(&mut self) {
        buffer_pool::release(self.write_buf.take_buffer());
    }
}
