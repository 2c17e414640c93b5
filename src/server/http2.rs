//! HTTP/2 towards clients: hyper implements the protocol; this module adds our bounds and converts requests and
//! responses.

mod activity;
mod early_settings;
mod executor;
mod frame_tracker;
mod incoming_body;
mod response_body;
mod staged_input;
mod transport;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::IpAddr,
    ops::ControlFlow,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Uri, Version, header};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncReadExt, sync::watch, time::timeout};

use self::{
    activity::{Activity, PendingRefusal, RequestGuard, WriteProgress},
    executor::StreamExecutor,
    incoming_body::Http2IncomingBody,
    response_body::Http2ResponseBody,
    transport::Http2Transport,
};
use super::{
    MAX_HEAD_BYTES, SHUTDOWN_GRACE_TIMEOUT, Server, Timeouts, connection_limit::ConnectionPermit,
    shutdown_grace_elapsed,
};
use crate::{
    http1::{
        headers::{Headers, has_quotation_mark},
        io::Stream,
    },
    proxy::{Boxed, Proxy, Request, RequestTarget, Response},
    request_body::RequestBody,
    time::deadline::Deadline,
};

/// Maximum number of concurrent streams per connection.
const MAX_CONCURRENT_STREAMS: u32 = 256;
/// Receive windows of a stream and of a connection: the only bound on request data that is not read yet.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// Maximum frame size: the minimum that RFC 9113 allows, which every client uses by default.
const MAX_FRAME_BYTES: u32 = 16 * 1024;

/// Serves one connection to its end. `received` holds the bytes that were read from it before.
pub(super) async fn serve(
    mut stream: Stream,
    mut received: BytesMut,
    peer: Option<IpAddr>,
    server: &Arc<Server>,
    permit: Arc<ConnectionPermit>,
    proxy: &Rc<Proxy>,
) {
    let (timeouts, mut stopping) = (server.timeouts, server.stopping.clone());
    let activity = Activity::new(permit.clone());
    if received.is_empty()
        && !read_first_bytes(&mut stream, &mut received, timeouts.idle, &mut stopping, &permit).await
    {
        return;
    }
    let mut transport = Http2Transport::new(stream, received, activity.clone(), timeouts);
    let waited = tokio::select! {
        waited = transport.wait_until_hyper_needed() => waited,
        _ = stopping.wait_for(|stop| *stop) => Ok(()),
        () = permit.close_requested() => Ok(()),
    };
    if waited.is_err() {
        return;
    }
    let service = service_fn(|request| {
        // After the stop, requests that arrive before the client has received GOAWAY do not reach the upstream,
        // except the first of a new connection.
        let draining = server.is_stopping() && !activity.is_new() || activity.is_revoked();
        // Each stream is a task of its own.
        start_request(request, peer, draining, &activity, server, proxy)
    });
    let connection = builder(timeouts, &activity).serve_connection(TokioIo::new(transport), service);
    let mut connection = pin!(connection);
    let result = match serve_until_goaway(connection.as_mut(), &mut stopping, &activity).await {
        Some(result) => Some(result),
        None => {
            connection.as_mut().graceful_shutdown();
            activity.set_graceful_shutdown();
            drain(connection, &activity).await
        }
    };
    if let Some(Err(error)) = result {
        tracing::debug!(%error, "HTTP/2 connection failed");
    }
}

/// Reads the first bytes of a connection; false if none arrive. Until then it is idle and needs no hyper, which would
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

