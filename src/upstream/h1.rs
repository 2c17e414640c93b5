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
    Answer, AnswerBody, BodyLength, Failure, Flaw, Outgoing, Sent, Source,
    connection::Connection,
    head::{self, Head},
    pool::Pool,
};
use crate::{
    deadline::Deadline,
    framing::{Framing, Step, answer_length},
    upload::Reader,
};

/// First read of an answer; small replies fit.
const SMALL_READ: usize = 8 * 1024;
/// A body up to this size is copied: the buffer it came in need not be shared then.
const COPIED: usize = 1024;
/// Most interim answers (1xx) before the one that counts.
const MOST_INTERIM: u32 = 32;
/// Reads of an answer that proved to be large, as long as there are few of them.
const LARGE_READ: usize = 1024 * 1024;
/// What all large reads of a worker share: a client that takes nothing more of its download holds what was read last.
const LARGE_READS: usize = 64 * 1024 * 1024;

/// Sends a request and waits for the answer's head. What came with it is taken along, and a connection that is done with
/// goes back to the pool at once. `now` is what the clock says, if it was just asked. `deadline` is the caller's, who needs it
/// again when the answer is whole.
pub(super) async fn send(
    connection: Box<Connection>,
    pool: &Rc<Pool>,
    outgoing: &Outgoing<'_>,
    reader: Option<Reader>,
    now: Option<Instant>,
    deadline: &mut Deadline,
) -> Result<Answer, Failure> {
    let mut exchange = Exchange::begin(connection, pool.clone(), outgoing, reader);
    exchange.now = now;
    std::mem::swap(&mut exchange.deadline, deadline);
    let Head { status, fields, .. } = poll_fn(|cx| exchange.poll_head(cx)).await?;
    let came = Instant::now();
    let length = answer_length(&fields).unwrap_or_default();
    let body = match exchange.take_whole() {
        Some(whole) => {
            std::mem::swap(&mut exchange.deadline, deadline);
            exchange.finish(came);
            if whole.is_empty() { Source::Ended } else { Source::Whole(whole) }
        }
        None => Source::Http1(Box::new(exchange)),
    };
    Ok(Answer { status, fields, length, body: AnswerBody(body), came })
}

/// What is still to be taken from the client.
enum Sending {
    /// Nothing: there was no body, or its last piece is in hand.
    Nothing,
    /// More pieces.
    Body { reader: Reader, chunked: bool },
    /// Nothing, though there may be more: the upstream takes no more. Its answer may be there all the same.
    Refused,
}

/// A request on the wire, and its answer as far as it has come.
pub(super) struct Exchange {
    connection: Box<Connection>,
    pool: Rc<Pool>,
    method: Method,
    sending: Sending,
    framing: Framing,
    deadline: Deadline,
    /// What the clock says, until time has passed.
    now: Option<Instant>,
    reusable: bool,
    wrote: bool,
    /// Interim answers that were passed over.
    interim: u32,
    large: Option<Large>,
}

/// An answer that proved to be large. It counts among the others as long as it lasts.
struct Large(Rc<Pool>);

impl Large {
    fn new(pool: &Rc<Pool>) -> Self {
        pool.large.update(|large| large + 1);
        Self(pool.clone())
    }

    /// How much to read at once.
    fn read(&self) -> usize {
        (LARGE_READS / self.0.large.get().max(1)).clamp(SMALL_READ, LARGE_READ)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.0.large.update(|large| large - 1);
    }
}

impl Exchange {
    /// Writes the head into the connection's buffer; nothing is sent before the first poll.
    fn begin(
        mut connection: Box<Connection>,
        pool: Rc<Pool>,
        outgoing: &Outgoing<'_>,
        reader: Option<Reader>,
    ) -> Self {
        head::write(connection.outbox.text(), outgoing, &pool.settings.authority);
        let chunked = outgoing.body == BodyLength::Unknown;
        let sending = match reader.map(Reader::into_whole) {
            None => Sending::Nothing,
            Some(Ok(whole)) => {
                connection.outbox.put(whole, chunked, true);
                Sending::Nothing
            }
            Some(Err(reader)) => Sending::Body { reader, chunked },
        };
        Self {
            connection,
            pool,
            method: outgoing.method.clone(),
            sending,
            framing: Framing::Done,
            deadline: Deadline::idle(),
            now: None,
            reusable: true,
            wrote: false,
            interim: 0,
            large: None,
        }
    }

