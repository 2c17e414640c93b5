//! Answers of the admin listener.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// An answer's body.
pub(super) enum AdminBody {
    /// All of it.
    Full(Bytes),
    /// Made when the one before has gone.
    Pages(Box<dyn Iterator<Item = String> + Send>),
    /// Whatever comes, when it comes.
    Stream(mpsc::Receiver<Bytes>),
}

impl http_body::Body for AdminBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = match &mut *self {
            Self::Full(whole) => Poll::Ready((!whole.is_empty()).then(|| std::mem::take(whole))),
            Self::Pages(pages) => Poll::Ready(pages.next().map(Bytes::from)),
            Self::Stream(pieces) => pieces.poll_recv(cx),
        };
        polled.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(whole) if whole.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(whole) => SizeHint::with_exact(whole.len() as u64),
            Self::Pages(_) | Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer of this type.
pub(super) fn with_content_type(content_type: &'static str, body: AdminBody) -> Response<AdminBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn json_response(status: StatusCode, body: &Value) -> Response<AdminBody> {
    let mut response =
        with_content_type("application/json", AdminBody::Full(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response
}

/// What is wrong, in words.
pub(super) fn error_response(status: StatusCode, words: &str) -> Response<AdminBody> {
    json_response(status, &json!({ "error": words }))
}

/// Another method is answered here.
pub(super) fn method_not_allowed(methods: &'static str) -> Response<AdminBody> {
    let words = if methods == "POST" { "only POST is answered here" } else { "only GET is answered here" };
    let mut response = error_response(StatusCode::METHOD_NOT_ALLOWED, words);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}

/// The key is missing, or what is `shown` is another.
pub(super) fn unauthenticated(shown: bool) -> Response<AdminBody> {
    let words = match shown {
        true => {
            "this is not the listener's key, of which admin.key_sha256 is the hash: send that as \"Authorization: Bearer \
             KEY\" or by HTTP Basic as the password"
        }
        false => {
            "this listener has a key: send it as \"Authorization: Bearer KEY\" or by HTTP Basic as the password"
        }
    };
    let mut response = error_response(StatusCode::UNAUTHORIZED, words);
    // A line each: Chromium sees no other way behind the first one of a line.
    for way in ["Basic realm=\"wecom-proxy admin\", charset=\"UTF-8\"", "Bearer realm=\"wecom-proxy admin\""]
    {
        response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(way));
    }
    response
}
