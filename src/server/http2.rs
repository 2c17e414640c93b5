//! HTTP/2 towards clients: h2 implements the protocol. A connection's task drives h2 and the futures of all its
//! streams; this module adds our bounds and time-outs, and converts requests and responses.

mod connection;
mod connection_state;
mod early_settings;
mod frame_splitter;
mod frame_tracker;
mod incoming_body;
mod request;
mod response_writer;
mod staged_input;
mod stream;
mod stream_set;
mod transport;

use std::{
    future::{Future, poll_fn},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncReadExt, sync::watch, time::timeout};

use self::{
    connection::{H2Connection, Http2Connection},
    connection_state::ConnectionState,
    stream::StreamContext,
    stream_set::StreamSet,
    transport::Http2Transport,
};
use super::{
    Accepted, MAX_HEAD_BYTES, SHUTDOWN_GRACE_TIMEOUT, Server, connection_limit::ConnectionPermit,
    shutdown_grace_elapsed,
};
use crate::{http1::io::Stream, proxy::Proxy, time::deadline::Deadline};

/// Maximum number of concurrent streams per connection.
const MAX_CONCURRENT_STREAMS: u32 = 256;
/// Receive windows of a stream and of a connection: the only bound on request data that is not read yet.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// Maximum frame size: the minimum that RFC 9113 allows, which every client uses by default.
const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// Maximum number of bytes of a response in h2 that wait for the socket.
const MAX_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Number of streams reset by the proxy that h2 remembers, for a second each, so as to ignore what the client still
/// sends on them; on others it is told that they are closed. They count as memory of clients without a key: with these, with the
/// pending rejections and the current stream, h2's table of streams has 8 entries.
const MAX_REMEMBERED_RESETS: usize = 4;

/// Serves one connection to its end. `received` holds the bytes that were read from it before.
pub(super) async fn serve(
    accepted: Accepted,
    mut received: BytesMut,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
) {
    let Accepted { mut stream, peer, permit } = accepted;
    let (timeouts, mut stopping) = (server.timeouts, server.stopping.clone());
    let state = ConnectionState::new(permit.clone(), timeouts);
    if received.is_empty()
        && !read_first_bytes(&mut stream, &mut received, timeouts.idle, &mut stopping, &permit).await
    {
        return;
    }
    let transport = Http2Transport::new(stream, received, state.clone());
    let waited = tokio::select! {
        waited = transport.wait_until_h2_needed() => waited,
        _ = stopping.wait_for(|stop| *stop) => Ok(()),
        () = permit.close_requested() => Ok(()),
    };
    if waited.is_err() {
        return;
    }
    let streams = StreamSet::new(poll_fn(|cx| Poll::Ready(cx.waker().clone())).await);
    // Only without a complete preface does the handshake have to wait.
    let h2 = tokio::select! {
        biased;
        h2 = timeout(SHUTDOWN_GRACE_TIMEOUT, handshake(transport.clone())) => h2,
        () = permit.close_requested() => return,
    };
    let Ok(Some(h2)) = h2 else { return };
    let context = StreamContext { connection: state.clone(), server: server.clone(), proxy: proxy.clone() };
    let mut connection = Http2Connection::new(h2, transport, streams, peer, context);
    if !serve_until_goaway(&mut connection, server, &state).await {
        drain(&mut connection, &state).await;
    }
}

/// Reads the first bytes of a connection; false if none arrive. Until then it is idle and needs no h2, which would
/// wait for them even after its graceful shutdown has begun.
async fn read_first_bytes(
    stream: &mut Stream,
    received: &mut BytesMut,
    idle_timeout: Duration,
    stopping: &mut watch::Receiver<bool>,
    permit: &ConnectionPermit,
) -> bool {
    let read = tokio::select! {
        () = shutdown_grace_elapsed(stopping) => return false,
        () = permit.close_requested() => return false,
        read = timeout(idle_timeout, stream.read_buf(received)) => read,
    };
    matches!(read, Ok(Ok(bytes)) if bytes > 0)
}

/// h2's handshake, with the settings of every connection; `None` if it fails.
async fn handshake(transport: Http2Transport) -> Option<H2Connection> {
    // Boxed: large, and done when the connection has hardly begun.
    let mut handshake = Box::pin(
        h2::server::Builder::new()
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .max_frame_size(MAX_FRAME_BYTES)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buffer_size(MAX_SEND_BUFFER_BYTES)
            .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
            .handshake::<_, Bytes>(transport.clone()),
    );
    let connection = poll_fn(|cx| {
        transport.resume_reading();
        handshake.as_mut().poll(cx)
    });
    connection.await.inspect_err(|error| tracing::debug!(%error, "HTTP/2 handshake failed")).ok()
}

/// Serves until the connection has ended, true, or until GOAWAY is due, false.
async fn serve_until_goaway(
    connection: &mut Http2Connection,
    server: &Server,
    state: &ConnectionState,
) -> bool {
    let mut first_request_deadline = Deadline::unset();
    poll_fn(|cx| {
        // A connection that is evicted makes room at once.
        if !state.permit().must_close_now() && connection.poll().is_ready() {
            return Poll::Ready(true);
        }
        let is_due = state.permit().is_close_requested()
            || state.is_budget_exhausted()
            || server.is_stopping() && is_first_request_overdue(cx, state, &mut first_request_deadline);
        if is_due { Poll::Ready(false) } else { Poll::Pending }
    })
    .await
}

/// After the stop: whether GOAWAY need not wait for the first request of a new connection, which has
/// [`SHUTDOWN_GRACE_TIMEOUT`] for it, because a client opens no stream after GOAWAY.
fn is_first_request_overdue(cx: &mut Context<'_>, state: &ConnectionState, deadline: &mut Deadline) -> bool {
    deadline.set_if_unset(SHUTDOWN_GRACE_TIMEOUT);
    !state.is_new() || deadline.poll_elapsed(cx).is_ready()
}

/// Sends GOAWAY, and serves the connection until it has ended or may be dropped; the last GOAWAY names the last stream.
async fn drain(connection: &mut Http2Connection, state: &ConnectionState) {
    if !state.permit().must_close_now() {
        connection.graceful_shutdown();
        let is_ending = state.is_budget_exhausted();
        let ended = poll_fn(|_| match connection.poll() {
            Poll::Pending if is_ending && connection.is_idle() => Poll::Ready(()),
            polled => polled,
        });
        if is_ending {
            let _ = timeout(SHUTDOWN_GRACE_TIMEOUT, ended).await;
        } else {
            // h2 waits for the client's acknowledgement of GOAWAY, without a time-out.
            tokio::select! {
                () = ended => return,
                () = state.wait_idle(SHUTDOWN_GRACE_TIMEOUT) => {}
            }
        }
    }
    connection.abrupt_shutdown();
    // One poll sends GOAWAY if the client reads; nothing waits for it.
    poll_fn(|_| Poll::Ready(connection.poll().is_ready())).await;
}
