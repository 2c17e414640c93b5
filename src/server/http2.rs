//! HTTP/2 towards clients: hyper speaks it; here are our bounds, and the way from its types to ours and back.

mod activity;
mod executor;
mod frame_tracker;
mod handshake;
mod incoming_body;
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
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncReadExt, sync::watch, time::timeout};

use self::{
    activity::{Activity, RefusedRequestGuard, RequestGuard, WriteProgress},
    executor::StreamExecutor,
    incoming_body::Http2IncomingBody,
    transport::Http2Transport,
};
use super::{
    MAX_HEAD_BYTES, SHUTDOWN_GRACE_TIMEOUT, Server, connection_limit::ConnectionPermit,
    shutdown_grace_elapsed,
};
use crate::{
    http1::{
        framing::MIN_SLICE_BYTES,
        headers::{Headers, has_quotation_mark},
        io::Stream,
    },
    proxy::{Boxed, Proxy, Request, RequestTarget, Response, ResponseAborted, ResponseBody},
    request_body::RequestBody,
    time::deadline::Deadline,
};

/// Streams that one connection may have open.
const MAX_CONCURRENT_STREAMS: u32 = 256;
/// What a client may send ahead on one stream and on all of a connection: beside this no bound holds what nobody reads yet.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// See [`STREAM_WINDOW`].
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// Largest frame that is taken: what every client may send.
const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// Longest piece of an answer that is handed over at once: what a frame holds by default. The next one is asked for when
/// this one is gone, and that is all that shows whether the client takes anything.
const MAX_CHUNK_BYTES: usize = 16 * 1024;

