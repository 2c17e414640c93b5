//! HTTP/1 towards clients: one task a connection, which reads a head, has it answered, writes the answer, and begins anew.
//!
//! A connection between two requests owns no buffer, one timer at most, and none of the room that answering takes.

pub(crate) mod bench;
mod delivery;
pub(crate) mod fuzz;
mod head;
mod hold_back;
mod linger;
mod rooms;
#[cfg(test)]
mod tests;
mod wire;

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
    delivery::{Delivery, End, Manner},
    head::{Habits, Head, MAX_HEAD, Malformed},
    linger::close,
    wire::Wire,
};
use super::{LAST_CALL, PREFACE, Server, Timeouts, house::Seat, tables::Guest};
use crate::{
    buffers,
    deadline::Deadline,
    fields::Fields,
    framing::{Framing, split},
    io::Stream,
    proxy::{Inline, Proxy, Reply, Request, RequestTarget},
    upload::Body,
};

/// What came of waiting for a request.
enum Next {
    /// The next one's head is in its place.
    Head,
    Malformed(Malformed),
    /// The client speaks HTTP/2.
    Http2,
    /// The client left, or was silent or slow for too long, or the server stops.
    Over,
}

/// What a connection leaves to the one that its task serves next: a timer, and what its requests had in common. They may
/// well come from the same program.
#[derive(Default)]
pub(super) struct Leftovers {
    waiting: Deadline,
    habits: Habits,
}

/// Serves one connection to its end. Gives it back where the client turns out to speak HTTP/2, with what was read;
/// `may_be_http2` says whether it may. Must be woken when the server stops.
pub(super) async fn serve(
    guest: Guest,
    may_be_http2: bool,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
    leftovers: &mut Leftovers,
) -> Option<(Stream, BytesMut)> {
    let Guest { stream, peer, seat } = guest;
    let Leftovers { waiting, habits } = std::mem::take(leftovers);
    let mut conversation = Box::new(Conversation {
        wire: Wire::new(stream),
        peer,
        may_be_http2,
        timeouts: server.timeouts,
        fresh: true,
        server: server.clone(),
        seat,
        waiting,
        answered_at: None,
        habits,
        head: None,
        proxy: proxy.clone(),
    });
    let mut next = conversation.next().await;
    loop {
        let keep = match next {
            Next::Http2 => return conversation.wire.into_parts(),
            Next::Over => false,
            Next::Head => {
                let kept;
                (conversation, kept) = rooms::answer(conversation).await;
                if kept && !conversation.seat.is_authorized() {
                    // Requests that are refused come as fast as they are read: others have their turn between them.
                    yield_now().await;
                }
                kept
            }
            Next::Malformed(malformed) => {
                Box::pin(conversation.refuse(malformed)).await;
                false
            }
        };
        if !keep {
            break;
        }
        next = conversation.next().await;
    }
    let Conversation { wire, waiting, habits, .. } = *conversation;
    wire.inner().end_body();
    wire.inner().let_go();
    // Once for a connection, since for each request it would cost more than it is worth.
    buffers::wipe_tray();
    *leftovers = Leftovers { waiting, habits };
    None
}

/// One client's connection.
struct Conversation {
    wire: Wire,
    peer: Option<IpAddr>,
    may_be_http2: bool,
    /// No request has been answered on it.
    fresh: bool,
    timeouts: Timeouts,
    server: Arc<Server>,
    seat: Arc<Seat>,
    waiting: Deadline,
    /// When the last answer was handed over; until its connection waits again.
    answered_at: Option<Instant>,
    habits: Habits,
    /// That of the request that is to be answered next.
    head: Option<Head>,
    proxy: Rc<Proxy>,
}

