//! One request and its answer on an HTTP/1.1 connection, driven in the task that asked: no task, channel or timer of its
//! own stands between the two sides.

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
    pool::Pool,
};
use crate::{
    http1::framing::{BodyEvent, Framing, response_content_length},
    request_body::BodyReader,
    time::deadline::Deadline,
};

/// First read of an answer; small replies fit.
const SMALL_READ_BYTES: usize = 8 * 1024;
/// A body up to this size is copied: the buffer it came in need not be shared then.
const MAX_COPY_BYTES: usize = 1024;
/// Most interim answers (1xx) before the one that counts.
const MAX_INTERIM_RESPONSES: u32 = 32;
/// Reads of an answer that proved to be large, as long as there are few of them.
const LARGE_READ_BYTES: usize = 1024 * 1024;
/// What all large reads of a worker share: a client that takes nothing more of its download holds what was read last.
const MAX_LARGE_READS_BYTES: usize = 64 * 1024 * 1024;

/// Sends a request and waits for the answer's head. What came with it is taken along, and a connection that is done with
/// goes back to the pool at once. `now` is what the clock says, if it was just asked. `deadline` is the caller's, who needs it
/// again when the answer is whole.
pub(super) async fn send(
    connection: Box<UpstreamConnection>,
    pool: &Rc<Pool>,
    outgoing: &UpstreamRequest<'_>,
    reader: Option<BodyReader>,
    now: Option<Instant>,
    deadline: &mut Deadline,
) -> Result<UpstreamResponse, UpstreamError> {
    let mut exchange = Http1Exchange::start(connection, pool.clone(), outgoing, reader);
    exchange.cached_now = now;
    std::mem::swap(&mut exchange.deadline, deadline);
    let ResponseHead { status, headers: fields, .. } = poll_fn(|cx| exchange.poll_head(cx)).await?;
    let came = Instant::now();
    let length = response_content_length(&fields).unwrap_or_default();
    let body = match exchange.take_buffered() {
        Some(whole) => {
            std::mem::swap(&mut exchange.deadline, deadline);
            exchange.finish(came);
            if whole.is_empty() { UpstreamBodyKind::Ended } else { UpstreamBodyKind::Buffered(whole) }
        }
        None => UpstreamBodyKind::Http1(Box::new(exchange)),
    };
    Ok(UpstreamResponse {
        status,
        headers: fields,
        content_length: length,
        body: UpstreamBody(body),
        received_at: came,
    })
}

/// What is still to be taken from the client.
enum SendState {
    /// Nothing: there was no body, or its last piece is in hand.
    Done,
    /// More pieces.
    Body { reader: BodyReader, chunked: bool },
    /// Nothing, though there may be more: the upstream takes no more. Its answer may be there all the same.
    WriteFailed,
}

/// A request on the wire, and its answer as far as it has come.
pub(super) struct Http1Exchange {
    connection: Box<UpstreamConnection>,
    pool: Rc<Pool>,
    method: Method,
    send_state: SendState,
    framing: Framing,
    deadline: Deadline,
    /// What the clock says, until time has passed.
    cached_now: Option<Instant>,
    reusable: bool,
    has_written: bool,
    /// Interim answers that were passed over.
    interim_responses: u32,
    large_response: Option<LargeResponse>,
}

/// An answer that proved to be large. It counts among the others as long as it lasts.
struct LargeResponse(Rc<Pool>);

impl LargeResponse {
    fn new(pool: &Rc<Pool>) -> Self {
        pool.large_responses.update(|large| large + 1);
        Self(pool.clone())
    }

    /// How much to read at once.
    fn read_bytes(&self) -> usize {
        (MAX_LARGE_READS_BYTES / self.0.large_responses.get().max(1))
            .clamp(SMALL_READ_BYTES, LARGE_READ_BYTES)
    }
}

impl Drop for LargeResponse {
    fn drop(&mut self) {
        self.0.large_responses.update(|large| large - 1);
    }
}

