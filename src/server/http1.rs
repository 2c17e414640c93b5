//! HTTP/1 towards clients: one task per connection reads a head, has the request handled, writes the response, and
//! repeats.
//!
//! A connection between two requests owns no buffer, one timer at most, and none of the memory that handling a request
//! takes.
//!
//! Ours: hyper's server with either of its clients takes 1.5 to 1.6 times the CPU of a minimal relay and 18 KB for each idle
//! connection; this with `upstream/h1.rs` takes 1.2 times and 2 KB.

mod disconnect;
mod handler_pool;
pub(crate) mod head;
mod incoming_body;
mod linger;
mod read_request;
mod response_writer;
#[cfg(test)]
mod tests;
mod transport;
mod wrong_key_delay;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use bytes::BytesMut;
use http::{Method, Version};
use tokio::{task::yield_now, time::Instant};

use self::{
    head::{HeadError, RequestHead, RequestHeadCache},
    incoming_body::Http1IncomingBody,
    linger::lingering_close,
    read_request::NextRequest,
    response_writer::{ResponseOptions, ResponseWriter, WriteOutcome},
    transport::Transport,
};
use super::{
    Accepted, Server, client_address::Peer, connection_limit::ConnectionPermit, large_head::LargeHead,
};
use crate::{
    http1::{
        buffer_pool,
        framing::{Framing, split_to},
        headers::Headers,
    },
    proxy::{Proxy, Request, RequestTarget, Response},
    request_body::RequestBody,
    time::deadline::Deadline,
};

/// State that the next connection of the same task reuses: a timer, and the cache of request heads. Successive
/// connections are often from the same program.
#[derive(Default)]
pub(super) struct ReusedByTask {
    timer: Deadline,
    head_cache: RequestHeadCache,
}

/// Serves one connection to its end. If it may be HTTP/2 and the client sends the preface, returns it with the bytes read
/// from it. The task must be woken when the server stops.
pub(super) async fn serve(
    mut connection: Box<Http1Connection>,
    reused: &mut ReusedByTask,
) -> Option<(Accepted, BytesMut)> {
    let mut next = connection.read_request().await;
    loop {
        let keep_alive = match next {
            NextRequest::Http2 => return connection.into_accepted(),
            NextRequest::Closed => false,
            NextRequest::Head => {
                let keep_open;
                (connection, keep_open) = handler_pool::run(connection).await;
                if keep_open && !connection.permit.is_authorized() {
                    // Rejected requests are handled as fast as they are read: yield so that other tasks run in between.
                    yield_now().await;
                }
                keep_open
            }
            NextRequest::Malformed(malformed) => {
                Box::pin(connection.reject_malformed(malformed)).await;
                false
            }
        };
        if !keep_alive {
            break;
        }
        next = connection.read_request().await;
    }
    let Http1Connection { transport, timer, head_cache, .. } = *connection;
    transport.state().finish_body();
    transport.state().release_buffer();
    // Once per connection: per request it would cost more than it protects.
    buffer_pool::wipe_scratch();
    *reused = ReusedByTask { timer, head_cache };
    None
}

/// One client's HTTP/1 connection.
pub(super) struct Http1Connection {
    transport: Transport,
    peer: Peer,
    may_be_http2: bool,
    /// No request was handled on it yet.
    is_new: bool,
    server: Arc<Server>,
    permit: Arc<ConnectionPermit>,
    timer: Deadline,
    /// When the last response was complete; taken when the connection begins to wait for the next request.
    responded_at: Option<Instant>,
    head_cache: RequestHeadCache,
    /// Held while a large incomplete head is buffered.
    large_head: Option<LargeHead>,
    proxy: Rc<Proxy>,
}

impl Http1Connection {
    /// A connection of which nothing is read. Takes what the task's last connection left.
    pub(super) fn new(
        accepted: Accepted,
        may_be_http2: bool,
        server: &Arc<Server>,
        proxy: &Rc<Proxy>,
        reused: &mut ReusedByTask,
    ) -> Box<Self> {
        let Accepted { stream, peer, permit } = accepted;
        let ReusedByTask { timer, head_cache } = std::mem::take(reused);
        Box::new(Self {
            transport: Transport::new(stream),
            peer,
            may_be_http2,
            is_new: true,
            server: server.clone(),
            permit,
            timer,
            responded_at: None,
            head_cache,
            large_head: None,
            proxy: proxy.clone(),
        })
    }