/// Serves one connection to its end. `first` is what was read of it already.
pub(super) async fn serve(
    mut stream: Stream,
    mut first: BytesMut,
    peer: Option<IpAddr>,
    server: &Arc<Server>,
    seat: Arc<ConnectionPermit>,
    proxy: &Rc<Proxy>,
) {
    let (timeouts, mut stopping) = (server.timeouts, server.stopping.clone());
    let stop_seen = stopping.clone();
    let link = Activity::new(seat.clone());
    if first.is_empty() {
        // Until its first bytes are here a connection is idle; hyper would wait for them when it is to stop.
        let begins = tokio::select! {
            () = shutdown_grace_elapsed(&mut stopping) => return,
            () = seat.close_requested() => return,
            begins = timeout(timeouts.idle, stream.read_buf(&mut first)) => begins,
        };
        if !matches!(begins, Ok(Ok(read)) if read > 0) {
            return;
        }
    }
    let mut client = Http2Transport::new(stream, first, link.clone(), timeouts);
    let begins = tokio::select! {
        begins = client.begin() => begins,
        _ = stopping.wait_for(|stop| *stop) => Ok(()),
        () = seat.close_requested() => Ok(()),
    };
    if begins.is_err() {
        return;
    }
    let service = service_fn(|request| {
        // Of what a client sends before it hears that this is the end, nothing goes to the upstream.
        let late = stop_seen.has_changed().unwrap_or(true) && !link.is_new() || link.is_revoked();
        // Each stream is a task of its own.
        start_request(request, peer, late, &link, server, proxy)
    });
    let connection = http2::Builder::new(StreamExecutor::new(timeouts, link.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_frame_size(MAX_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(timeouts.idle)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        outcome = connection.as_mut() => Some(outcome),
        () = goaway_due(&mut stopping, &link) => None,
        () = seat.close_requested() => None,
        () = link.budget_exhausted() => None,
    };
    let outcome = match ended {
        Some(outcome) => outcome,
        None => {
            connection.as_mut().graceful_shutdown();
            link.set_ending();
            if seat.is_abort_requested() {
                // The client is told so if it listens; nothing waits for it.
                let told = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx).is_ready()));
                told.await;
                return;
            }
            if link.is_budget_exhausted() {
                let _ = timeout(SHUTDOWN_GRACE_TIMEOUT, connection).await;
                return;
            }
            // hyper waits for the client's word that it has heard, and a client may say nothing for as long as it likes.
            tokio::select! {
                outcome = connection => outcome,
                () = link.wait_idle(SHUTDOWN_GRACE_TIMEOUT) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// Passes when a connection is to be told that the server has stopped. One that has just come gets a moment for its first
/// request: once told, a client makes none.
async fn goaway_due(stopping: &mut watch::Receiver<bool>, link: &Activity) {
    let _ = stopping.wait_for(|stop| *stop).await;
    // Whatever the client sends wakes this task.
    let begun = poll_fn(|_| if link.is_new() { Poll::Pending } else { Poll::Ready(()) });
    let _ = timeout(SHUTDOWN_GRACE_TIMEOUT, begun).await;
}

/// A response as hyper takes it, or the refusal of its stream.
type StreamResponse = Result<http::Response<Http2ResponseBody>, h2::Error>;

/// A request that is being answered.
enum ResponseFuture {
    Ready(Option<Box<StreamResponse>>),
    Pending(Pin<Box<dyn Future<Output = StreamResponse>>>),
}

impl Future for ResponseFuture {
    type Output = StreamResponse;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<StreamResponse> {
        let mut answered = match &mut *self {
            Self::Ready(answered) => {
                answered.take().map_or(Err(h2::Reason::INTERNAL_ERROR.into()), |answered| *answered)
            }
            Self::Pending(going) => ready!(going.as_mut().poll(cx)),
        };
        if let Ok(response) = &mut answered {
            let turn = WriteProgress::current();
            // The head comes first; what follows waits for the client to take it.
            turn.data_queued();
            response.body_mut().progress = turn;
        }
        Poll::Ready(answered)
    }
}

/// Has one request answered.
///
/// As long as no request on the connection was authorized it is judged at once: what is refused then leaves nothing behind
/// but its response, and more than a few that wait for the client are refused as streams.
fn start_request(
    request: http::Request<Incoming>,
    peer: Option<IpAddr>,
    late: bool,
    link: &Activity,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
) -> ResponseFuture {
    let (request, body) = convert_request(request, peer, late, link);
    let going = handle_request(request, body, link.clone(), server.clone(), proxy.clone());
    let mut going = Box::pin(going);
    if !link.is_authorized()
        && let Poll::Ready(answered) = going.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    {
        return ResponseFuture::Ready(Some(Box::new(answered)));
    }
    ResponseFuture::Pending(going)
}

/// A request and its body as the proxy takes them. Their text is copied, and what hyper made of them goes: in a function of
/// its own, for a coroutine would keep the room for it to its end.
fn convert_request(
    request: http::Request<Incoming>,
    peer: Option<IpAddr>,
    late: bool,
    link: &Activity,
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
        draining: late,
        authorized: Cell::new(false),
        waiting: Cell::new(false),
    };
    (Box::new(request), Http2IncomingBody::from_incoming(body, link))
}

/// What the proxy says to a request.
async fn handle_request(
    request: Box<Request>,
    body: RequestBody,
    link: Activity,
    server: Arc<Server>,
    proxy: Rc<Proxy>,
) -> StreamResponse {
    // A client that is no longer accepted cannot keep its connection open by requests.
    let busy = (!link.is_revoked()).then(|| link.request_guard());
    let (peer, is_head) = (request.peer, request.method == Method::HEAD);
    let mut deadline = Deadline::unset();
    let reply = {
        let mut handling = pin!(proxy.handle::<Boxed>(&request, body, &mut deadline));
        let reply = poll_fn(|cx| {
            let polled = handling.as_mut().poll(cx);
            if request.authorized.get() && !link.is_authorized() {
                link.permit().mark_authorized();
            }
            polled
        });
        reply.await
    };
    drop(request);
    match conclude(reply, is_head, busy, link, || server.wrong_key_delay(peer)) {
        ControlFlow::Break(answered) => answered,
        ControlFlow::Continue(held_back) => held_back.await,
    }
}

/// What becomes of a reply: the response, or the future of one that is held back. In a function of its own, for a coroutine
/// would keep the memory for the reply beside a request that waits.
fn conclude(
    mut reply: Response,
    is_head: bool,
    busy: Option<RequestGuard>,
    link: Activity,
    wrong_key_delay: impl FnOnce() -> Duration,
) -> ControlFlow<StreamResponse, Pin<Box<dyn Future<Output = StreamResponse>>>> {
    let mut refused = None;
    if !link.is_authorized() {
        reply.finish_context(is_head);
        refused = link.try_refused_request_guard();
        if refused.is_none() {
            link.record_stream_reset();
            return ControlFlow::Break(Err(h2::Reason::REFUSED_STREAM.into()));
        }
    }
    let delay = if reply.wrong_key { wrong_key_delay() } else { Duration::ZERO };
    if delay.is_zero() {
        return ControlFlow::Break(Ok(build_response(reply, is_head, busy, refused)));
    }
    drop(busy);
    ControlFlow::Continue(Box::pin(async move {
        link.delay_wrong_key(delay).await;
        Ok(build_response(reply, is_head, None, refused))
    }))
}

/// A reply as hyper takes it.
fn build_response(
    reply: Response,
    is_head: bool,
    busy: Option<RequestGuard>,
    refused: Option<RefusedRequestGuard>,
) -> http::Response<Http2ResponseBody> {
    let Response { status, headers: lines, content_length: length, body, .. } = reply;
    let mut headers = lines.to_header_map();
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let mut response = http::Response::new(Http2ResponseBody {
        body,
        ended: is_head,
        pending: Bytes::new(),
        failed: false,
        progress: Arc::default(),
        _request_guard: busy,
        _refused_guard: refused,
    });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// What hyper lets through and should not (RFC 9113 §8.2.1, §8.3.1).
fn malformed_reason(uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    if headers.keys().any(has_quotation_mark) {
        return Some("a header's name holds a quotation mark");
    }
    if !matches!(uri.scheme_str(), None | Some("http" | "https")) {
        return Some("the scheme is neither http nor https");
    }
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    has_user.then_some("the authority names a user")
}

/// An answer's body as hyper wants it.
struct Http2ResponseBody {
    body: ResponseBody,
    /// There is none, or no more of it.
    ended: bool,
    /// What is left of a piece that was too long.
    pending: Bytes,
    /// It has broken off behind that.
    failed: bool,
    progress: Arc<WriteProgress>,
    /// The connection is in use until the body has been handed over.
    _request_guard: Option<RequestGuard>,
    _refused_guard: Option<RefusedRequestGuard>,
}

impl Http2ResponseBody {
    /// A piece with the small ones behind it that are here already: each frame costs far more memory than one byte.
    fn coalesce_chunks(&mut self, first: Bytes, cx: &mut Context<'_>) -> Bytes {
        let mut gathered = BytesMut::new();
        while first.len() + gathered.len() < MIN_SLICE_BYTES && !self.body.is_ended() {
            match self.body.poll_chunk(cx) {
                Poll::Ready(Some(Ok(next))) => gathered.extend_from_slice(&next),
                Poll::Ready(Some(Err(ResponseAborted))) => {
                    self.failed = true;
                    break;
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if gathered.is_empty() { first } else { [&first[..], &gathered].concat().into() }
    }
}

impl http_body::Body for Http2ResponseBody {
    type Data = Bytes;
    type Error = ResponseAborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.pending.is_empty() {
            if self.failed {
                return Poll::Ready(Some(Err(ResponseAborted)));
            }
            let polled = self.body.poll_chunk(cx);
            if polled.is_pending() {
                // It is the upstream that has to go on, and no longer the client.
                self.progress.drained();
            }
            match ready!(polled) {
                Some(Ok(piece)) => self.pending = self.coalesce_chunks(piece, cx),
                Some(Err(broken)) => return Poll::Ready(Some(Err(broken))),
                None => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
            }
        }
        self.progress.data_queued();
        let length = self.pending.len().min(MAX_CHUNK_BYTES);
        let piece = self.pending.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.pending.is_empty() && self.body.is_ended() && !self.failed)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