impl Http1Exchange {
    /// Writes the head into the connection's buffer; nothing is sent before the first poll.
    fn start(
        mut connection: Box<UpstreamConnection>,
        pool: Rc<Pool>,
        outgoing: &UpstreamRequest<'_>,
        reader: Option<BodyReader>,
    ) -> Self {
        head::write_request_head(connection.write_buf.buffer_mut(), outgoing, &pool.settings.authority);
        let chunked = outgoing.body_length == BodyLength::Unknown;
        let send_state = match reader.map(BodyReader::into_buffered) {
            None => SendState::Done,
            Some(Ok(whole)) => {
                connection.write_buf.push_chunk(whole, chunked, true);
                SendState::Done
            }
            Some(Err(reader)) => SendState::Body { reader, chunked },
        };
        Self {
            connection,
            pool,
            method: outgoing.method.clone(),
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

    /// Sends, and waits for the answer's head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, UpstreamError>> {
        let now = self.cached_now.take();
        if let Poll::Ready(Err(failure)) = self.poll_write_request(cx) {
            return Poll::Ready(Err(failure));
        }
        loop {
            if let Some(head) = self.parse_head().map_err(|flaw| self.error(flaw))? {
                self.deadline.clear();
                return Poll::Ready(Ok(head));
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => {
                    let flaw = if self.response_started() {
                        UpstreamErrorKind::Truncated
                    } else {
                        UpstreamErrorKind::ClosedBeforeResponse
                    };
                    return Poll::Ready(Err(self.error(flaw)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    let flaw = if self.response_started() {
                        UpstreamErrorKind::Io(error)
                    } else {
                        UpstreamErrorKind::ClosedBeforeResponse
                    };
                    return Poll::Ready(Err(self.error(flaw)));
                }
                // A client that is slow to send has a bound of its own; the upstream owes nothing meanwhile.
                Poll::Pending if self.awaits_client() => {
                    self.deadline.clear();
                    return Poll::Pending;
                }
                Poll::Pending => {
                    if self.deadline.at().is_none() {
                        let patience = self.pool.settings.response_timeout;
                        self.deadline.set_from(now.unwrap_or_else(Instant::now), patience);
                    }
                    ready!(self.deadline.poll_elapsed(cx));
                    return Poll::Ready(Err(self.error(UpstreamErrorKind::ResponseTimeout)));
                }
            }
        }
    }

    /// The whole body, if nothing is to come of it and nothing to be sent.
    fn take_buffered(&mut self) -> Option<Bytes> {
        let length = match self.framing {
            _ if !matches!(self.send_state, SendState::Done) => return None,
            Framing::Done => 0,
            Framing::Length(length) => usize::try_from(length).ok()?,
            Framing::Chunked(_) | Framing::UntilClose | Framing::Malformed => return None,
        };
        if self.connection.read_buf.len() < length {
            return None;
        }
        self.framing = Framing::Done;
        let inbound = &mut self.connection.read_buf;
        if length > MAX_COPY_BYTES {
            return Some(inbound.split_to(length).freeze());
        }
        let whole = Bytes::copy_from_slice(&inbound[..length]);
        inbound.advance(length);
        Some(whole)
    }

    /// The next piece of the answer's body; `None` at its end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        // An upstream may answer while it still takes the upload: both go on side by side.
        if let Poll::Ready(Err(failure)) = self.poll_write_request(cx) {
            return Poll::Ready(Some(Err(failure)));
        }
        loop {
            match self.framing.decode(&mut self.connection.read_buf) {
                Ok(BodyEvent::Data(piece)) => {
                    self.deadline.clear();
                    return Poll::Ready(Some(Ok(piece)));
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
                    self.deadline.set_if_unset(self.pool.settings.body_timeout);
                    ready!(self.deadline.poll_elapsed(cx));
                    return Poll::Ready(Some(Err(self.error(UpstreamErrorKind::BodyTimeout))));
                }
            }
        }
    }

    /// Sends on what comes of the request's body. What fails in that fails again with the next piece of the answer.
    pub(super) fn drive_request_body(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_write_request(cx);
    }

    /// How many bytes of framing came with what was taken so far.
    pub(super) fn framing_overhead(&self) -> u64 {
        self.framing.overhead_bytes()
    }

    /// Whether the whole answer has been taken.
    pub(super) fn is_ended(&self) -> bool {
        self.framing == Framing::Done
    }

    /// Ends the exchange. A connection on which both sides have said all they had to say goes back to the pool; any
    /// other is closed.
    pub(super) fn finish(mut self, now: Instant) {
        let clean = self.reusable
            && self.is_ended()
            && matches!(self.send_state, SendState::Done)
            && self.connection.write_buf.is_empty()
            && self.connection.read_buf.is_empty();
        if clean {
            if self.large_response.is_some() {
                self.connection.read_buf = BytesMut::new();
            }
            self.pool.put_idle(self.connection, now);
        }
    }

    fn error(&self, flaw: UpstreamErrorKind) -> UpstreamError {
        UpstreamError {
            kind: flaw,
            delivery: if self.has_written { Delivery::MaybeSent } else { Delivery::NotSent },
        }
    }

    /// Whether a byte of the answer has come; an interim answer is one.
    fn response_started(&self) -> bool {
        self.interim_responses > 0 || !self.connection.read_buf.is_empty()
    }

    fn awaits_client(&self) -> bool {
        matches!(self.send_state, SendState::Body { .. }) && self.connection.write_buf.is_empty()
    }

    /// Writes as much as the upstream takes and the client has sent. Ready when there is nothing left to send.
    fn poll_write_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        loop {
            // The first piece of the body rides with the head.
            let mut starved = false;
            if self.connection.write_buf.can_buffer() {
                starved = self.poll_body_chunk(cx)?.is_pending();
            }
            if self.connection.write_buf.is_empty() {
                let flushed = Pin::new(&mut self.connection.stream).poll_flush(cx);
                return match flushed {
                    Poll::Ready(Ok(())) if !starved => Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => Poll::Ready(self.stop_sending(&error)),
                    _ => Poll::Pending,
                };
            }
            if let Err(error) = ready!(self.poll_write(cx)) {
                return Poll::Ready(self.stop_sending(&error));
            }
        }
    }

    /// An upstream that takes no more may have answered already: its answer decides, not the failed write.
    fn stop_sending(&mut self, error: &io::Error) -> Result<(), UpstreamError> {
        tracing::debug!(%error, "the upstream takes no more of a request");
        self.send_state = SendState::WriteFailed;
        self.reusable = false;
        self.connection.write_buf.clear();
        Ok(())
    }

    /// Takes the body's next piece from the client. Ready when there is something to write or nothing left to take.
    fn poll_body_chunk(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, UpstreamError> {
        let SendState::Body { reader, chunked } = &mut self.send_state else { return Ok(Poll::Ready(())) };
        let Poll::Ready(taken) = reader.poll_chunk(cx) else { return Ok(Poll::Pending) };
        let chunked = *chunked;
        let (piece, ended) = match taken {
            Ok(piece) => {
                let ended = piece.is_none() || reader.is_ended();
                (piece, ended)
            }
            Err(error) => return Err(self.error(UpstreamErrorKind::RequestBody(error))),
        };
        self.connection.write_buf.push_chunk(piece.unwrap_or_default(), chunked, ended);
        if ended {
            self.send_state = SendState::Done;
        }
        Ok(Poll::Ready(()))
    }

    /// Writes once.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let UpstreamConnection { stream, write_buf: outbox, .. } = &mut *self.connection;
        ready!(outbox.poll_write(stream, cx))?;
        self.has_written = true;
        // It runs while nothing moves.
        self.deadline.clear();
        Poll::Ready(Ok(()))
    }

    /// Reads once into the buffer; 0 is the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let UpstreamConnection { stream, read_buf: inbound, read_waker: caller, .. } = &mut *self.connection;
        let most = self.large_response.as_ref().map_or(SMALL_READ_BYTES, LargeResponse::read_bytes);
        let read = ready!(stream.poll_read_buf(cx, inbound, most, caller))?;
        if read >= SMALL_READ_BYTES && self.large_response.is_none() {
            self.large_response = Some(LargeResponse::new(&self.pool));
        }
        Poll::Ready(Ok(read))
    }

    /// The answer's head, once the buffer holds all of it. Interim answers (1xx) are dropped.
    fn parse_head(&mut self) -> Result<Option<ResponseHead>, UpstreamErrorKind> {
        let UpstreamConnection { read_buf: inbound, header_cache: familiar, .. } = &mut *self.connection;
        while !inbound.is_empty() {
            let Some(head) = head::parse_response_head(inbound, familiar)? else { return Ok(None) };
            if head.status.is_informational() {
                self.interim_responses += 1;
                if self.interim_responses > MAX_INTERIM_RESPONSES {
                    return Err(UpstreamErrorKind::InvalidHead("it sends interim answers without end"));
                }
                continue;
            }
            self.framing = Framing::of_response(&self.method, head.status, &head.headers)
                .map_err(UpstreamErrorKind::Framing)?;
            self.reusable &= head.keep_alive && self.framing != Framing::UntilClose;
            return Ok(Some(head));
        }
        Ok(None)
    }
}
