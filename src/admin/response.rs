//! Responses of the admin listener.

use std::{
    convert::Infallible,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::blocking;

/// The body of a response.
pub(super) enum AdminBody {
    /// The whole body.
    Full(Bytes),
    /// Pages, each generated when the previous one is written.
    Pages(BackgroundPages),
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
            Self::Pages(pages) => pages.poll_next(cx),
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

/// Pages that background threads generate; none is held between two pages, however slowly a client reads.
pub(super) struct BackgroundPages {
    /// `None` while a page is generated, and at the end.
    pages: Option<PageIterator>,
    next: Option<NextPage>,
}

type PageIterator = Box<dyn Iterator<Item = Bytes> + Send>;
/// Returns the rest of the pages too.
type NextPage = Pin<Box<dyn Future<Output = Option<(PageIterator, Bytes)>> + Send>>;

impl BackgroundPages {
    pub(super) fn new(pages: impl Iterator<Item = Bytes> + Send + 'static) -> Self {
        Self { pages: Some(Box::new(pages)), next: None }
    }

    /// The same pages, changed by `change` where they are generated. To be called before the first one is.
    pub(super) fn map<I: Iterator<Item = Bytes> + Send + 'static>(
        self,
        change: impl FnOnce(PageIterator) -> I,
    ) -> Self {
        Self { pages: self.pages.map(|pages| Box::new(change(pages)) as PageIterator), next: None }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(mut pages) = self.pages.take() {
            let next = blocking::run_in_background(move || pages.next().map(|page| (pages, page)));
            // After a panic the connection breaks: a response that ends properly would pass for a complete one.
            let broken = |_| resume_unwind(Box::new("a page was not made"));
            self.next = Some(Box::pin(async move { next.await.unwrap_or_else(broken) }));
        }
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let generated = ready!(next.as_mut().poll(cx));
        self.next = None;
        Poll::Ready(generated.map(|(pages, page)| {
            self.pages = Some(pages);
            page
        }))
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
#[cfg(test)]
mod tests {
    use std::{future::poll_fn, thread};

    use super::*;

    #[tokio::test]
    async fn pages_are_generated_in_order_and_on_another_thread() {
        let own = thread::current().id();
        let pages = (0..3).map(move |nth| {
            assert_ne!(thread::current().id(), own);
            Bytes::from(nth.to_string())
        });
        let mut body = AdminBody::Pages(BackgroundPages::new(pages));
        for nth in 0..3 {
            let frame = poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await;
            let page = frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
            assert_eq!(page, Some(Bytes::from(nth.to_string())));
        }
        for _ in 0..2 {
            assert!(poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await.is_none());
        }
    }
}