impl Conversation {
    /// Waits for the next request's head.
    async fn next(&mut self) -> Next {
        let mut seen = 0;
        self.waiting.clear();
        poll_fn(|cx| self.poll_next(cx, &mut seen)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, seen: &mut usize) -> Poll<Next> {
        let mut wire = self.wire.inner();
        let begins = loop {
            // A head that drips is parsed again when a line of it has ended, not for each byte.
            let fresh = &wire.inbound[*seen..];
            if !fresh.is_empty() && (*seen == 0 || fresh.contains(&b'\n') || wire.inbound.len() >= MAX_HEAD) {
                if self.may_be_http2 && begins_http2(&wire.inbound) {
                    if wire.inbound.len() >= PREFACE.len() {
                        return Poll::Ready(Next::Http2);
                    }
                } else {
                    match head::take(&mut wire.inbound, &mut self.habits) {
                        Ok(Some(head)) => {
                            self.seat.stir();
                            self.head = Some(head);
                            return Poll::Ready(Next::Head);
                        }
                        Ok(None) => {}
                        Err(malformed) => return Poll::Ready(Next::Malformed(malformed)),
                    }
                }
            }
            let begins = wire.inbound.is_empty();
            *seen = wire.inbound.len();
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(read)) if read > 0 => {
                    if begins {
                        self.waiting.clear();
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Next::Over),
                Poll::Pending => break begins,
            }
        };
        match begins {
            true => wire.let_go(),
            // Half a head that drips.
            false => wire.release_unused(),
        }
        drop(wire);
        if self.waiting.at().is_none() {
            let (since, patience) = match begins {
                true => (self.answered_at.take(), self.timeouts.idle),
                false => (None, self.timeouts.head),
            };
            self.waiting.set_after(since.unwrap_or_else(Instant::now), patience);
        }
        if self.is_unwanted(begins) {
            return Poll::Ready(Next::Over);
        }
        ready!(self.waiting.poll_passed(cx));
        Poll::Ready(Next::Over)
    }

    /// Whether a connection that has no request is to be closed. One that has just come gets a moment still when the server
    /// stops, and so does half a head: a request is on the way, and whoever sent it has seen that somebody is there. Half a
    /// head is no request, and makes room in a full house.
    fn is_unwanted(&mut self, begins: bool) -> bool {
        if self.server.is_stopping() {
            if begins && !self.fresh {
                return true;
            }
            self.waiting.set_no_later(LAST_CALL);
        }
        let since = |patience| self.waiting.at().and_then(|end| end.checked_sub(patience));
        match begins {
            true => since(self.timeouts.idle).is_some_and(|since| self.seat.rest_from(since)),
            false => since(self.timeouts.head).is_some_and(|since| self.seat.begins_from(since)),
        }
    }

    /// Has one request answered. Whether the connection is to be kept.
    async fn answer(&mut self) -> bool {
        let Some(head) = self.head.take() else { return false };
        let (request, body, streams, manner) = self.begin(head);
        self.waiting.clear();
        let may_probe = request.version == Version::HTTP_11;
        let answered = {
            let mut handling = pin!(self.proxy.handle::<Inline>(&request, body, &mut self.waiting));
            let answered = poll_fn(|cx| {
                let polled = handling.as_mut().poll(cx);
                if request.authorized.get() && !self.seat.is_authorized() {
                    self.seat.authorize();
                }
                match polled {
                    Poll::Ready(reply) => Poll::Ready(Some(reply)),
                    // Nobody is there to take the answer: what is under way for it ends here.
                    Poll::Pending => {
                        let mut wire = self.wire.inner();
                        let left = wire.poll_left(cx, may_probe, request.waits.get()).map(|()| None);
                        if left.is_pending() && request.waits.get() {
                            wire.release_unused();
                        }
                        left
                    }
                }
            });
            answered.await
        };
        let Some(mut reply) = answered else {
            self.wire.inner().end_body();
            return false;
        };
        drop(request);
        if !self.seat.is_authorized() {
            reply.end_record(manner.is_head);
            self.wire.inner().shrink();
        }
        if reply.wrong_key && !Box::pin(self.hold_back()).await {
            self.wire.inner().end_body();
            return false;
        }
        match self.deliver(reply, manner, streams).await {
            Outcome::Kept => true,
            Outcome::Severed => false,
            Outcome::Over { still_sending } => {
                close(&self.wire, still_sending, &self.seat).await;
                false
            }
        }
    }

    /// The request that a head makes, its body and whether that is still to come, and how the answer is to be written. The
    /// head goes with it: it would take room as long as the request waits.
    fn begin(&mut self, head: Head) -> (Request, Body, bool, Manner) {
        self.may_be_http2 = false;
        // What a kept connection brings now could have come on another one.
        let late = !std::mem::take(&mut self.fresh) && self.server.is_stopping() || self.seat.is_revoked();
        let persistent = head.is_persistent() && head.framing.is_ok();
        let (body, streams) = self.body(&head);
        let manner = Manner::of(&head.method, head.version, persistent);
        let local = || self.wire.inner().stream().tcp().and_then(|tcp| tcp.local_addr().ok());
        let request = Request {
            method: head.method,
            version: head.version,
            target: head.target,
            absolute: head.authority.map(|authority| Box::new((authority, local()))),
            flaw: head.framing.err().map(head::words),
            fields: head.fields,
            peer: self.peer,
            late,
            authorized: Cell::new(false),
            waits: Cell::new(false),
        };
        (request, body, streams, manner)
    }

