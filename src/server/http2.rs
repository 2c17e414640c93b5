//! HTTP/2 towards clients: hyper speaks it; here are our bounds, and the way from its types to ours and back.

mod handshake;
mod heads;
mod link;
mod staged;
mod stream;
mod streams;
mod upload;

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
use http::{HeaderMap, Method, Response, Uri, Version, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncReadExt, sync::watch, time::timeout};

use self::{
    link::{Busy, Link, Refused, Turn},
    stream::ClientStream,
    streams::Streams,
    upload::StreamUpload,
};
use super::{LAST_CALL, MAX_HEAD, Server, house::Seat, last_call};
use crate::{
    deadline::Deadline,
    fields::{Fields, is_quoted},
    framing::MIN_SLICE_BYTES,
    io::Stream,
    proxy::{Boxed, Broken, Proxy, Reply, ReplyBody, Request, RequestTarget},
    upload::Body,
};

/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 256;
/// What a client may send ahead on one stream and on all of a connection: beside this no bound holds what nobody reads yet.
const STREAM_WINDOW: u32 = 64 * 1024;
/// See [`STREAM_WINDOW`].
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Largest frame that is taken: what every client may send.
const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// Longest piece of an answer that is handed over at once: what a frame holds by default. The next one is asked for when
/// this one is gone, and that is all that shows whether the client takes anything.
const PIECE: usize = 16 * 1024;

