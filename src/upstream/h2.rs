//! Requests on shared HTTP/2 connections. h2 implements the protocol; this file sets the bounds.

mod activity;
mod error;
mod request_writer;
mod response_body;

use std::{
    future::{Future, poll_fn},
    mem,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use ::h2::{
    RecvStream,
    client::{Builder, Connection, ResponseFuture, SendRequest},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header, uri};
use tokio::{task::spawn_local, time::Instant};

pub(super) use self::response_body::Http2UpstreamBody;
use self::{
    activity::{CLOSE_TIMEOUT, ConnectionActivity, CountedStream, OpenStreamGuard, PING_INTERVAL},
    error::{classify_error, describe, handshake_error, not_sent},
    request_writer::{BodyProgress, RequestWriter},
};
use super::{
    Delivery, Settings, UpstreamBody, UpstreamBodyKind, UpstreamError, UpstreamErrorKind, UpstreamRequest,
    open_connection::OpenConnection,
};
use crate::{
    http1::{framing::response_content_length, headers::has_quotation_mark, io::Stream},
    http2::KeepAlive,
    request_body::BodyReader,
    text,
    time::deadline::Deadline,
};

/// Stream window: maximum bytes of a response received before they are read.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Connection window: large enough never to bind, so that one slow reader cannot stall the other streams. h2 derives
/// its limit on small buffered DATA frames from it: each counts 255 bytes less its payload against half the window,
/// and beyond that h2 closes the connection.
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Maximum concurrent streams of a connection, whatever the upstream allows: with more, the stream windows would
/// exceed the connection window.
const MAX_STREAMS: usize = (CONNECTION_WINDOW_BYTES / STREAM_WINDOW_BYTES) as usize;
/// Sentinel: SETTINGS_MAX_CONCURRENT_STREAMS not received yet.
const SETTINGS_NOT_RECEIVED: usize = usize::MAX - 1;
/// Maximum bytes of the headers of a response.
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1024;

type Http2Connection = Connection<CountedStream, Bytes>;

/// Handle of a shared connection.
pub(super) struct Http2Sender {
    send_request: SendRequest<Bytes>,
    activity: Rc<ConnectionActivity>,
}

/// Identifies a connection.
pub(super) struct ConnectionId(Rc<ConnectionActivity>);

impl ConnectionId {
    /// Whether a request timed out on it without any byte from the upstream.
    pub(super) fn is_dead(&self) -> bool {
        self.0.dead.get()
    }

    /// The address of the connection's other end.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }
}

impl Http2Sender {
    /// Performs the HTTP/2 handshake and spawns the connection task. Waits for the upstream's SETTINGS, which contain
    /// the maximum of concurrent streams.
    pub(super) async fn handshake(
        stream: Stream,
        dialed_at: Instant,
        max_age: Duration,
        open: OpenConnection,
    ) -> Result<Self, UpstreamErrorKind> {
        let activity = ConnectionActivity::new(&stream, dialed_at, max_age);
        let stream = CountedStream { stream, activity: activity.clone() };
        let (send_request, mut connection) = Builder::new()
            .enable_push(false)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(SETTINGS_NOT_RECEIVED)
            .handshake(stream)
            .await
            .map_err(|error| handshake_error(&error))?;
        let settings_received = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(handshake_error(&error))),
            Poll::Ready(Ok(())) => Poll::Ready(Err(UpstreamErrorKind::ClosedBeforeResponse)),
            Poll::Pending if connection.max_concurrent_send_streams() == SETTINGS_NOT_RECEIVED => {
                Poll::Pending
            }
            Poll::Pending => Poll::Ready(Ok(())),
        });
        settings_received.await?;
        activity.max.set(max_streams(&connection));
        spawn_local(drive_connection(connection, activity.clone(), open));
        Ok(Self { send_request, activity })
    }

    /// Whether the connection has ended, or the upstream accepts no stream on it any more.
    pub(super) fn is_closed(&mut self) -> bool {
        matches!(self.send_request.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    pub(super) fn has_id(&self, connection: &ConnectionId) -> bool {
        Rc::ptr_eq(&self.activity, &connection.0)
    }

    /// Number of open streams.
    pub(super) fn open_streams(&self) -> usize {
        self.activity.open.get()
    }

    /// Whether another stream may begin now.
    pub(super) fn accepts_stream(&self, now: Instant) -> bool {
        self.activity.accepts_stream(now)
    }

    /// Whether no stream begins on it any more.
    pub(super) fn is_retired(&self, now: Instant) -> bool {
        self.activity.is_retired(now)
    }

    /// Whether no stream may begin on it even if no other connection can be opened.
    pub(super) fn is_unusable(&self) -> bool {
        self.activity.is_unusable()
    }

    /// Lets no stream begin any more; the open ones continue.
    pub(super) fn retire(&self) {
        self.activity.retired.set(true);
    }

    /// When the connection's dial began.
    pub(super) fn dialed_at(&self) -> Instant {
        self.activity.dialed_at
    }

    /// The address of the connection's other end.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.activity.peer
    }

    /// Reserves a stream even beyond the capacity.
    pub(super) fn reserve_stream(&self) -> StreamSlot {
        StreamSlot { send_request: self.send_request.clone(), guard: OpenStreamGuard::new(&self.activity) }
    }
}

