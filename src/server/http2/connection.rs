//! Drives one connection: h2, the futures of its streams, and the keep-alive, all in the connection's own task.

use std::{
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::Request;
use tokio::task::coop::has_budget_remaining;

use super::{
    connection_state::ConnectionState,
    incoming_body::{ContinueSignal, Http2IncomingBody, discard},
    request::{RequestCache, content_length, expects_continue},
    stream::{RequestStream, StreamContext},
    stream_set::StreamSet,
    transport::Http2Transport,
};
use crate::{http2::KeepAlive, server::client_address::Peer};

/// Maximum number of rounds before other tasks run.
const MAX_ROUNDS: usize = 8;
/// The same while no request was authorized.
const MAX_UNAUTHORIZED_ROUNDS: usize = 1;

/// How long a client may take to answer a PING with any frame.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// h2's part of a connection.
pub(super) type H2Connection = h2::server::Connection<Http2Transport, Bytes>;

/// One HTTP/2 connection after its handshake.
pub(super) struct Http2Connection {
    h2: H2Connection,
    transport: Http2Transport,
    streams: StreamSet,
    keep_alive: KeepAlive,
    request_cache: RequestCache,
    peer: Peer,
    context: StreamContext,
}

impl Http2Connection {
    /// Takes over a connection whose handshake is complete. `transport` shares the state of the one that h2 has.
    pub(super) fn new(
        mut h2: H2Connection,
        transport: Http2Transport,
        streams: StreamSet,
        peer: Peer,
        context: StreamContext,
    ) -> Self {
        let keep_alive = KeepAlive::new(h2.ping_pong(), context.connection.timeouts().idle, PONG_TIMEOUT);
        Self { h2, transport, streams, keep_alive, request_cache: RequestCache::default(), peer, context }
    }

    fn state(&self) -> &Rc<ConnectionState> {
        &self.context.connection
    }

    /// Whether no stream is being served.
    pub(super) fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Sends GOAWAY; streams that the client has opened meanwhile are still served.
    pub(super) fn graceful_shutdown(&mut self) {
        self.h2.graceful_shutdown();
    }

    /// Sends a GOAWAY that names the last stream, and ends all streams.
    pub(super) fn abrupt_shutdown(&mut self) {
        self.h2.abrupt_shutdown(Reason::NO_ERROR);
    }

    /// Serves the connection; ready when it has ended.
    pub(super) fn poll(&mut self) -> Poll<()> {
        self.streams.begin_poll();
        let waker = self.streams.connection_waker();
        let polled = self.poll_rounds(&mut Context::from_waker(&waker));
        self.streams.end_poll();
        polled
    }

    /// One round after the other, until nothing is left to do or other tasks are to run.
    fn poll_rounds(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let max_rounds = if self.state().is_authorized() { MAX_ROUNDS } else { MAX_UNAUTHORIZED_ROUNDS };
        for _ in 0..max_rounds {
            self.streams.poll_woken();
            while self.streams.has_capacity()
                && let Some(body) = self.state().next_unread_body()
            {
                self.streams.insert(Box::pin(discard(body)));
            }
            self.streams.clear_connection_flag();
            self.transport.resume_reading();
            if self.poll_accept(cx).is_ready() {
                return Poll::Ready(());
            }
            // After the reads, which may bring what a stopped process has not seen yet.
            if self.keep_alive.poll_gone(cx, self.transport.last_read_at()).is_ready() {
                tracing::debug!("HTTP/2 client does not reply to PING");
                return Poll::Ready(());
            }
            if !self.streams.has_woken() || !has_budget_remaining() {
                break;
            }
        }
        // Frames of all streams leave in one write.
        if let Poll::Ready(Err(error)) = self.transport.poll_flush_output(cx) {
            tracing::debug!(%error, "HTTP/2 connection failed");
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Lets h2 read and write, and starts the streams that the client has opened. Ready when the connection has ended.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.streams.has_capacity() {
            match ready!(self.h2.poll_accept(cx)) {
                Some(Ok((request, respond))) => {
                    self.start_stream(request, respond);
                    if !self.state().is_authorized() {
                        // Most rejections are ready at once: nothing of such a request is held longer.
                        self.streams.poll_woken();
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "HTTP/2 connection failed");
                    return Poll::Ready(());
                }
                None => return Poll::Ready(()),
            }
        }
        // Streams that the client has reset still have a future; h2 goes on meanwhile.
        self.h2.poll_closed(cx).map(drop)
    }

    /// Starts serving a stream.
    fn start_stream(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let state = self.state().clone();
        // After the stop, requests that arrive before the client has received GOAWAY do not reach the upstream, except
        // the first of a new connection.
        let draining = self.context.server.is_stopping() && !state.is_new() || state.is_revoked();
        let (parts, stream) = request.into_parts();
        let mut request = self.request_cache.convert(parts, draining);
        request.socket_peer = self.peer.address;
        request.peer = self.context.server.client_addresses.of_request(self.peer, &request.headers);
        let continue_signal = expects_continue(&request.headers).then(Rc::<ContinueSignal>::default);
        let length = content_length(&request.headers);
        let body = Http2IncomingBody::wrap(stream, length, continue_signal.clone(), &state);
        let stream = RequestStream {
            respond,
            continue_signal,
            // Requests of a client that is no longer accepted do not keep the connection open.
            request_guard: (!state.is_revoked()).then(|| state.request_guard()),
            context: self.context.clone(),
        };
        self.streams.insert(Box::pin(stream.serve(request, body)));
    }
}

impl Drop for Http2Connection {
    fn drop(&mut self) {
        self.state().end();
    }
}