    /// Sends, and waits for the answer's head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        let now = self.now.take();
        if let Poll::Ready(Err(failure)) = self.poll_send(cx) {
            return Poll::Ready(Err(failure));
        }
        loop {
            if let Some(head) = self.take_head().map_err(|flaw| self.failure(flaw))? {
                self.deadline.clear();
                return Poll::Ready(Ok(head));
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => {
                    let flaw = if self.has_begun() { Flaw::Truncated } else { Flaw::Closed };
                    return Poll::Ready(Err(self.failure(flaw)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    let flaw = if self.has_begun() { Flaw::Io(error) } else { Flaw::Closed };
                    return Poll::Ready(Err(self.failure(flaw)));
                }
                // A client that is slow to send has a bound of its own; the upstream owes nothing meanwhile.
                Poll::Pending if self.awaits_client() => {
                    self.deadline.clear();
                    return Poll::Pending;
                }
                Poll::Pending => {
                    if self.deadline.at().is_none() {
                        let patience = self.pool.settings.response_timeout;
                        self.deadline.set_after(now.unwrap_or_else(Instant::now), patience);
                    }
                    ready!(self.deadline.poll_passed(cx));
                    return Poll::Ready(Err(self.failure(Flaw::NoAnswer)));
                }
            }
        }
    }

    /// The whole body, if nothing is to come of it and nothing to be sent.
    fn take_whole(&mut self) -> Option<Bytes> {
        let length = match self.framing {
            _ if !matches!(self.sending, Sending::Nothing) => return None,
            Framing::Done => 0,
            Framing::Length(length) => usize::try_from(length).ok()?,
            Framing::Chunked(_) | Framing::UntilClose | Framing::Broken => return None,
        };
        if self.connection.inbound.len() < length {
            return None;
        }
        self.framing = Framing::Done;
        let inbound = &mut self.connection.inbound;
        if length > COPIED {
            return Some(inbound.split_to(length).freeze());
        }
        let whole = Bytes::copy_from_slice(&inbound[..length]);
        inbound.advance(length);
        Some(whole)
    }

    /// The next piece of the answer's body; `None` at its end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        // An upstream may answer while it still takes the upload: both go on side by side.
        if let Poll::Ready(Err(failure)) = self.poll_send(cx) {
            return Poll::Ready(Some(Err(failure)));
        }
        loop {
            match self.framing.step(&mut self.connection.inbound) {
                Ok(Step::Data(piece)) => {
                    self.deadline.clear();
                    return Poll::Ready(Some(Ok(piece)));
                }
                Ok(Step::End) => return Poll::Ready(None),
                Ok(Step::Starved) => {}
                Err(error) => return Poll::Ready(Some(Err(self.failure(Flaw::Framing(error))))),
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) if self.framing == Framing::UntilClose => {
                    self.framing = Framing::Done;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(self.failure(Flaw::Truncated)))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(self.failure(Flaw::Io(error))))),
                Poll::Pending => {
                    self.deadline.set_if_idle(self.pool.settings.body_timeout);
                    ready!(self.deadline.poll_passed(cx));
                    return Poll::Ready(Some(Err(self.failure(Flaw::Stalled))));
                }
            }
        }
    }

    /// Sends on what comes of the request's body. What fails in that fails again with the next piece of the answer.
    pub(super) fn drive_upload(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_send(cx);
    }

    /// How many bytes of framing came with what was taken so far.
    pub(super) fn overhead(&self) -> u64 {
        self.framing.overhead()
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
            && matches!(self.sending, Sending::Nothing)
            && self.connection.outbox.is_empty()
            && self.connection.inbound.is_empty();
        if clean {
            if self.large.is_some() {
                self.connection.inbound = BytesMut::new();
            }
            self.pool.put(self.connection, now);
        }
    }

    fn failure(&self, flaw: Flaw) -> Failure {
        Failure { flaw, sent: if self.wrote { Sent::Perhaps } else { Sent::Nothing } }
    }

    /// Whether a byte of the answer has come; an interim answer is one.
    fn has_begun(&self) -> bool {
        self.interim > 0 || !self.connection.inbound.is_empty()
    }

    fn awaits_client(&self) -> bool {
        matches!(self.sending, Sending::Body { .. }) && self.connection.outbox.is_empty()
    }

    /// Writes as much as the upstream takes and the client has sent. Ready when there is nothing left to send.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            // The first piece of the body rides with the head.
            let mut starved = false;
            if self.connection.outbox.has_room() {
                starved = self.poll_piece(cx)?.is_pending();
            }
            if self.connection.outbox.is_empty() {
                let flushed = Pin::new(&mut self.connection.stream).poll_flush(cx);
                return match flushed {
                    Poll::Ready(Ok(())) if !starved => Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => Poll::Ready(self.give_up_sending(&error)),
                    _ => Poll::Pending,
                };
            }
            if let Err(error) = ready!(self.poll_write(cx)) {
                return Poll::Ready(self.give_up_sending(&error));
            }
        }
    }

    /// An upstream that takes no more may have answered already: its answer decides, not the failed write.
    fn give_up_sending(&mut self, error: &io::Error) -> Result<(), Failure> {
        tracing::debug!(%error, "the upstream takes no more of a request");
        self.sending = Sending::Refused;
        self.reusable = false;
        self.connection.outbox.clear();
        Ok(())
    }

    /// Takes the body's next piece from the client. Ready when there is something to write or nothing left to take.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        let Sending::Body { reader, chunked } = &mut self.sending else { return Ok(Poll::Ready(())) };
        let Poll::Ready(taken) = reader.poll_piece(cx) else { return Ok(Poll::Pending) };
        let chunked = *chunked;
        let (piece, ended) = match taken {
            Ok(piece) => {
                let ended = piece.is_none() || reader.is_ended();
                (piece, ended)
            }
            Err(error) => return Err(self.failure(Flaw::Upload(error))),
        };
        self.connection.outbox.put(piece.unwrap_or_default(), chunked, ended);
        if ended {
            self.sending = Sending::Nothing;
        }
        Ok(Poll::Ready(()))
    }

    /// Writes once.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Connection { stream, outbox, .. } = &mut *self.connection;
        ready!(outbox.poll_write(stream, cx))?;
        self.wrote = true;
        // It runs while nothing moves.
        self.deadline.clear();
        Poll::Ready(Ok(()))
    }

    /// Reads once into the buffer; 0 is the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Connection { stream, inbound, caller, .. } = &mut *self.connection;
        let most = self.large.as_ref().map_or(SMALL_READ, Large::read);
        let read = ready!(stream.poll_fill(cx, inbound, most, caller))?;
        if read >= SMALL_READ && self.large.is_none() {
            self.large = Some(Large::new(&self.pool));
        }
        Poll::Ready(Ok(read))
    }

    /// The answer's head, once the buffer holds all of it. Interim answers (1xx) are dropped.
    fn take_head(&mut self) -> Result<Option<Head>, Flaw> {
        let Connection { inbound, familiar, .. } = &mut *self.connection;
        while !inbound.is_empty() {
            let Some(head) = head::take(inbound, familiar)? else { return Ok(None) };
            if head.status.is_informational() {
                self.interim += 1;
                if self.interim > MOST_INTERIM {
                    return Err(Flaw::Head("it sends interim answers without end"));
                }
                continue;
            }
            self.framing =
                Framing::of_answer(&self.method, head.status, &head.fields).map_err(Flaw::Framing)?;
            self.reusable &= head.persistent && self.framing != Framing::UntilClose;
            return Ok(Some(head));
        }
        Ok(None)
    }
}
