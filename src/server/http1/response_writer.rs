//! Writes one response to the client, head and body in as few writes as possible.

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

/// How a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// All of it was written.
    Complete,
    /// The body was aborted, or the client does not read.
    Aborted,
}

/// What the request determines about the response.
#[derive(Clone, Copy)]
pub(super) struct ResponseOptions {
    pub(super) version: Version,
    pub(super) is_head_request: bool,
    /// The connection is to be kept.
    pub(super) keep_alive: bool,
}

impl ResponseOptions {
    pub(super) fn new(method: &Method, version: Version, keep_alive: bool) -> Self {
        Self { version, is_head_request: method == Method::HEAD, keep_alive }
    }
}

/// A response that is being written.
pub(super) struct ResponseWriter {
    write_buf: WriteBuf,
    /// Kept until all is written, because the request context ends with it.
    body: ResponseBody,
    /// The last chunk is in the write buffer, or written.
    body_ended: bool,
    chunked: bool,
    /// The connection ends with this response.
    closing: bool,
    /// Bytes of the body still to be written, if `Content-Length` was sent.
    remaining: Option<u64>,
    write_deadline: Deadline,
}

impl ResponseWriter {
    /// Encodes the head. Returns also whether the connection can be kept; otherwise it must be shut down when the
    /// response is complete.
    pub(super) fn start(response: Response, options: ResponseOptions) -> (Self, bool) {
        let Response { status, headers, has_date, content_length, body, .. } = response;
        let mut buffer = buffer_pool::acquire();
        let is_http11 = options.version == Version::HTTP_11;
        let bodiless = options.is_head_request || matches!(status.as_u16(), 204 | 304);
        let until_close = content_length.is_none() && !bodiless && !is_http11;
        let keep_alive = options.keep_alive && !until_close;
        buffer.put_slice(if is_http11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        buffer.put_slice(status.as_str().as_bytes());
        buffer.put_u8(b' ');
        buffer.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        buffer.put_slice(b"\r\n");
        buffer.put_slice(headers.as_bytes());
        match content_length {
            _ if status == StatusCode::NO_CONTENT => {}
            Some(content_length) => {
                buffer.put_slice(b"content-length: ");
                buffer.put_slice(itoa::Buffer::new().format(content_length).as_bytes());
                buffer.put_slice(b"\r\n");
            }
            None if is_http11 && !bodiless => buffer.put_slice(b"transfer-encoding: chunked\r\n"),
            None => {}
        }
        if !has_date {
            let _ = write!(buffer, "date: {}\r\n", httpdate::HttpDate::from(SystemTime::now()));
        }
        match (is_http11, keep_alive) {
            (true, false) => buffer.put_slice(b"connection: close\r\n"),
            (false, true) => buffer.put_slice(b"connection: keep-alive\r\n"),
            _ => {}
        }
        buffer.put_slice(b"\r\n");
        let writer = Self {
            write_buf: WriteBuf::with_buffer(buffer),
            body_ended: bodiless,
            body,
            chunked: is_http11 && content_length.is_none() && !bodiless,
            closing: !keep_alive,
            remaining: content_length.filter(|_| !bodiless),
            write_deadline: Deadline::unset(),
        };
        (writer, keep_alive)
    }

    /// Writes until the response is complete or the client stops reading; aborts after `write_timeout` without
    /// progress.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        transport: &Transport,
        write_timeout: Duration,
    ) -> Poll<WriteOutcome> {
        loop {
            let mut needs_body = false;
            if !self.body_ended && self.write_buf.can_buffer() {
                match self.poll_next_chunk(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(ResponseAborted)) => return Poll::Ready(WriteOutcome::Aborted),
                    Poll::Pending => needs_body = true,
                }
            }
            let mut state = transport.state();
            if self.write_buf.is_empty() {
                let flushed = state.poll_flush(cx);
                if matches!(flushed, Poll::Ready(Err(_))) {
                    return Poll::Ready(WriteOutcome::Aborted);
                }
                if needs_body {
                    ready!(state.poll_disconnected(cx, false));
                    return Poll::Ready(WriteOutcome::Aborted);
                }
                if !self.body_ended {
                    continue;
                }
                if flushed.is_ready() {
                    return Poll::Ready(WriteOutcome::Complete);
                }
                return self.poll_stalled(cx, write_timeout);
            }
            match state.poll_write(cx, &mut self.write_buf, self.closing && self.body_ended) {
                Poll::Ready(Ok(())) => {
                    self.write_deadline.clear();
                    // A plain stream has nothing left to flush.
                    if self.body_ended && self.write_buf.is_empty() && state.stream().is_plaintext() {
                        return Poll::Ready(WriteOutcome::Complete);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(WriteOutcome::Aborted),
                Poll::Pending => {
                    drop(state);
                    // A client may send its whole request before it reads the response.
                    self.body.drive_request_body(cx);
                    return self.poll_stalled(cx, write_timeout);
                }
            }
        }
    }

    /// Waits for a client that reads nothing, up to `write_timeout`.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, write_timeout: Duration) -> Poll<WriteOutcome> {
        self.write_deadline.poll_stalled(cx, write_timeout).map(|()| WriteOutcome::Aborted)
    }

    /// Moves the body's next chunk into the write buffer, or notes the end of the body. Fails if the body does not
    /// match `Content-Length`.
    fn poll_next_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ResponseAborted>> {
        let chunk = ready!(self.body.poll_chunk(cx)).transpose()?;
        let ended = chunk.is_none() || self.body.is_ended();
        let chunk = chunk.unwrap_or_default();
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.checked_sub(chunk.len() as u64).ok_or(ResponseAborted)?;
            if ended && *remaining > 0 {
                return Poll::Ready(Err(ResponseAborted));
            }
        }
        self.write_buf.push_chunk(chunk, self.chunked, ended);
        self.body_ended = ended;
        Poll::Ready(Ok(()))
    }

    /// Records `now` as the end of the response.
    pub(super) fn finish(mut self, now: Instant) {
        self.body.mark_ended(now);
    }
}

impl Drop for ResponseWriter {
    fn drop(&mut self) {
        buffer_pool::release(self.write_buf.take_buffer());
    }
}
