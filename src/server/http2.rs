//! HTTP/2 towards clients: hyper speaks it; here are our bounds, and the way from its types to ours and back.

mod link;
mod stream;
mod streams;

use std::{
    future::poll_fn,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, Uri, Version, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncReadExt, runtime::Handle, sync::watch, time::timeout};

use self::{
    link::{Busy, Link, Turn},
    stream::ClientStream,
    streams::Streams,
};
use super::{LAST_CALL, LINGER, LINGER_BYTES, MAX_HEAD, Timeouts, house::Seat, last_call};
use crate::{
    deadline::Deadline,
    fields::{Fields, is_quoted},
    io::Stream,
    proxy::{Broken, Proxy, Reply, ReplyBody, Request, RequestTarget},
    upload::{Body, Cut, Source},
};

/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 256;
/// What a client may send ahead on one stream and on all of a connection: beside this no bound holds what nobody reads yet.
const STREAM_WINDOW: u32 = 64 * 1024;
/// See [`STREAM_WINDOW`].
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Longest piece of an answer that is handed over at once: what a frame holds by default. The next one is asked for when
/// this one is gone, and that is all that shows whether the client takes anything.
const PIECE: usize = 16 * 1024;

/// Serves one connection to its end. `first` is what was read of it already.
pub(super) async fn serve(
    mut stream: Stream,
    mut first: BytesMut,
    peer: Option<IpAddr>,
    timeouts: Timeouts,
    mut stopping: watch::Receiver<bool>,
    seat: Arc<Seat>,
    proxy: &Rc<Proxy>,
) {
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
    let client = ClientStream::new(stream, first, link.clone(), timeouts);
    let service = service_fn(|request| {
        // Each stream is a task of its own.
        let (proxy, link) = (proxy.clone(), link.clone());
        // Of what a client sends before it hears that this is the end, nothing goes to the upstream.
        let late = stop_seen.has_changed().unwrap_or(true) && !link.is_fresh();
        async move { Ok::<_, std::convert::Infallible>(answer(request, peer, late, &link, &proxy).await) }
    });
    let connection = http2::Builder::new(Streams(timeouts.stall))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(timeouts.idle)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        outcome = connection.as_mut() => Some(outcome),
        () = farewell(&mut stopping, &link) => None,
        () = seat.asked() => None,
    };
    let outcome = match ended {
        Some(outcome) => outcome,
        None => {
            connection.as_mut().graceful_shutdown();
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

/// Has one request answered.
async fn answer(
    request: http::Request<Incoming>,
    peer: Option<IpAddr>,
    late: bool,
    link: &Link,
    proxy: &Proxy,
) -> Response<StreamBody> {
    let busy = link.busy();
    let (parts, body) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let request = Request {
        method: parts.method,
        version: Version::HTTP_2,
        target: RequestTarget::new(target),
        absolute: None,
        flaw: flaw(&parts.uri, &parts.headers),
        fields: Fields::of_map(&parts.headers),
        peer,
        late,
    };
    let Reply { status, lines, length, body, .. } =
        proxy.handle(&request, StreamUpload::body(body), &mut Deadline::idle()).await;
    let turn = Turn::of_this_stream();
    // The head comes first; what follows waits for the client to take it.
    turn.offer();
    let mut headers = lines.to_map();
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let mut response =
        Response::new(StreamBody { body, over: is_head, rest: Bytes::new(), turn, _busy: busy });
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

/// A request's body as hyper reads it.
struct StreamUpload(Option<Incoming>);

impl StreamUpload {
    fn body(incoming: Incoming) -> Body {
        use http_body::Body as _;
        if incoming.is_end_stream() { Body::None } else { Body::Streamed(Box::new(Self(Some(incoming)))) }
    }
}

impl Source for StreamUpload {
    fn declared(&self) -> Option<u64> {
        use http_body::Body as _;
        self.0.as_ref().and_then(|body| body.size_hint().exact())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>> {
        use http_body::Body as _;
        loop {
            let Some(body) = &mut self.0 else { return Poll::Ready(Ok(None)) };
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                // Trailers are hop-by-hop here: nobody sends them to WeCom.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Ok(Some(data))),
                    _ => {}
                },
                Some(Err(_)) => return Poll::Ready(Err(Cut)),
                None if body.is_end_stream() => self.0 = None,
                // hyper takes a stream that its client resets with NO_ERROR for a body that ends.
                None => return Poll::Ready(Err(Cut)),
            }
        }
    }

    fn is_ended(&self) -> bool {
        use http_body::Body as _;
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }
}

impl Drop for StreamUpload {
    /// The rest of a body that nobody reads is taken and thrown away: clients take a reset stream for a failure even where
    /// the answer is there.
    fn drop(&mut self) {
        if !self.is_ended()
            && let (Some(body), Ok(runtime)) = (self.0.take(), Handle::try_current())
        {
            runtime.spawn(throw_away(body));
        }
    }
}

/// Takes what still comes of a body, within bounds.
async fn throw_away(mut body: Incoming) {
    let all = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, |data| data.len() as u64);
            if taken > LINGER_BYTES {
                return;
            }
        }
    };
    let _ = timeout(LINGER, all).await;
}

/// An answer's body as hyper wants it.
struct StreamBody {
    body: ReplyBody,
    /// There is none, or no more of it.
    over: bool,
    /// What is left of a piece that was too long.
    rest: Bytes,
    turn: Arc<Turn>,
    /// The connection is in use until the body has been handed over.
    _busy: Busy,
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
            let polled = self.body.poll_piece(cx);
            if polled.is_pending() {
                // It is the upstream that has to go on, and no longer the client.
                self.turn.owe();
            }
            match ready!(polled) {
                Some(Ok(piece)) => self.rest = piece,
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
        self.over || (self.rest.is_empty() && self.body.is_ended())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
