//! One exchange on an HTTP/1.1 connection, polled by the calling task, without a task, channel or timer of its own. Why it
//! is ours, with the numbers, is said in `server/http1.rs`.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use tokio::{io::AsyncWrite, time::Instant};

use super::{
    BodyLength, Delivery, UpstreamBody, UpstreamBodyKind, UpstreamError, UpstreamErrorKind, UpstreamRequest,
    UpstreamResponse,
    connection::UpstreamConnection,
    head::{self, ResponseHead},
    large_response::{LargeResponse, SMALL_READ_BYTES},
    pool::Pool,
};
use crate::{
    http1::{
        framing::{BodyEvent, Framing, response_content_length},
        headers::{HeaderKind, Headers},
    },
    request_body::BodyReader,
    text,
    time::deadline::Deadline,
};

/// Bodies up to this size are copied, so that the read buffer is not shared and can be reused.
const MAX_COPY_BYTES: usize = 1024;
/// Maximum interim responses (1xx) before the final one.
const MAX_INTERIM_RESPONSES: u32 = 32;

/// Sends a request and waits for the response head. A body that arrived completely with the head is taken at once,
/// and its connection returns to the pool. `now` is the current time if it was just read. `deadline` is the caller's
/// and is returned once the response is complete.
pub(super) async fn send(
    connection: Box<UpstreamConnection>,
    pool: &Rc<Pool>,
    request: &UpstreamRequest<'_>,
    reader: Option<BodyReader>,
    now: Option<Instant>,
    deadline: &mut Deadline,
) -> Result<UpstreamResponse, UpstreamError> {
    let mut exchange = Http1Exchange::start(connection, pool.clone(), request, reader);
    exchange.cached_now = now;
    std::mem::swap(&mut exchange.deadline, deadline);
    let ResponseHead { status, headers, .. } = poll_fn(|cx| exchange.poll_head(cx)).await?;
    let received_at = Instant::now();
    let content_length = response_content_length(&headers).unwrap_or_default();
    let body = match exchange.take_buffered() {
        Some(bytes) => {
            std::mem::swap(&mut exchange.deadline, deadline);
            exchange.finish(received_at);
            if bytes.is_empty() { UpstreamBodyKind::Ended } else { UpstreamBodyKind::Buffered(bytes) }
        }
        None => UpstreamBodyKind::Http1(Box::new(exchange)),
    };
    Ok(UpstreamResponse { status, headers, content_length, body: UpstreamBody(body), received_at })
}

/// What is still to be read from the client.
enum SendState {
    /// Nothing: no body, or its last chunk is in the write buffer.
    Done,
    /// More chunks of the body.
    Body { reader: BodyReader, chunked: bool },
    /// Nothing more is sent, although the body may continue: the write failed. A response may arrive all the same.
    WriteFailed,
}

/// A request being sent and its response being received.
pub(super) struct Http1Exchange {
    connection: Box<UpstreamConnection>,
    pool: Rc<Pool>,
    method: Method,
    send_state: SendState,
    framing: Framing,
    deadline: Deadline,
    /// The current time, until a poll has waited.
    cached_now: Option<Instant>,
    reusable: bool,
    has_written: bool,
    /// Number of interim responses skipped.
    interim_responses: u32,
    large_response: Option<LargeResponse>,
}

impl Http1Exchange {
    /// Writes the head into the write buffer; nothing is sent before the first poll.
    fn start(
        mut connection: Box<UpstreamConnection>,
        pool: Rc<Pool>,
        request: &UpstreamRequest<'_>,
        reader: Option<BodyReader>,
    ) -> Self {
        head::write_request_head(connection.write_buf.buffer_mut(), request, &pool.settings);
        let chunked = request.body_length == BodyLength::Unknown;
        let send_state = match reader.map(BodyReader::into_complete) {
            None => SendState::Done,
            Some(Ok(bytes)) => {
                connection.write_buf.push_chunk(bytes, chunked, true);
                SendState::Done
            }
            Some(Err(reader)) => SendState::Body { reader, chunked },
        };
        Self {
            connection,
            pool,
            method: request.method.clone(),
            send_state,
            framing: Framing::Done,
            deadline: Deadline::unset(),
            cached_now: None,
            reusable: true,
            has_written: false,
            interim_responses: 0,
            large_response: None,
        }
    }

