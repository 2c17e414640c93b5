//! One answer on its way to the client: head and body in as few writes as they take.

use std::{
    fmt::Write as _,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::BufMut;
use http::{Method, StatusCode, Version};
use tokio::time::Instant;

use super::wire::Wire;
use crate::{
    buffers,
    deadline::Deadline,
    outbox::Outbox,
    proxy::{Broken, Reply, ReplyBody},
};

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// All of it was handed over.
    Whole,
    /// It broke off, or the client does not take it.
    Broken,
}

/// What the request says of how it is to be answered.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    pub(super) version: Version,
    pub(super) is_head: bool,
    /// The connection is to be kept.
    pub(super) keep: bool,
}

impl Manner {
    pub(super) fn of(method: &Method, version: Version, keep: bool) -> Self {
        Self { version, is_head: method == Method::HEAD, keep }
    }
}

/// An answer that is being written.
pub(super) struct Delivery {
    out: Outbox,
    /// It lasts until all was handed over, and with it the request's record.
    body: ReplyBody,
    /// The last piece is in hand, or gone.
    ended: bool,
    chunked: bool,
    /// The connection ends with it.
    parting: bool,
    /// How much of the body is still owed, where that was said.
    owed: Option<u64>,
    stalled: Deadline,
}

impl Delivery {
    /// Writes the head. Whether the connection can be kept after it is returned too; where it is not, it must be shut down
    /// when the answer has ended.
    pub(super) fn begin(reply: Reply, manner: Manner) -> (Self, bool) {
        let Reply { status, lines, dated, length, body, .. } = reply;
        let mut out = buffers::take();
        let new = manner.version == Version::HTTP_11;
        let bodiless = manner.is_head || matches!(status.as_u16(), 204 | 304);
        let until_close = length.is_none() && !bodiless && !new;
        let keep = manner.keep && !until_close;
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
            out: Outbox::within(out),
            ended: bodiless,
            body,
            chunked: new && length.is_none() && !bodiless,
            parting: !keep,
            owed: length.filter(|_| !bodiless),
            stalled: Deadline::idle(),
        };
        (delivery, keep)
    }

    /// Writes as much as the client takes. `stall` is how long it may take nothing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, wire: &Wire, stall: Duration) -> Poll<End> {
        loop {
            let mut starved = false;
            if !self.ended && self.out.has_room() {
                match self.poll_next_piece(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(Broken)) => return Poll::Ready(End::Broken),
                    Poll::Pending => starved = true,
                }
            }
            let mut wire = wire.inner();
            if self.out.is_empty() {
                let flushed = wire.poll_flush(cx);
                if matches!(flushed, Poll::Ready(Err(_))) {
                    return Poll::Ready(End::Broken);
                }
                if starved {
                    ready!(wire.poll_left(cx, false, false));
                    return Poll::Ready(End::Broken);
                }
                if !self.ended {
                    continue;
                }
                if flushed.is_ready() {
                    return Poll::Ready(End::Whole);
                }
                return self.poll_stalled(cx, stall);
            }
            match wire.poll_write(cx, &mut self.out, self.parting && self.ended) {
                Poll::Ready(Ok(())) => {
                    self.stalled.clear();
                    // Nothing is left in a plain stream that would have to be flushed.
                    if self.ended && self.out.is_empty() && wire.stream().is_plain() {
                        return Poll::Ready(End::Whole);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(End::Broken),
                Poll::Pending => {
                    drop(wire);
                    // A client may send all of its request before it reads any of the answer.
                    self.body.drive_upload(cx);
                    return self.poll_stalled(cx, stall);
                }
            }
        }
    }

    /// Waits for a client that takes nothing, as long as it may.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, stall: Duration) -> Poll<End> {
        self.stalled.set_if_idle(stall);
        self.stalled.poll_passed(cx).map(|()| End::Broken)
    }

    /// Takes the body's next piece. It is in hand then, or the body is over.
    fn poll_next_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let piece = ready!(self.body.poll_piece(cx)).transpose()?;
        let ended = piece.is_none() || self.body.is_ended();
        let piece = piece.unwrap_or_default();
        if let Some(owed) = &mut self.owed {
            *owed = owed.checked_sub(piece.len() as u64).ok_or(Broken)?;
            if ended && *owed > 0 {
                return Poll::Ready(Err(Broken));
            }
        }
        self.out.put(piece, self.chunked, ended);
        self.ended = ended;
        Poll::Ready(Ok(()))
    }

    /// It has ended by this moment.
    pub(super) fn end(mut self, now: Instant) {
        self.body.end(now);
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        buffers::give(self.out.take_buffer());
    }
}
