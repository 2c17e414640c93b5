//! HTTP/1 towards clients: one task a connection, which reads a head, has it answered, writes the answer, and begins anew.
//!
//! A connection between two requests owns no buffer and one timer at most.

mod delivery;
mod head;
mod wire;

use std::{
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{Method, Version};
use tokio::sync::watch;

use self::{
    delivery::{Delivery, End, Manner},
    head::{Head, MAX_HEAD, Malformed},
    wire::{LINGER, LINGER_BYTES, Wire, WireBody},
};
use super::{PREFACE, Timeouts};
use crate::{
    deadline::Deadline,
    fields::Fields,
    framing::Framing,
    io::Stream,
    proxy::{Proxy, Request, RequestTarget},
    upload::Body,
};

/// What came of waiting for a request.
enum Next {
    Head(Head),
    Malformed(Malformed),
    /// The client speaks HTTP/2.
    Http2,
    /// The client left, or was silent or slow for too long, or the server stops.
    Over,
}

/// Serves one connection to its end. Gives it back where the client turns out to speak HTTP/2, with what was read;
/// `may_be_http2` says whether it may.
pub(super) async fn serve(
    stream: Stream,
    peer: Option<IpAddr>,
    may_be_http2: bool,
    timeouts: Timeouts,
    stopping: &watch::Receiver<bool>,
    proxy: &Proxy,
) -> Option<(Stream, BytesMut)> {
    let conversation = Conversation {
        wire: Wire::new(stream),
        peer,
        may_be_http2,
        timeouts,
        stop_seen: stopping.clone(),
        waiting: Deadline::idle(),
    };
    conversation.run(stopping.clone(), proxy).await
}

/// One client's connection.
struct Conversation {
    wire: Wire,
    peer: Option<IpAddr>,
    may_be_http2: bool,
    timeouts: Timeouts,
    stop_seen: watch::Receiver<bool>,
    waiting: Deadline,
}

impl Conversation {
    async fn run(mut self, mut stopping: watch::Receiver<bool>, proxy: &Proxy) -> Option<(Stream, BytesMut)> {
        let mut stop = pin!(stopping.wait_for(|stop| *stop));
        // Once is enough: it wakes this task whenever it comes, and then `stop_seen` tells.
        let mut stops = poll_fn(|cx| Poll::Ready(stop.as_mut().poll(cx).is_ready())).await;
        let mut keep = true;
        while keep {
            keep = match self.next(stops).await {
                Next::Http2 => return self.wire.into_parts(),
                Next::Over => false,
                Next::Head(head) => self.answer(head, proxy).await,
                Next::Malformed(malformed) => self.refuse(&malformed, proxy).await,
            };
            stops = self.is_stopping();
        }
        self.wire.lock().let_go();
        None
    }

    fn is_stopping(&self) -> bool {
        self.stop_seen.has_changed().unwrap_or(true) || *self.stop_seen.borrow()
    }

    /// Waits for the next request's head.
    async fn next(&mut self, stops: bool) -> Next {
        let mut wire = self.wire.clone();
        let mut seen = 0;
        self.waiting.clear();
        let next = poll_fn(|cx| self.poll_next(cx, &mut wire, &mut seen, stops)).await;
        self.waiting.clear();
        next
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire,
        seen: &mut usize,
        stops: bool,
    ) -> Poll<Next> {
        let mut wire = wire.lock();
        loop {
            // A head that drips is parsed again when a line of it has ended, not for each byte.
            let fresh = &wire.inbound[*seen..];
            if !fresh.is_empty() && (*seen == 0 || fresh.contains(&b'\n') || wire.inbound.len() >= MAX_HEAD) {
                if self.may_be_http2 && begins_http2(&wire.inbound) {
                    if wire.inbound.len() >= PREFACE.len() {
                        return Poll::Ready(Next::Http2);
                    }
                } else {
                    match head::take(&mut wire.inbound) {
                        Ok(Some(head)) => return Poll::Ready(Next::Head(head)),
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
                    continue;
                }
                Poll::Ready(_) => return Poll::Ready(Next::Over),
                Poll::Pending => {}
            }
            if begins && (stops || self.is_stopping()) {
                return Poll::Ready(Next::Over);
            }
            self.waiting.set_if_idle(if begins { self.timeouts.idle } else { self.timeouts.head });
            ready!(self.waiting.poll_passed(cx));
            return Poll::Ready(Next::Over);
        }
    }

    /// Has one request answered. Whether the connection is to be kept.
    async fn answer(&mut self, head: Head, proxy: &Proxy) -> bool {
        self.may_be_http2 = false;
        let persistent = head.is_persistent() && head.framing.is_ok();
        let body = self.body(&head);
        let local = || self.wire.lock().stream().tcp().and_then(|tcp| tcp.local_addr().ok());
        let manner = Manner::of(&head.method, head.version, persistent);
        let request = Request {
            method: head.method,
            version: head.version,
            target: head.target,
            absolute: head.authority.map(|authority| (authority, local())),
            framing_flaw: head.framing.err().map(head::words),
            fields: head.fields,
            peer: self.peer,
        };
        let mut handling = pin!(proxy.handle(request, body));
        let answered = poll_fn(|cx| match handling.as_mut().poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Some(reply)),
            // Nobody is there to take the answer: what is under way for it ends here.
            Poll::Pending => self.wire.lock().poll_left(cx).map(|()| None),
        });
        let Some(reply) = answered.await else { return false };
        self.deliver(reply, manner).await
    }

    /// The body that follows a head.
    fn body(&self, head: &Head) -> Body {
        let Ok(framing) = head.framing else { return Body::None };
        let mut wire = self.wire.lock();
        let declared = match framing {
            Framing::Done => return Body::None,
            Framing::Length(length) if length <= wire.inbound.len() as u64 => {
                return Body::Whole(wire.inbound.split_to(length as usize).freeze());
            }
            Framing::Length(length) => Some(length),
            Framing::Chunked(_) | Framing::UntilClose => None,
        };
        wire.framing = framing;
        wire.continue_due = head.expects_continue() && wire.inbound.is_empty();
        Body::Streamed(Box::new(WireBody { wire: self.wire.clone(), declared }))
    }

    /// Answers what is no request, and ends the connection.
    async fn refuse(&mut self, malformed: &Malformed, proxy: &Proxy) -> bool {
        let nothing = Request {
            method: Method::from_bytes(b"-").unwrap_or_default(),
            version: Version::HTTP_11,
            target: RequestTarget::new(Bytes::from_static(b"-")).unwrap_or_default(),
            absolute: None,
            framing_flaw: None,
            fields: Fields::default(),
            peer: self.peer,
        };
        let reply = proxy.refuse_head(malformed.status, malformed.words, &nothing);
        self.deliver(reply, Manner { version: Version::HTTP_11, is_head: false, keep: false }).await
    }

    /// Writes an answer. Whether the connection is to be kept.
    async fn deliver(&mut self, reply: crate::proxy::Reply, manner: Manner) -> bool {
        // A body that nobody will read: what is here of it is thrown away, for the rest there is no use.
        let left_over = !self.wire.has_reader() && !self.wire.lock().discard_body();
        let keep = manner.keep && !left_over && !self.is_stopping();
        let (mut delivery, keep) = Delivery::begin(reply, Manner { keep, ..manner });
        let end = poll_fn(|cx| delivery.poll(cx, &self.wire, self.timeouts.stall)).await;
        drop(delivery);
        if end == End::Broken {
            // To a client that knows no framing, or does not look at it, an orderly close would mean that the answer is
            // whole.
            self.wire.lock().sever();
            return false;
        }
        let unread = !self.wire.lock().discard_body();
        if keep && !unread {
            return true;
        }
        self.close(unread || !manner.keep).await;
        false
    }

    /// Closes with care: a client that is still sending would lose the answer in a reset.
    async fn close(&mut self, lingers: bool) {
        let mut deadline = Deadline::idle();
        deadline.set(LINGER);
        let mut left = LINGER_BYTES;
        let (wire, mut shut) = (self.wire.clone(), false);
        poll_fn(|cx| {
            let mut wire = wire.lock();
            if !shut {
                if ready!(wire.poll_shutdown(cx)).is_err() {
                    return Poll::Ready(());
                }
                shut = true;
            }
            if lingers { wire.poll_drain(cx, &mut deadline, &mut left) } else { Poll::Ready(()) }
        })
        .await;
    }
}

/// Whether this is how HTTP/2 begins, as far as it goes.
fn begins_http2(inbound: &[u8]) -> bool {
    let common = inbound.len().min(PREFACE.len());
    inbound[..common] == PREFACE[..common]
}
