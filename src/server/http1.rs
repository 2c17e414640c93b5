//! HTTP/1 towards clients: one task a connection, which reads a head, has it answered, writes the answer, and begins anew.
//!
//! A connection between two requests owns no buffer, one timer at most, and none of the room that answering takes.

pub(crate) mod bench;
pub(crate) mod fuzz;
mod handler_pool;
mod head;
mod linger;
mod response_writer;
#[cfg(test)]
mod tests;
mod transport;
mod wrong_key_delay;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use http::{Method, Version};
use tokio::{task::yield_now, time::Instant};

use self::{
    head::{HeadError, MAX_HEAD_BYTES, RequestHead, RequestHeadCache},
    linger::lingering_close,
    response_writer::{ResponseOptions, ResponseWriter, WriteOutcome},
    transport::Transport,
};
use super::{
    HTTP2_PREFACE, SHUTDOWN_GRACE_TIMEOUT, Server, Timeouts, connection_limit::ConnectionPermit,
    task_pool::Accepted,
};
use crate::{
    http1::{
        buffer_pool,
        framing::{Framing, split_to},
        headers::Headers,
        io::Stream,
    },
    proxy::{Inline, Proxy, Request, RequestTarget, Response},
    request_body::RequestBody,
    time::deadline::Deadline,
};

/// What came of waiting for a request.
enum NextRequest {
    /// The next one's head is in its place.
    Head,
    Malformed(HeadError),
    /// The client speaks HTTP/2.
    Http2,
    /// The client left, or was silent or slow for too long, or the server stops.
    Closed,
}

/// What a connection leaves to the one that its task serves next: a timer, and what its requests had in common. They may
/// well come from the same program.
#[derive(Default)]
pub(super) struct Recycled {
    timer: Deadline,
    head_cache: RequestHeadCache,
}

/// Serves one connection to its end. Gives it back where the client turns out to speak HTTP/2, with what was read;
/// `may_be_http2` says whether it may. Must be woken when the server stops.
pub(super) async fn serve(
    guest: Accepted,
    may_be_http2: bool,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
    leftovers: &mut Recycled,
) -> Option<(Stream, BytesMut)> {
    let Accepted { stream, peer, permit: seat } = guest;
    let Recycled { timer: waiting, head_cache: habits } = std::mem::take(leftovers);
    let mut conversation = Box::new(Http1Connection {
        transport: Transport::new(stream),
        peer,
        may_be_http2,
        timeouts: server.timeouts,
        is_new: true,
        server: server.clone(),
        permit: seat,
        timer: waiting,
        responded_at: None,
        head_cache: habits,
        head: None,
        proxy: proxy.clone(),
    });
    let mut next = conversation.read_request().await;
    loop {
        let keep = match next {
            NextRequest::Http2 => return conversation.transport.into_parts(),
            NextRequest::Closed => false,
            NextRequest::Head => {
                let kept;
                (conversation, kept) = handler_pool::run(conversation).await;
                if kept && !conversation.permit.is_authorized() {
                    // Requests that are refused come as fast as they are read: others have their turn between them.
                    yield_now().await;
                }
                kept
            }
            NextRequest::Malformed(malformed) => {
                Box::pin(conversation.reject_malformed(malformed)).await;
                false
            }
        };
        if !keep {
            break;
        }
        next = conversation.read_request().await;
    }
    let Http1Connection { transport: wire, timer: waiting, head_cache: habits, .. } = *conversation;
    wire.shared().finish_body();
    wire.shared().release_buffer();
    // Once for a connection, since for each request it would cost more than it is worth.
    buffer_pool::wipe_scratch();
    *leftovers = Recycled { timer: waiting, head_cache: habits };
    None
}

/// One client's connection.
struct Http1Connection {
    transport: Transport,
    peer: Option<IpAddr>,
    may_be_http2: bool,
    /// No request has been answered on it.
    is_new: bool,
    timeouts: Timeouts,
    server: Arc<Server>,
    permit: Arc<ConnectionPermit>,
    timer: Deadline,
    /// When the last answer was handed over; until its connection waits again.
    responded_at: Option<Instant>,
    head_cache: RequestHeadCache,
    /// That of the request that is to be answered next.
    head: Option<RequestHead>,
    proxy: Rc<Proxy>,
}

impl Http1Connection {
    /// Waits for the next request's head.
    async fn read_request(&mut self) -> NextRequest {
        let mut seen = 0;
        self.timer.clear();
        poll_fn(|cx| self.poll_read_request(cx, &mut seen)).await
    }

