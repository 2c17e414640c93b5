//! Responses of the admin listener.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde_json::Value;
use tokio::sync::mpsc;

/// The body of a response.
pub(super) enum AdminBody {
    /// The whole body.
    Full(Bytes),
    /// Pages, each generated when the previous one is written.
    Pages(Box<dyn Iterator<Item = Bytes> + Send>),
    /// Chunks of a stream, as they arrive.
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
            Self::Full(body) => Poll::Ready((!body.is_empty()).then(|| std::mem::take(body))),
            Self::Pages(pages) => Poll::Ready(pages.next()),
            Self::Stream(chunks) => chunks.poll_recv(cx),
        };
        polled.map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(body) if body.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => SizeHint::with_exact(body.len() as u64),
            Self::Pages(_) | Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// A response with this content type, which must not be cached.
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