    /// The connection as it was accepted, and the bytes read from it.
    fn into_accepted(self) -> Option<(Accepted, BytesMut)> {
        let Self { transport, peer, permit, .. } = self;
        let (stream, received) = transport.into_parts()?;
        Some((Accepted { stream, peer, permit }, received))
    }

    /// Handles one request; returns whether the connection may be kept.
    async fn handle_request(&mut self, head: RequestHead) -> bool {
        let (request, body, body_streamed, options) = self.build_request(head);
        self.timer.clear();
        let completed = {
            let mut handling = pin!(self.proxy.handle(&request, body, &mut self.timer));
            let completed = poll_fn(|cx| {
                let polled = handling.as_mut().poll(cx);
                if request.authorized.get() && !self.permit.is_authorized() {
                    self.permit.mark_authorized();
                    self.transport.state().read_ahead();
                }
                match polled {
                    Poll::Ready(response) => Poll::Ready(Some(response)),
                    // What only its body can authorize may never come, and what needs no key may wait for WeCom.
                    Poll::Pending if self.permit.must_close_now() => Poll::Ready(None),
                    // While the request is handled, a disconnect ends it.
                    Poll::Pending => {
                        let mut state = self.transport.state();
                        let disconnected = state.poll_disconnected(cx, request.waiting.get()).map(|()| None);
                        if disconnected.is_pending() && request.waiting.get() {
                            state.release_spare_capacity();
                        }
                        disconnected
                    }
                }
            });
            completed.await
        };
        let Some(mut response) = completed else {
            self.transport.state().finish_body();
            return false;
        };
        let peer = request.peer;
        drop(request);
        if !self.permit.is_authorized() {
            response.finish_context(options.is_head_request);
            self.transport.state().shrink_buffer();
        }
        if response.wrong_key && !Box::pin(self.delay_wrong_key(peer)).await {
            self.transport.state().finish_body();
            return false;
        }
        match self.write_response(response, options, body_streamed).await {
            AfterResponse::KeepAlive => true,
            AfterResponse::Reset => false,
            AfterResponse::Close { may_be_sending } => {
                lingering_close(&self.transport, may_be_sending, &self.permit).await;
                false
            }
        }
    }

    /// Builds the request and its body, and returns with them whether the body is still to come, and how the response
    /// is to be written. Consumes the head, whose memory would otherwise be held as long as the request waits.
    fn build_request(&mut self, head: RequestHead) -> (Request, RequestBody, bool, ResponseOptions) {
        self.may_be_http2 = false;
        // After the stop, further requests on a kept connection are rejected: the client can send them on a connection to
        // another process.
        let draining =
            !std::mem::take(&mut self.is_new) && self.server.is_stopping() || self.permit.is_revoked();
        let persistent = head.is_persistent() && head.framing.is_ok();
        let (body, body_streamed) = self.incoming_body(&head);
        let options = ResponseOptions::new(&head.method, head.version, persistent);
        let local_address = || self.transport.state().stream().tcp().and_then(|tcp| tcp.local_addr().ok());
        let request = Request {
            method: head.method,
            version: head.version,
            target: head.target,
            path_credential: head.path_credential,
            absolute_form: head.authority.map(|authority| Box::new((authority, local_address()))),
            malformed: head.framing.err().map(head::framing_error_message),
            peer: self.server.client_addresses.of_request(self.peer, &head.headers),
            socket_peer: self.peer.address,
            headers: head.headers,
            draining,
            authorized: Cell::new(false),
            waiting: Cell::new(false),
        };
        (request, body, body_streamed, options)
    }