    fn poll_read_request(&mut self, cx: &mut Context<'_>, seen: &mut usize) -> Poll<NextRequest> {
        let mut wire = self.transport.shared();
        let begins = loop {
            // A head that drips is parsed again when a line of it has ended, not for each byte.
            let fresh = &wire.read_buf[*seen..];
            if !fresh.is_empty()
                && (*seen == 0 || fresh.contains(&b'\n') || wire.read_buf.len() >= MAX_HEAD_BYTES)
            {
                if self.may_be_http2 && is_http2_preface(&wire.read_buf) {
                    if wire.read_buf.len() >= HTTP2_PREFACE.len() {
                        return Poll::Ready(NextRequest::Http2);
                    }
                } else {
                    match head::parse(&mut wire.read_buf, &mut self.head_cache) {
                        Ok(Some(head)) => {
                            self.permit.mark_active();
                            self.head = Some(head);
                            return Poll::Ready(NextRequest::Head);
                        }
                        Ok(None) => {}
                        Err(malformed) => return Poll::Ready(NextRequest::Malformed(malformed)),
                    }
                }
            }
            let begins = wire.read_buf.is_empty();
            *seen = wire.read_buf.len();
            match wire.poll_read_buf(cx) {
                Poll::Ready(Ok(read)) if read > 0 => {
                    if begins {
                        self.timer.clear();
                    }
                }
                Poll::Ready(_) => return Poll::Ready(NextRequest::Closed),
                Poll::Pending => break begins,
            }
        };
        match begins {
            true => wire.release_buffer(),
            // Half a head that drips.
            false => wire.release_spare_capacity(),
        }
        drop(wire);
        if self.timer.at().is_none() {
            let (since, patience) = match begins {
                true => (self.responded_at.take(), self.timeouts.idle),
                false => (None, self.timeouts.header),
            };
            self.timer.set_from(since.unwrap_or_else(Instant::now), patience);
        }
        if self.should_close(begins) {
            return Poll::Ready(NextRequest::Closed);
        }
        ready!(self.timer.poll_elapsed(cx));
        Poll::Ready(NextRequest::Closed)
    }

    /// Whether a connection that has no request is to be closed. One that has just come gets a moment still when the server
    /// stops, and so does half a head: a request is on the way, and whoever sent it has seen that somebody is there. Half a
    /// head is no request, and makes room in a full house.
    fn should_close(&mut self, begins: bool) -> bool {
        if self.server.is_stopping() {
            if begins && !self.is_new {
                return true;
            }
            self.timer.set_if_earlier(SHUTDOWN_GRACE_TIMEOUT);
        }
        let since = |patience| self.timer.at().and_then(|end| end.checked_sub(patience));
        match begins {
            true => since(self.timeouts.idle).is_some_and(|since| self.permit.mark_idle(since)),
            false => since(self.timeouts.header).is_some_and(|since| self.permit.mark_partial(since)),
        }
    }

    /// Has one request answered. Whether the connection is to be kept.
    async fn handle_request(&mut self) -> bool {
        let Some(head) = self.head.take() else { return false };
        let (request, body, streams, manner) = self.build_request(head);
        self.timer.clear();
        let may_probe = request.version == Version::HTTP_11;
        let answered = {
            let mut handling = pin!(self.proxy.handle::<Inline>(&request, body, &mut self.timer));
            let answered = poll_fn(|cx| {
                let polled = handling.as_mut().poll(cx);
                if request.authorized.get() && !self.permit.is_authorized() {
                    self.permit.mark_authorized();
                }
                match polled {
                    Poll::Ready(reply) => Poll::Ready(Some(reply)),
                    // Nobody is there to take the answer: what is under way for it ends here.
                    Poll::Pending => {
                        let mut wire = self.transport.shared();
                        let left =
                            wire.poll_disconnected(cx, may_probe, request.waiting.get()).map(|()| None);
                        if left.is_pending() && request.waiting.get() {
                            wire.release_spare_capacity();
                        }
                        left
                    }
                }
            });
            answered.await
        };
        let Some(mut reply) = answered else {
            self.transport.shared().finish_body();
            return false;
        };
        drop(request);
        if !self.permit.is_authorized() {
            reply.finish_context(manner.is_head);
            self.transport.shared().shrink_buffer();
        }
        if reply.wrong_key && !Box::pin(self.delay_wrong_key()).await {
            self.transport.shared().finish_body();
            return false;
        }
        match self.write_response(reply, manner, streams).await {
            Outcome::KeepAlive => true,
            Outcome::Reset => false,
            Outcome::Close { still_sending } => {
                lingering_close(&self.transport, still_sending, &self.permit).await;
                false
            }
        }
    }

    /// The request that a head makes, its body and whether that is still to come, and how the answer is to be written. The
    /// head goes with it: it would take room as long as the request waits.
    fn build_request(&mut self, head: RequestHead) -> (Request, RequestBody, bool, ResponseOptions) {
        self.may_be_http2 = false;
        // What a kept connection brings now could have come on another one.
        let late = !std::mem::take(&mut self.is_new) && self.server.is_stopping() || self.permit.is_revoked();
        let persistent = head.is_persistent() && head.framing.is_ok();
        let (body, streams) = self.incoming_body(&head);
        let manner = ResponseOptions::new(&head.method, head.version, persistent);
        let local = || self.transport.shared().stream().tcp().and_then(|tcp| tcp.local_addr().ok());
        let request = Request {
            method: head.method,
            version: head.version,
            target: head.target,
            absolute_form: head.authority.map(|authority| Box::new((authority, local()))),
            malformed: head.framing.err().map(head::framing_error_message),
            headers: head.headers,
            peer: self.peer,
            draining: late,
            authorized: Cell::new(false),
            waiting: Cell::new(false),
        };
        (request, body, streams, manner)
    }