async fn drive_connection(
    mut connection: Http2Connection,
    activity: Rc<ConnectionActivity>,
    _open: OpenConnection,
) {
    let mut keep_alive = KeepAlive::new(connection.ping_pong(), PING_INTERVAL, CLOSE_TIMEOUT);
    let closed = poll_fn(|cx| {
        if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(ended);
        }
        activity.max.set(max_streams(&connection));
        // An idle connection is not kept alive, but a dead one ends before another request uses it.
        let is_watched = activity.has_streams() || keep_alive.awaits_pong();
        if is_watched && keep_alive.poll_gone(cx, activity.last_read_at.get()).is_ready() {
            tracing::debug!("upstream HTTP/2 connection does not reply to PING");
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    });
    if let Err(error) = closed.await {
        tracing::debug!(error = describe(&error), "upstream HTTP/2 connection failed");
    }
}

fn max_streams(connection: &Http2Connection) -> usize {
    connection.max_concurrent_send_streams().clamp(1, MAX_STREAMS)
}

/// A reserved stream for one request.
pub(super) struct StreamSlot {
    send_request: SendRequest<Bytes>,
    guard: OpenStreamGuard,
}

impl StreamSlot {
    pub(super) fn connection_id(&self) -> ConnectionId {
        ConnectionId(self.guard.activity().clone())
    }

    /// Sends a request and waits for the response head.
    pub(super) async fn send(
        self,
        settings: &Arc<Settings>,
        request: &UpstreamRequest<'_>,
        reader: Option<BodyReader>,
        deadline: &mut Deadline,
    ) -> Result<super::UpstreamResponse, UpstreamError> {
        let Self { mut send_request, guard } = self;
        let head = build_request(settings, request)?;
        poll_fn(|cx| send_request.poll_ready(cx)).await.map_err(|error| not_sent(&error))?;
        let (mut response, stream) =
            send_request.send_request(head, reader.is_none()).map_err(|error| not_sent(&error))?;
        let (progress, writer_task) = match reader {
            Some(reader) => {
                let progress = Rc::new(BodyProgress::default());
                let writer = RequestWriter::new(send_request, stream, reader, progress.clone());
                (Some(progress), writer.start().await)
            }
            None => (None, None),
        };
        let response = wait_for_response(
            &mut response,
            settings.response_timeout,
            &guard,
            progress.as_deref(),
            deadline,
        )
        .await?;
        let received_at = Instant::now();
        let (parts, stream) = response.into_parts();
        if parts.headers.keys().any(has_quotation_mark) {
            return Err(UpstreamError {
                kind: UpstreamErrorKind::InvalidHead(
                    const { &text!("invalid header name", "响应头名称无效") },
                ),
                delivery: Delivery::MaybeSent,
            });
        }
        let headers = guard.activity().header_cache.borrow_mut().get_or_insert_map(&parts.headers);
        let content_length = response_content_length(&headers).map_err(|error| UpstreamError {
            kind: UpstreamErrorKind::Framing(error),
            delivery: Delivery::MaybeSent,
        })?;
        let body = UpstreamBody(if stream.is_end_stream() {
            UpstreamBodyKind::Ended
        } else {
            let body = Http2UpstreamBody::new(stream, settings.body_timeout, writer_task, guard);
            UpstreamBodyKind::Http2(Box::new(body))
        });
        Ok(super::UpstreamResponse { status: parts.status, headers, content_length, body, received_at })
    }
}