/// Serves one connection to its end. `first` is what was read of it already.
pub(super) async fn serve(
    mut stream: Stream,
    mut first: BytesMut,
    peer: Option<IpAddr>,
    server: &Arc<Server>,
    seat: Arc<Seat>,
    proxy: &Rc<Proxy>,
) {
    let (timeouts, mut stopping) = (server.timeouts, server.stopping.clone());
    let stop_seen = stopping.clone();
    let link = Link::new(seat.clone());
    if first.is_empty() {
        // Until its first bytes are here a connection is idle; hyper would wait for them when it is to stop.
        let begins = tokio::select! {
            () = last_call(&mut stopping) => return,
            () = seat.asked() => return,
            begins = timeout(timeouts.idle, stream.read_buf(&mut first)) => begins,
        };
        if !matches!(begins, Ok(Ok(read)) if read > 0) {
            return;
        }
    }
    let mut client = ClientStream::new(stream, first, link.clone(), timeouts);
    let begins = tokio::select! {
        begins = client.begin() => begins,
        _ = stopping.wait_for(|stop| *stop) => Ok(()),
        () = seat.asked() => Ok(()),
    };
    if begins.is_err() {
        return;
    }
    let service = service_fn(|request| {
        // Of what a client sends before it hears that this is the end, nothing goes to the upstream.
        let late = stop_seen.has_changed().unwrap_or(true) && !link.is_fresh() || link.is_revoked();
        // Each stream is a task of its own.
        answer(request, peer, late, &link, server, proxy)
    });
    let connection = http2::Builder::new(Streams::new(timeouts, link.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .max_frame_size(MAX_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(timeouts.idle)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        outcome = connection.as_mut() => Some(outcome),
        () = farewell(&mut stopping, &link) => None,
        () = seat.asked() => None,
        () = link.spent() => None,
    };
    let outcome = match ended {
        Some(outcome) => outcome,
        None => {
            connection.as_mut().graceful_shutdown();
            link.set_ending();
            if seat.is_cut() {
                // The client is told so if it listens; nothing waits for it.
                let told = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx).is_ready()));
                told.await;
                return;
            }
            if link.is_spent() {
                let _ = timeout(LAST_CALL, connection).await;
                return;
            }
            // hyper waits for the client's word that it has heard, and a client may say nothing for as long as it likes.
            tokio::select! {
                outcome = connection => outcome,
                () = link.deserted(LAST_CALL) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// Passes when a connection is to be told that the server has stopped. One that has just come gets a moment for its first
/// request: once told, a client makes none.
async fn farewell(stopping: &mut watch::Receiver<bool>, link: &Link) {
    let _ = stopping.wait_for(|stop| *stop).await;
    // Whatever the client sends wakes this task.
    let begun = poll_fn(|_| if link.is_fresh() { Poll::Pending } else { Poll::Ready(()) });
    let _ = timeout(LAST_CALL, begun).await;
}

/// A response as hyper takes it, or the refusal of its stream.
type Answered = Result<Response<StreamBody>, h2::Error>;

/// A request that is being answered.
enum Answering {
    Refused(Option<Box<Answered>>),
    Going(Pin<Box<dyn Future<Output = Answered>>>),
}

impl Future for Answering {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answered> {
        let mut answered = match &mut *self {
            Self::Refused(answered) => {
                answered.take().map_or(Err(h2::Reason::INTERNAL_ERROR.into()), |answered| *answered)
            }
            Self::Going(going) => ready!(going.as_mut().poll(cx)),
        };
        if let Ok(response) = &mut answered {
            let turn = Turn::of_this_stream();
            // The head comes first; what follows waits for the client to take it.
            turn.offer();
            response.body_mut().turn = turn;
        }
        Poll::Ready(answered)
    }
}

/// Has one request answered.
///
/// As long as no request on the connection was authorized it is judged at once: what is refused then leaves nothing behind
/// but its response, and more than a few that wait for the client are refused as streams.
fn answer(
    request: http::Request<Incoming>,
    peer: Option<IpAddr>,
    late: bool,
    link: &Link,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
) -> Answering {
    let (request, body) = taken(request, peer, late, link);
    let going = handle(request, body, link.clone(), server.clone(), proxy.clone());
    let mut going = Box::pin(going);
    if !link.is_authorized()
        && let Poll::Ready(answered) = going.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    {
        return Answering::Refused(Some(Box::new(answered)));
    }
    Answering::Going(going)
}

/// A request and its body as the proxy takes them. Their text is copied, and what hyper made of them goes: in a function of
/// its own, for a coroutine would keep the room for it to its end.
fn taken(
    request: http::Request<Incoming>,
    peer: Option<IpAddr>,
    late: bool,
    link: &Link,
) -> (Box<Request>, Body) {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let request = Request {
        target: RequestTarget::new(target),
        version: Version::HTTP_2,
        absolute: None,
        flaw: flaw(&parts.uri, &parts.headers),
        fields: Fields::of_map(&parts.headers),
        method: parts.method,
        peer,
        late,
        authorized: Cell::new(false),
        waits: Cell::new(false),
    };
    (Box::new(request), StreamUpload::body(body, link))
}

/// What the proxy says to a request.
async fn handle(
    request: Box<Request>,
    body: Body,
    link: Link,
    server: Arc<Server>,
    proxy: Rc<Proxy>,
) -> Answered {
    // A client that is no longer accepted cannot keep its connection open by requests.
    let busy = (!link.is_revoked()).then(|| link.busy());
    let (peer, is_head) = (request.peer, request.method == Method::HEAD);
    let mut deadline = Deadline::idle();
    let reply = {
        let mut handling = pin!(proxy.handle::<Boxed>(&request, body, &mut deadline));
        let reply = poll_fn(|cx| {
            let polled = handling.as_mut().poll(cx);
            if request.authorized.get() && !link.is_authorized() {
                link.seat().authorize();
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
    mut reply: Reply,
    is_head: bool,
    busy: Option<Busy>,
    link: Link,
    wrong_key_delay: impl FnOnce() -> Duration,
) -> ControlFlow<Answered, Pin<Box<dyn Future<Output = Answered>>>> {
    let mut refused = None;
    if !link.is_authorized() {
        reply.end_record(is_head);
        refused = link.refused();
        if refused.is_none() {
            link.reset_one();
            return ControlFlow::Break(Err(h2::Reason::REFUSED_STREAM.into()));
        }
    }
    let delay = if reply.wrong_key { wrong_key_delay() } else { Duration::ZERO };
    if delay.is_zero() {
        return ControlFlow::Break(Ok(respond(reply, is_head, busy, refused)));
    }
    drop(busy);
    ControlFlow::Continue(Box::pin(async move {
        link.hold_back(delay).await;
        Ok(respond(reply, is_head, None, refused))
    }))
}

/// A reply as hyper takes it.
fn respond(
    reply: Reply,
    is_head: bool,
    busy: Option<Busy>,
    refused: Option<Refused>,
) -> Response<StreamBody> {
    let Reply { status, lines, length, body, .. } = reply;
    let mut headers = lines.to_map();
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let mut response = Response::new(StreamBody {
        body,
        over: is_head,
        rest: Bytes::new(),
        broken: false,
        turn: Arc::default(),
        _busy: busy,
        _refused: refused,
    });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// What hyper lets through and should not (RFC 9113 §8.2.1, §8.3.1).
fn flaw(uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    if headers.keys().any(is_quoted) {
        return Some("a header's name holds a quotation mark");
    }
    if !matches!(uri.scheme_str(), None | Some("http" | "https")) {
        return Some("the scheme is neither http nor https");
    }
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    has_user.then_some("the authority names a user")
}

/// An answer's body as hyper wants it.
struct StreamBody {
    body: ReplyBody,
    /// There is none, or no more of it.
    over: bool,
    /// What is left of a piece that was too long.
    rest: Bytes,
    /// It has broken off behind that.
    broken: bool,
    turn: Arc<Turn>,
    /// The connection is in use until the body has been handed over.
    _busy: Option<Busy>,
    _refused: Option<Refused>,
}

impl StreamBody {
    /// A piece with the small ones behind it that are here already: each frame costs far more memory than one byte.
    fn gathered(&mut self, first: Bytes, cx: &mut Context<'_>) -> Bytes {
        let mut gathered = BytesMut::new();
        while first.len() + gathered.len() < MIN_SLICE_BYTES && !self.body.is_ended() {
            match self.body.poll_piece(cx) {
                Poll::Ready(Some(Ok(next))) => gathered.extend_from_slice(&next),
                Poll::Ready(Some(Err(Broken))) => {
                    self.broken = true;
                    break;
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if gathered.is_empty() { first } else { [&first[..], &gathered].concat().into() }
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.rest.is_empty() {
            if self.broken {
                return Poll::Ready(Some(Err(Broken)));
            }
            let polled = self.body.poll_piece(cx);
            if polled.is_pending() {
                // It is the upstream that has to go on, and no longer the client.
                self.turn.owe();
            }
            match ready!(polled) {
                Some(Ok(piece)) => self.rest = self.gathered(piece, cx),
                Some(Err(broken)) => return Poll::Ready(Some(Err(broken))),
                None => {
                    self.over = true;
                    return Poll::Ready(None);
                }
            }
        }
        self.turn.offer();
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.rest.is_empty() && self.body.is_ended() && !self.broken)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
