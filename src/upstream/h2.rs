//! Requests on shared HTTP/2 connections. hyper implements the protocol; this file sets the bounds.

mod activity;
mod error;
mod request_body;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, Version, uri};
use http_body::Body;
use hyper::{body::Incoming, client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{task::spawn_local, time::Instant};

use self::{
    activity::{CLOSE_TIMEOUT, ConnectionActivity, CountedStream, PING_INTERVAL},
    error::{classify_error, describe, handshake_error},
    request_body::{Http2RequestBody, ReleaseReader, RequestProgress},
};
use super::{
    Delivery, Settings, UpstreamBody, UpstreamBodyKind, UpstreamError, UpstreamErrorKind, UpstreamRequest,
    open_connection::OpenConnection,
};
use crate::{
    http1::{
        framing::{copy_if_small, response_content_length},
        headers::{Headers, has_quotation_mark},
        io::Stream,
    },
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
/// Frame header (RFC 9113 §4.1).
const FRAME_HEADER_BYTES: u64 = 9;
/// Interval at which a new connection is checked for the upstream's SETTINGS.
const SETTINGS_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Spawns hyper's tasks on the local task set.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

type Http2Connection = http2::Connection<TokioIo<CountedStream>, Http2RequestBody, LocalExecutor>;

/// Handle of a shared connection.
pub(super) struct Http2Sender {
    send_request: http2::SendRequest<Http2RequestBody>,
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
        let (send_request, mut connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(CLOSE_TIMEOUT)
            .max_header_list_size(64 * 1024)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(SETTINGS_NOT_RECEIVED)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| handshake_error(&error))?;
        while connection.current_max_send_streams() == SETTINGS_NOT_RECEIVED {
            if let Ok(ended) = tokio::time::timeout(SETTINGS_POLL_INTERVAL, &mut connection).await {
                let error = ended.err().map(|error| handshake_error(&error));
                return Err(error.unwrap_or(UpstreamErrorKind::ClosedBeforeResponse));
            }
        }
        activity.max.set(max_streams(&connection));
        spawn_local(drive_connection(connection, activity.clone(), open));
        Ok(Self { send_request, activity })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.send_request.is_closed()
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
        self.activity.open.update(|open| open + 1);
        let guard = OpenStreamGuard { activity: self.activity.clone(), is_stuck: Cell::new(false) };
        StreamSlot { send_request: self.send_request.clone(), guard }
    }
}

async fn drive_connection(
    mut connection: Http2Connection,
    activity: Rc<ConnectionActivity>,
    _open: OpenConnection,
) {
    let closed = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        if polled.is_pending() {
            activity.max.set(max_streams(&connection));
        }
        polled
    });
    if let Err(error) = closed.await {
        tracing::debug!(error = describe(&error), "upstream HTTP/2 connection failed");
    }
}

fn max_streams(connection: &Http2Connection) -> usize {
    connection.current_max_send_streams().clamp(1, MAX_STREAMS)
}

/// A reserved stream for one request.
pub(super) struct StreamSlot {
    send_request: http2::SendRequest<Http2RequestBody>,
    guard: OpenStreamGuard,
}

/// Counts an open stream until it is dropped.
struct OpenStreamGuard {
    activity: Rc<ConnectionActivity>,
    is_stuck: Cell<bool>,
}

impl OpenStreamGuard {
    fn mark_stuck(&self) {
        self.is_stuck.set(true);
        self.activity.record_stuck_stream();
    }
}

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        self.activity.end_stream(self.is_stuck.get());
    }
}

impl StreamSlot {
    pub(super) fn connection_id(&self) -> ConnectionId {
        ConnectionId(self.guard.activity.clone())
    }