/// Waits for the head. While the body makes progress or the client is slow, the upstream is not late.
async fn wait_for_response(
    response: &mut ResponseFuture,
    response_timeout: Duration,
    guard: &OpenStreamGuard,
    progress: Option<&BodyProgress>,
    deadline: &mut Deadline,
) -> Result<http::Response<RecvStream>, UpstreamError> {
    let activity = guard.activity();
    let reads_before = activity.reads.get();
    let mut pieces_before = progress.map(|progress| progress.pieces.get());
    // Taken: a wait that is dropped must not leave it running.
    let mut running = mem::take(deadline);
    let waited = poll_fn(|cx| {
        loop {
            if let Poll::Ready(response) = Pin::new(&mut *response).poll(cx) {
                return Poll::Ready(Some(response));
            }
            ready!(running.poll_stalled(cx, response_timeout));
            let pieces = progress.map(|progress| progress.pieces.get());
            let is_late =
                pieces == pieces_before && !progress.is_some_and(|progress| progress.awaits_client.get());
            if is_late {
                return Poll::Ready(None);
            }
            pieces_before = pieces;
            running.clear();
        }
    });
    let response = waited.await;
    running.clear();
    *deadline = running;
    if let Some(response) = response {
        let body_error = progress.and_then(|progress| progress.error.get());
        return response.map_err(|error| classify_error(&error, body_error));
    }
    if activity.reads.get() == reads_before {
        activity.dead.set(true);
    }
    Err(UpstreamError { kind: UpstreamErrorKind::ResponseTimeout, delivery: Delivery::MaybeSent })
}

fn build_request(settings: &Settings, request: &UpstreamRequest<'_>) -> Result<Request<()>, UpstreamError> {
    let malformed = || UpstreamError {
        kind: UpstreamErrorKind::Http2("the request target is not a URI".into()),
        delivery: Delivery::NotSent,
    };
    let path_and_query = uri::PathAndQuery::try_from(encode_target(&settings.path_prefix, request.target))
        .map_err(|_| malformed())?;
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTPS);
    parts.authority = settings.tls.as_ref().map(|tls| tls.authority.clone());
    parts.path_and_query = Some(path_and_query);
    let mut head = Request::new(());
    *head.version_mut() = Version::HTTP_2;
    *head.method_mut() = request.method.clone();
    *head.uri_mut() = Uri::from_parts(parts).map_err(|_| malformed())?;
    for header in request.headers.forwarded_to_upstream() {
        let (name, value) = (HeaderName::from_bytes(header.name), HeaderValue::from_bytes(header.value));
        if let (Ok(name), Ok(value)) = (name, value) {
            head.headers_mut().append(name, value);
        }
    }
    if let Some(length) = request.body_length.content_length()
        && (length > 0 || !matches!(*request.method, Method::GET | Method::HEAD | Method::DELETE))
    {
        head.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(head)
}

/// Concatenates a target for the http crate. Encodes three characters that are invalid in a query but that HTTP/1
/// transports.
fn encode_target(path_prefix: &str, target: &[&str]) -> String {
    let mut encoded =
        String::with_capacity(path_prefix.len() + target.iter().map(|part| part.len()).sum::<usize>());
    encoded.push_str(path_prefix);
    target.iter().for_each(|part| encoded.push_str(part));
    match memchr::memchr3(b'"', b'<', b'>', encoded.as_bytes()) {
        None => encoded,
        Some(_) => encoded.replace('"', "%22").replace('<', "%3C").replace('>', "%3E"),
    }
}