    /// The body that follows a head, and whether it is still to come.
    fn incoming_body(&self, head: &RequestHead) -> (RequestBody, bool) {
        let framing = head.framing.unwrap_or(Framing::Done);
        if framing == Framing::Done {
            return (RequestBody::None, false);
        }
        let mut wire = self.transport.shared();
        let declared = match framing {
            Framing::Length(length) if length <= wire.read_buf.len() as u64 => {
                // A buffer of the usual size is in use until the response anyway, and sharing it costs less than a copy.
                let whole = match wire.read_buf.capacity() <= buffer_pool::BUFFER_BYTES {
                    true => wire.read_buf.split_to(length as usize).freeze(),
                    false => split_to(&mut wire.read_buf, length as usize),
                };
                return (RequestBody::Buffered(whole), false);
            }
            Framing::Length(length) => Some(length),
            _ => None,
        };
        wire.framing = framing;
        wire.body_unread = true;
        wire.continue_pending = head.expects_continue() && wire.read_buf.is_empty();
        drop(wire);
        (RequestBody::Streamed(Box::new(self.transport.incoming_body(declared))), true)
    }

    /// Answers what is no request. The connection is over then.
    async fn reject_malformed(&mut self, malformed: HeadError) {
        let nothing = Request {
            method: Method::from_bytes(b"-").unwrap_or_default(),
            version: Version::HTTP_11,
            target: RequestTarget::new("-"),
            absolute_form: None,
            malformed: None,
            headers: Headers::default(),
            peer: self.peer,
            draining: false,
            authorized: Cell::new(false),
            waiting: Cell::new(false),
        };
        let reply = self.proxy.reject_head(malformed.status, malformed.message, &nothing);
        let is_head = self.transport.shared().read_buf.trim_ascii_start().starts_with(b"HEAD ");
        let manner = ResponseOptions { version: Version::HTTP_11, is_head, keep_alive: false };
        if self.write_response(reply, manner, false).await != Outcome::Reset {
            lingering_close(&self.transport, true, &self.permit).await;
        }
    }

    /// Writes an answer. `streams`: the request's body did not come with its head.
    async fn write_response(&mut self, reply: Response, manner: ResponseOptions, streams: bool) -> Outcome {
        // Of a body that nobody will read, what is here is thrown away. Where more is still to come, or somebody reads on
        // while the answer goes out, as over HTTP/2 towards the upstream, the connection ends with this answer, and the
        // client is told so.
        let left_over = streams && {
            let has_reader = self.transport.has_body_reader();
            let mut wire = self.transport.shared();
            wire.framing != Framing::Done && (has_reader || !wire.discard_buffered_body())
        };
        let keep = manner.keep_alive
            && !left_over
            && !self.server.is_stopping()
            && !self.permit.is_close_requested();
        let (mut delivery, keep) =
            ResponseWriter::start(reply, ResponseOptions { keep_alive: keep, ..manner });
        let stall = self.timeouts.write_timeout(&self.permit);
        let end = poll_fn(|cx| match delivery.poll_write(cx, &self.transport, stall) {
            Poll::Pending if self.permit.is_abort_requested() => Poll::Ready(WriteOutcome::Aborted),
            polled => polled,
        });
        let end = end.await;
        let now = Instant::now();
        delivery.finish(now);
        self.responded_at = Some(now);
        if end == WriteOutcome::Aborted {
            // To a client that knows no framing, or does not look at it, an orderly close would mean that the answer is
            // whole.
            self.transport.shared().reset_on_close();
            return Outcome::Reset;
        }
        let mut wire = self.transport.shared();
        if streams {
            // Whoever still reads gets nothing of what follows.
            wire.finish_body();
        }
        match keep {
            true => Outcome::KeepAlive,
            // Who waits for an answer's end before it says more is not heard of here: that takes no reading.
            false => Outcome::Close {
                still_sending: left_over && !wire.discard_buffered_body()
                    || !wire.read_buf.is_empty()
                    || wire.stream().is_readable(),
            },
        }
    }
}

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It waits for the next request.
    KeepAlive,
    /// It ends with a reset.
    Reset,
    /// It is to be closed.
    Close {
        /// The client may not have said all that it wants to say.
        still_sending: bool,
    },
}

/// Whether this is how HTTP/2 begins, as far as it goes.
fn is_http2_preface(inbound: &[u8]) -> bool {
    let common = inbound.len().min(HTTP2_PREFACE.len());
    inbound[..common] == HTTP2_PREFACE[..common]
}