    /// Sends a request and waits for the response head.
    pub(super) async fn send(
        mut self,
        settings: &Arc<Settings>,
        request: &UpstreamRequest<'_>,
        reader: Option<BodyReader>,
    ) -> Result<super::UpstreamResponse, UpstreamError> {
        let activity = self.guard.activity.clone();
        let reads_before = activity.reads.get();
        let progress = Rc::new(RequestProgress::new(self.guard, reader));
        let release_reader = ReleaseReader(progress.clone());
        let http_request = build_request(settings, request, progress.clone())?;
        let mut response_future = pin!(self.send_request.try_send_request(http_request));
        let response = loop {
            let chunks_before = progress.chunks.get();
            match tokio::time::timeout(settings.response_timeout, &mut response_future).await {
                Ok(Ok(response)) => break response,
                Ok(Err(mut send_error)) => {
                    let is_sent = send_error.take_message().is_none();
                    return Err(classify_error(&send_error.into_error(), is_sent));
                }
                // While the body makes progress or the client is slow, the upstream is not late.
                Err(_) if progress.awaits_client.get() => {}
                Err(_) if progress.chunks.get() != chunks_before => {}
                Err(_) => {
                    if activity.reads.get() == reads_before {
                        activity.dead.set(true);
                    }
                    return Err(UpstreamError {
                        kind: UpstreamErrorKind::ResponseTimeout,
                        delivery: Delivery::MaybeSent,
                    });
                }
            }
        };
        let received_at = Instant::now();
        let (parts, body) = response.into_parts();
        if parts.headers.keys().any(has_quotation_mark) {
            return Err(UpstreamError {
                kind: UpstreamErrorKind::InvalidHead(
                    const { &text!("invalid header name", "响应头名称无效") },
                ),
                delivery: Delivery::MaybeSent,
            });
        }
        let headers = Headers::from_map(&parts.headers);
        let content_length = response_content_length(&headers).map_err(|error| UpstreamError {
            kind: UpstreamErrorKind::Framing(error),
            delivery: Delivery::MaybeSent,
        })?;
        let http2_body = Http2UpstreamBody {
            body,
            _release_reader: release_reader,
            idle_deadline: Deadline::unset(),
            body_timeout: settings.body_timeout,
            framing_overhead: 0,
        };
        let ended = http2_body.is_ended();
        let body = UpstreamBody(if ended {
            UpstreamBodyKind::Ended
        } else {
            UpstreamBodyKind::Http2(Box::new(http2_body))
        });
        Ok(super::UpstreamResponse { status: parts.status, headers, content_length, body, received_at })
    }
}

fn build_request(
    settings: &Settings,
    request: &UpstreamRequest<'_>,
    progress: Rc<RequestProgress>,
) -> Result<Request<Http2RequestBody>, UpstreamError> {
    let malformed = || UpstreamError {
        kind: UpstreamErrorKind::Http2("the request target is not a URI".into()),
        delivery: Delivery::NotSent,
    };
    let path_and_query = uri::PathAndQuery::try_from(encode_target(&settings.path_prefix, request.target))
        .map_err(|_| malformed())?;
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTPS);
    parts.authority = settings.authority.parse().ok();
    parts.path_and_query = Some(path_and_query);
    let mut http_request =
        Request::new(Http2RequestBody { content_length: request.body_length.content_length(), progress });
    *http_request.version_mut() = Version::HTTP_2;
    *http_request.method_mut() = request.method.clone();
    *http_request.uri_mut() = Uri::from_parts(parts).map_err(|_| malformed())?;
    for header in request.headers.forwarded_to_upstream() {
        let (name, value) = (HeaderName::from_bytes(header.name), HeaderValue::from_bytes(header.value));
        if let (Ok(name), Ok(value)) = (name, value) {
            http_request.headers_mut().append(name, value);
        }
    }
    Ok(http_request)
}

/// Concatenates a target for the http crate. Encodes three characters that are invalid in a query but that HTTP/1
/// transports.
fn encode_target(path_prefix: &str, target: &[&str]) -> String {
    let target = path_prefix.to_owned() + &target.concat();
    match memchr::memchr3(b'"', b'<', b'>', target.as_bytes()) {
        None => target,
        Some(_) => target.replace('"', "%22").replace('<', "%3C").replace('>', "%3E"),
    }
}

/// A response body.
pub(super) struct Http2UpstreamBody {
    body: Incoming,
    _release_reader: ReleaseReader,
    idle_deadline: Deadline,
    body_timeout: Duration,
    /// Bytes of framing so far.
    framing_overhead: u64,
}

impl Http2UpstreamBody {
    /// Polls for the next chunk; `None` at the end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        let fail = |kind| Poll::Ready(Some(Err(UpstreamError { kind, delivery: Delivery::MaybeSent })));
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                ready!(self.idle_deadline.poll_stalled(cx, self.body_timeout));
                return fail(UpstreamErrorKind::BodyTimeout);
            };
            self.idle_deadline.clear();
            match frame {
                None if self.body.is_end_stream() => return Poll::Ready(None),
                // hyper reports a stream reset with NO_ERROR as the end of the body.
                None => return fail(UpstreamErrorKind::Truncated),
                Some(Err(error)) => return fail(UpstreamErrorKind::Http2(describe(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.framing_overhead += FRAME_HEADER_BYTES;
                        return Poll::Ready(Some(Ok(copy_if_small(data))));
                    }
                }
            }
        }
    }

    /// Bytes of frame headers received so far, without padding.
    pub(super) fn framing_overhead(&self) -> u64 {
        self.framing_overhead
    }

    pub(super) fn is_ended(&self) -> bool {
        self.body.is_end_stream()
    }
}