/// hyper's settings for one connection.
fn builder(timeouts: Timeouts, activity: &Activity) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(StreamExecutor::new(timeouts, activity.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_frame_size(MAX_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(timeouts.idle);
    builder
}

/// Serves until the connection ends, whose result is returned, or until GOAWAY is due: `None`.
async fn serve_until_goaway(
    connection: Pin<&mut impl Future<Output = hyper::Result<()>>>,
    stopping: &mut watch::Receiver<bool>,
    activity: &Activity,
) -> Option<hyper::Result<()>> {
    tokio::select! {
        result = connection => Some(result),
        () = goaway_due(stopping, activity) => None,
        () = activity.permit().close_requested() => None,
        () = activity.budget_exhausted() => None,
    }
}

/// Serves a connection whose graceful shutdown has begun, until it ends or may be dropped: `None`.
async fn drain(
    mut connection: Pin<&mut impl Future<Output = hyper::Result<()>>>,
    activity: &Activity,
) -> Option<hyper::Result<()>> {
    if activity.permit().is_abort_requested() {
        // One poll sends GOAWAY if the client reads; nothing waits for it.
        poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx).is_ready())).await;
        return None;
    }
    if activity.is_budget_exhausted() {
        let _ = timeout(SHUTDOWN_GRACE_TIMEOUT, connection).await;
        return None;
    }
    // hyper waits for the client's acknowledgement of GOAWAY, without a time-out.
    tokio::select! {
        result = connection => Some(result),
        () = activity.wait_idle(SHUTDOWN_GRACE_TIMEOUT) => None,
    }
}

/// Waits until GOAWAY is due: the server has stopped, and a new connection has had [`SHUTDOWN_GRACE_TIMEOUT`] for its
/// first request, because a client opens no stream after GOAWAY.
async fn goaway_due(stopping: &mut watch::Receiver<bool>, activity: &Activity) {
    let _ = stopping.wait_for(|stop| *stop).await;
    // Any byte from the client wakes this task.
    let first_request = poll_fn(|_| if activity.is_new() { Poll::Pending } else { Poll::Ready(()) });
    let _ = timeout(SHUTDOWN_GRACE_TIMEOUT, first_request).await;
}

/// A response as hyper takes it, or the error that resets its stream.
type StreamResponse = Result<http::Response<Http2ResponseBody>, h2::Error>;

/// `Break` is a response; `Continue` is the future of one that is delayed because of a wrong key.
type MaybeDelayed = ControlFlow<StreamResponse, Pin<Box<dyn Future<Output = StreamResponse>>>>;

/// Future of the response to a request.
enum ResponseFuture {
    Ready(Option<Box<StreamResponse>>),
    Pending(Pin<Box<dyn Future<Output = StreamResponse>>>),
}

impl Future for ResponseFuture {
    type Output = StreamResponse;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<StreamResponse> {
        let mut response = match &mut *self {
            Self::Ready(response) => {
                response.take().map_or(Err(h2::Reason::INTERNAL_ERROR.into()), |response| *response)
            }
            Self::Pending(handling) => ready!(handling.as_mut().poll(cx)),
        };
        if let Ok(response) = &mut response {
            let progress = WriteProgress::current();
            // The head counts as the first chunk.
            progress.data_queued();
            response.body_mut().progress = progress;
        }
        Poll::Ready(response)
    }
}

/// Starts handling one request.
///
/// While no request on the connection was authorized, the request is polled once right here: most refusals are ready at
/// once, and their handling is freed. If too many responses already wait for the client, [`finish_request`] resets the
/// stream.
fn start_request(
    request: http::Request<Incoming>,
    peer: Option<IpAddr>,
    draining: bool,
    activity: &Activity,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
) -> ResponseFuture {
    let (request, body) = convert_request(request, peer, draining, activity);
    let handling = handle_request(request, body, activity.clone(), server.clone(), proxy.clone());
    let mut handling = Box::pin(handling);
    if !activity.is_authorized()
        && let Poll::Ready(response) = handling.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    {
        return ResponseFuture::Ready(Some(Box::new(response)));
    }
    ResponseFuture::Pending(handling)
}