    /// The body that follows a head, and whether it is still to come.
    fn body(&self, head: &Head) -> (Body, bool) {
        let framing = head.framing.unwrap_or(Framing::Done);
        if framing == Framing::Done {
            return (Body::None, false);
        }
        let mut wire = self.wire.inner();
        let declared = match framing {
            Framing::Length(length) if length <= wire.inbound.len() as u64 => {
                // A buffer of the usual size is in use until the response anyway, and sharing it costs less than a copy.
                let whole = match wire.inbound.capacity() <= buffers::SIZE {
                    true => wire.inbound.split_to(length as usize).freeze(),
                    false => split(&mut wire.inbound, length as usize),
                };
                return (Body::Whole(whole), false);
            }
            Framing::Length(length) => Some(length),
            _ => None,
        };
        wire.framing = framing;
        wire.body_unread = true;
        wire.continue_due = head.expects_continue() && wire.inbound.is_empty();
        drop(wire);
        (Body::Streamed(Box::new(self.wire.body(declared))), true)
    }

    /// Answers what is no request. The connection is over then.
    async fn refuse(&mut self, malformed: Malformed) {
        let nothing = Request {
            method: Method::from_bytes(b"-").unwrap_or_default(),
            version: Version::HTTP_11,
            target: RequestTarget::new("-"),
            absolute: None,
            flaw: None,
            fields: Fields::default(),
            peer: self.peer,
            late: false,
            authorized: Cell::new(false),
            waits: Cell::new(false),
        };
        let reply = self.proxy.refuse_head(malformed.status, malformed.words, &nothing);
        let is_head = self.wire.inner().inbound.trim_ascii_start().starts_with(b"HEAD ");
        let manner = Manner { version: Version::HTTP_11, is_head, keep: false };
        if self.deliver(reply, manner, false).await != Outcome::Severed {
            close(&self.wire, true, &self.seat).await;
        }
    }

    /// Writes an answer. `streams`: the request's body did not come with its head.
    async fn deliver(&mut self, reply: Reply, manner: Manner, streams: bool) -> Outcome {
        // Of a body that nobody will read, what is here is thrown away. Where more is still to come, or somebody reads on
        // while the answer goes out, as over HTTP/2 towards the upstream, the connection ends with this answer, and the
        // client is told so.
        let left_over = streams && {
            let has_reader = self.wire.has_reader();
            let mut wire = self.wire.inner();
            wire.framing != Framing::Done && (has_reader || !wire.discard_body())
        };
        let keep = manner.keep && !left_over && !self.server.is_stopping() && !self.seat.is_asked();
        let (mut delivery, keep) = Delivery::begin(reply, Manner { keep, ..manner });
        let stall = self.timeouts.stall(&self.seat);
        let end = poll_fn(|cx| match delivery.poll(cx, &self.wire, stall) {
            Poll::Pending if self.seat.is_cut() => Poll::Ready(End::Broken),
            polled => polled,
        });
        let end = end.await;
        let now = Instant::now();
        delivery.end(now);
        self.answered_at = Some(now);
        if end == End::Broken {
            // To a client that knows no framing, or does not look at it, an orderly close would mean that the answer is
            // whole.
            self.wire.inner().sever();
            return Outcome::Severed;
        }
        let mut wire = self.wire.inner();
        if streams {
            // Whoever still reads gets nothing of what follows.
            wire.end_body();
        }
        match keep {
            true => Outcome::Kept,
            // Who waits for an answer's end before it says more is not heard of here: that takes no reading.
            false => Outcome::Over {
                still_sending: left_over && !wire.discard_body()
                    || !wire.inbound.is_empty()
                    || wire.stream().has_heard(),
            },
        }
    }
}

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It waits for the next request.
    Kept,
    /// It ends with a reset.
    Severed,
    /// It is to be closed.
    Over {
        /// The client may not have said all that it wants to say.
        still_sending: bool,
    },
}

/// Whether this is how HTTP/2 begins, as far as it goes.
fn begins_http2(inbound: &[u8]) -> bool {
    let common = inbound.len().min(PREFACE.len());
    inbound[..common] == PREFACE[..common]
}