    /// Sends the request and polls for the response head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, UpstreamError>> {
        let now = self.cached_now.take();
        if let Poll::Ready(Err(error)) = self.poll_write_request(cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            if let Some(head) = self.parse_head().map_err(|kind| self.error(kind))? {
                self.deadline.clear();
                return Poll::Ready(Ok(head));
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => {
                    let kind = if self.response_started() {
                        UpstreamErrorKind::Truncated
                    } else {
                        UpstreamErrorKind::ClosedBeforeResponse
                    };
                    return Poll::Ready(Err(self.error(kind)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) if self.response_started() => {
                    return Poll::Ready(Err(self.error(UpstreamErrorKind::Io(error))));
                }
                Poll::Ready(Err(error)) => {
                    // The system gave up on the peer.
                    if let (io::ErrorKind::TimedOut, Some(idle_since)) =
                        (error.kind(), self.connection.idle_since)
                    {
                        self.pool.report_dead(&self.connection, idle_since);
                    }
                    return Poll::Ready(Err(self.error(UpstreamErrorKind::ClosedBeforeResponse)));
                }
                // A slow client has a timeout of its own; the upstream's starts when it has the request.
                Poll::Pending if self.awaits_client() => {
                    self.deadline.clear();
                    return Poll::Pending;
                }
                Poll::Pending => {
                    if self.deadline.at().is_none() {
                        let response_timeout = self.pool.settings.response_timeout;
                        self.deadline.set_from(now.unwrap_or_else(Instant::now), response_timeout);
                    }
                    let requested_at = self.deadline.at().map(|at| at - self.pool.settings.response_timeout);
                    ready!(self.deadline.poll_elapsed(cx));
                    if let (false, Some(requested_at)) = (self.response_started(), requested_at) {
                        self.pool.report_dead(&self.connection, requested_at);
                    }
                    return Poll::Ready(Err(self.error(UpstreamErrorKind::ResponseTimeout)));
                }
            }
        }
    }

    /// Takes the body if it is complete and the request has been sent.
    fn take_buffered(&mut self) -> Option<Bytes> {
        let content_length = match self.framing {
            _ if !matches!(self.send_state, SendState::Done) => return None,
            Framing::Done => 0,
            Framing::Length(content_length) => usize::try_from(content_length).ok()?,
            Framing::Chunked(_) | Framing::UntilClose | Framing::Malformed => return None,
        };
        if self.connection.read_buf.len() < content_length {
            return None;
        }
        self.framing = Framing::Done;
        let read_buf = &mut self.connection.read_buf;
        if content_length > MAX_COPY_BYTES {
            return Some(read_buf.split_to(content_length).freeze());
        }
        let bytes = Bytes::copy_from_slice(&read_buf[..content_length]);
        read_buf.advance(content_length);
        Some(bytes)
    }

    /// Polls for the next chunk of the response body; `None` at its end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        // An upstream may respond before it has read the request body: both directions progress together.
        if let Poll::Ready(Err(error)) = self.poll_write_request(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.framing.decode(&mut self.connection.read_buf) {
                Ok(BodyEvent::Data(chunk)) => {
                    self.deadline.clear();
                    return Poll::Ready(Some(Ok(chunk)));
                }
                Ok(BodyEvent::End) => return Poll::Ready(None),
                Ok(BodyEvent::NeedMore) => {}
                Err(error) => return Poll::Ready(Some(Err(self.error(UpstreamErrorKind::Framing(error))))),
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) if self.framing == Framing::UntilClose => {
                    self.framing = Framing::Done;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Some(Err(self.error(UpstreamErrorKind::Truncated))));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Some(Err(self.error(UpstreamErrorKind::Io(error)))));
                }
                Poll::Pending => {
                    ready!(self.deadline.poll_stalled(cx, self.pool.settings.body_timeout));
                    return Poll::Ready(Some(Err(self.error(UpstreamErrorKind::BodyTimeout))));
                }
            }
        }
    }

    /// Continues to send the request body. An error here recurs in the next `poll_data`.
    pub(super) fn drive_request_body(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_write_request(cx);
    }

    /// Bytes of framing received so far.
    pub(super) fn framing_overhead(&self) -> u64 {
        self.framing.overhead_bytes()
    }

    /// Whether the whole response has been read.
    pub(super) fn is_ended(&self) -> bool {
        self.framing == Framing::Done
    }

    /// Ends the exchange. The connection returns to the pool if both messages are complete, else it closes.
    pub(super) fn finish(mut self, now: Instant) {
        let is_reusable = self.reusable
            && self.is_ended()
            && matches!(self.send_state, SendState::Done)
            && self.connection.write_buf.is_empty()
            && self.connection.read_buf.is_empty();
        if is_reusable {
            if self.large_response.is_some() {
                self.connection.read_buf = BytesMut::new();
            }
            self.pool.put_idle(self.connection, now);
        }
    }

    fn error(&self, kind: UpstreamErrorKind) -> UpstreamError {
        UpstreamError {
            kind,
            delivery: if self.has_written { Delivery::MaybeSent } else { Delivery::NotSent },
        }
    }

    /// Whether a response to HEAD says nothing of the body's length. An upstream that ends such bodies by closing the
    /// connection closes it now too, and a request sent in this moment would be lost.
    fn is_unsized_head(&self, headers: &Headers) -> bool {
        self.method == Method::HEAD
            && !headers.contains(HeaderKind::ContentLength)
            && !headers.contains(HeaderKind::TransferEncoding)
    }

    /// Whether a byte of the response has arrived; an interim response counts.
    fn response_started(&self) -> bool {
        self.interim_responses > 0 || !self.connection.read_buf.is_empty()
    }

    fn awaits_client(&self) -> bool {
        matches!(self.send_state, SendState::Body { .. }) && self.connection.write_buf.is_empty()
    }

    /// Writes as much as the upstream accepts and the client has sent. Ready when nothing is left to send.
    fn poll_write_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        loop {
            // The first chunk of the body is sent together with the head.
            let mut needs_more = false;
            if self.connection.write_buf.can_buffer() {
                needs_more = self.poll_body_chunk(cx)?.is_pending();
            }
            if self.connection.write_buf.is_empty() {
                if needs_more {
                    self.connection.write_buf.release();
                }
                let flushed = Pin::new(&mut self.connection.stream).poll_flush(cx);
                return match flushed {
                    Poll::Ready(Ok(())) if !needs_more => Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => Poll::Ready(self.stop_sending(&error)),
                    _ => Poll::Pending,
                };
            }
            if let Err(error) = ready!(self.poll_write(cx)) {
                return Poll::Ready(self.stop_sending(&error));
            }
        }
    }

    /// Stops sending after a failed write. The upstream may have responded before it closed, so the response decides.
    fn stop_sending(&mut self, error: &io::Error) -> Result<(), UpstreamError> {
        tracing::debug!(%error, "upstream write failed");
        self.send_state = SendState::WriteFailed;
        self.reusable = false;
        self.connection.write_buf.clear();
        Ok(())
    }

    /// Moves the next chunk of the body into the write buffer. Ready when there is something to write or nothing left
    /// to read.
    fn poll_body_chunk(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, UpstreamError> {
        let SendState::Body { reader, chunked } = &mut self.send_state else { return Ok(Poll::Ready(())) };
        let Poll::Ready(polled) = reader.poll_chunk(cx) else { return Ok(Poll::Pending) };
        let chunked = *chunked;
        let (chunk, ended) = match polled {
            Ok(chunk) => {
                let ended = chunk.is_none() || reader.is_ended();
                (chunk, ended)
            }
            Err(error) => return Err(self.error(UpstreamErrorKind::RequestBody(error))),
        };
        self.connection.write_buf.push_chunk(chunk.unwrap_or_default(), chunked, ended);
        if ended {
            self.send_state = SendState::Done;
        }
        Ok(Poll::Ready(()))
    }

    /// Writes once.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let UpstreamConnection { stream, write_buf, .. } = &mut *self.connection;
        ready!(write_buf.poll_write(stream, cx))?;
        self.has_written = true;
        // The timeout covers only the time without progress.
        self.deadline.clear();
        Poll::Ready(Ok(()))
    }

    /// Reads once into the buffer; 0 is the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let UpstreamConnection { stream, read_buf, read_waker, .. } = &mut *self.connection;
        let max_bytes = self.large_response.as_ref().map_or(SMALL_READ_BYTES, LargeResponse::read_bytes);
        let read = ready!(stream.poll_read_buf(cx, read_buf, max_bytes, read_waker))?;
        if read >= SMALL_READ_BYTES && self.large_response.is_none() {
            self.large_response = Some(LargeResponse::new(&self.pool));
        }
        Poll::Ready(Ok(read))
    }

    /// Parses the response head once it is complete. Skips interim responses (1xx).
    fn parse_head(&mut self) -> Result<Option<ResponseHead>, UpstreamErrorKind> {
        let UpstreamConnection { read_buf, header_cache, .. } = &mut *self.connection;
        while !read_buf.is_empty() {
            let Some(head) = head::parse_response_head(read_buf, header_cache)? else { return Ok(None) };
            if head.status.is_informational() {
                self.interim_responses += 1;
                if self.interim_responses > MAX_INTERIM_RESPONSES {
                    return Err(UpstreamErrorKind::InvalidHead(
                        const { &text!("too many 1xx responses", "1xx 响应太多") },
                    ));
                }
                continue;
            }
            self.framing = Framing::of_response(&self.method, head.status, &head.headers)
                .map_err(UpstreamErrorKind::Framing)?;
            self.reusable &= head.keep_alive
                && self.framing != Framing::UntilClose
                && !self.is_unsized_head(&head.headers);
            self.connection.keep_alive_timeout = head::keep_alive_timeout(&head.headers);
            return Ok(Some(head));
        }
        Ok(None)
    }
}