/// Converts a request and its body to the proxy's types. Text is copied, and hyper's parts are freed. A separate
/// function, because an async function would keep their memory to its end.
fn convert_request(
    request: http::Request<Incoming>,
    peer: Option<IpAddr>,
    draining: bool,
    activity: &Activity,
) -> (Box<Request>, RequestBody) {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let request = Request {
        target: RequestTarget::new(target),
        version: Version::HTTP_2,
        absolute_form: None,
        malformed: malformed_reason(&parts.uri, &parts.headers),
        headers: Headers::from_map(&parts.headers),
        method: parts.method,
        peer,
        draining,
        authorized: Cell::new(false),
        waiting: Cell::new(false),
    };
    (Box::new(request), Http2IncomingBody::from_incoming(body, activity))
}

/// Handles one request.
async fn handle_request(
    request: Box<Request>,
    body: RequestBody,
    activity: Activity,
    server: Arc<Server>,
    proxy: Rc<Proxy>,
) -> StreamResponse {
    // Requests of a client that is no longer accepted do not keep the connection open.
    let request_guard = (!activity.is_revoked()).then(|| activity.request_guard());
    let (peer, is_head_request) = (request.peer, request.method == Method::HEAD);
    let mut deadline = Deadline::unset();
    let response = {
        let mut handling = pin!(proxy.handle::<Boxed>(&request, body, &mut deadline));
        let response = poll_fn(|cx| {
            let polled = handling.as_mut().poll(cx);
            if request.authorized.get() && !activity.is_authorized() {
                activity.permit().mark_authorized();
            }
            polled
        });
        response.await
    };
    drop(request);
    match finish_request(response, is_head_request, request_guard, activity, || server.count_wrong_key(peer))
    {
        ControlFlow::Break(response) => response,
        ControlFlow::Continue(delayed) => delayed.await,
    }
}

/// Builds the response, or returns the future of one that is delayed. A separate function, because an async function
/// would keep the memory of the response beside a request that waits.
fn finish_request(
    mut response: Response,
    is_head_request: bool,
    request_guard: Option<RequestGuard>,
    activity: Activity,
    count_wrong_key: impl FnOnce() -> Duration,
) -> MaybeDelayed {
    let mut pending_refusal = None;
    if !activity.is_authorized() {
        // The request's context and its access log line end here: a client that does not read holds no memory.
        response.finish_context(is_head_request);
        pending_refusal = activity.try_begin_refusal();
        if pending_refusal.is_none() {
            activity.record_stream_reset();
            return ControlFlow::Break(Err(h2::Reason::REFUSED_STREAM.into()));
        }
    }
    let delay = if response.wrong_key { count_wrong_key() } else { Duration::ZERO };
    if delay.is_zero() {
        return ControlFlow::Break(Ok(build_response(
            response,
            is_head_request,
            request_guard,
            pending_refusal,
        )));
    }
    drop(request_guard);
    ControlFlow::Continue(Box::pin(async move {
        activity.delay_wrong_key(delay).await;
        Ok(build_response(response, is_head_request, None, pending_refusal))
    }))
}

/// Converts a response to hyper's types.
fn build_response(
    response: Response,
    is_head_request: bool,
    request_guard: Option<RequestGuard>,
    pending_refusal: Option<PendingRefusal>,
) -> http::Response<Http2ResponseBody> {
    let Response { status, headers: header_block, content_length: length, body, .. } = response;
    let mut headers = header_block.to_header_map();
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let mut response = http::Response::new(Http2ResponseBody {
        body,
        ended: is_head_request,
        pending: Bytes::new(),
        failed: false,
        progress: Arc::default(),
        _request_guard: request_guard,
        _pending_refusal: pending_refusal,
    });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// What hyper accepts and must be rejected (RFC 9113 §8.2.1, §8.3.1).
fn malformed_reason(uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    if headers.keys().any(has_quotation_mark) {
        return Some("invalid header name: contains a quotation mark");
    }
    if !matches!(uri.scheme_str(), None | Some("http" | "https")) {
        return Some("unsupported :scheme, must be http or https");
    }
    let has_userinfo = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    has_userinfo.then_some(":authority contains userinfo")
}