    /// The body that follows a head, and whether any of it is still to come.
    fn incoming_body(&self, head: &RequestHead) -> (RequestBody, bool) {
        let framing = head.framing.unwrap_or(Framing::Done);
        if framing == Framing::Done {
            return (RequestBody::None, false);
        }
        let mut state = self.transport.state();
        let content_length = match framing {
            Framing::Length(length) if length <= state.read_buf.len() as u64 => {
                // A buffer of the pool's size is in use until the response anyway; sharing it costs less than a copy.
                let body = match state.read_buf.capacity() <= buffer_pool::BUFFER_BYTES {
                    true => state.read_buf.split_to(length as usize).freeze(),
                    false => split_to(&mut state.read_buf, length as usize),
                };
                return (RequestBody::Complete(body), false);
            }
            Framing::Length(length) => Some(length),
            _ => None,
        };
        state.framing = framing;
        state.body_not_polled = true;
        state.continue_pending = head.expects_continue() && state.read_buf.is_empty();
        drop(state);
        (RequestBody::Streamed(Box::new(Http1IncomingBody::new(&self.transport, content_length))), true)
    }

    /// Rejects a malformed head. The connection ends after it.
    async fn reject_malformed(&mut self, malformed: HeadError) {
        let request = Request {
            method: Method::from_bytes(b"-").unwrap_or_default(),
            version: Version::HTTP_11,
            target: RequestTarget::new("-"),
            path_credential: None,
            absolute_form: None,
            malformed: None,
            headers: Headers::default(),
            peer: self.peer.address,
            socket_peer: self.peer.address,
            draining: false,
            authorized: Cell::new(false),
            waiting: Cell::new(false),
        };
        let response = self.proxy.reject_head(malformed.status, malformed.message, &request);
        let is_head_request = self.transport.state().read_buf.trim_ascii_start().starts_with(b"HEAD ");
        self.transport.state().release_buffer();
        self.large_head = None;
        let options = ResponseOptions { version: Version::HTTP_11, is_head_request, keep_alive: false };
        if self.write_response(response, options, false).await != AfterResponse::Reset {
            lingering_close(&self.transport, true, &self.permit).await;
        }
    }

    /// Writes a response. `body_streamed`: the request's body did not come with its head.
    async fn write_response(
        &mut self,
        response: Response,
        options: ResponseOptions,
        body_streamed: bool,
    ) -> AfterResponse {
        // Buffered bytes of an unread request body are discarded. If more of it is still to come, or a reader still
        // takes it while the response is sent (as over HTTP/2 towards the upstream), the connection ends with this
        // response, and `Connection: close` says so.
        let has_unread_body = body_streamed && {
            let has_reader = self.transport.has_body_reader();
            let mut state = self.transport.state();
            state.framing != Framing::Done && (has_reader || !state.discard_buffered_body())
        };
        let keep_alive = options.keep_alive
            && !has_unread_body
            && !self.server.is_stopping()
            && !self.permit.is_close_requested()
            && !self.transport.state().is_at_end();
        let (mut writer, keep_alive) =
            ResponseWriter::start(response, ResponseOptions { keep_alive, ..options });
        let write_timeout = self.server.timeouts.write_timeout(&self.permit);
        let outcome = poll_fn(|cx| match writer.poll_write(cx, &self.transport, write_timeout) {
            Poll::Pending if self.permit.must_close_now() => Poll::Ready(WriteOutcome::Aborted),
            polled => polled,
        });
        let outcome = outcome.await;
        let now = Instant::now();
        writer.finish(now);
        self.responded_at = Some(now);
        if outcome == WriteOutcome::Aborted {
            // A client that ignores the framing would take an orderly close for the end of a complete response.
            self.transport.state().reset_on_close();
            return AfterResponse::Reset;
        }
        let mut state = self.transport.state();
        state.disconnect_watch = None;
        if body_streamed {
            // A reader that still exists must not get bytes of the next request.
            state.finish_body();
        }
        match keep_alive {
            true => AfterResponse::KeepAlive,
            // A client that sends nothing before it has the whole response needs no lingering read.
            false => AfterResponse::Close {
                may_be_sending: has_unread_body && !state.discard_buffered_body()
                    || !state.read_buf.is_empty()
                    || state.stream().is_readable(),
            },
        }
    }
}

/// What happens to a connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterResponse {
    /// It waits for the next request.
    KeepAlive,
    /// It is reset.
    Reset,
    /// It is closed.
    Close {
        /// The client may still be sending.
        may_be_sending: bool,
    },
}
