//! A request's body that comes over HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{runtime::Handle, time::timeout};

use super::{
    super::{LINGER, LINGER_BYTES},
    link::{Link, Refused},
};
use crate::{
    framing::detached,
    upload::{Body, Cut, Source},
};

/// A request's body as hyper reads it.
pub(super) struct StreamUpload {
    body: Option<Incoming>,
    link: Link,
}

impl StreamUpload {
    /// The body of a request on this connection.
    pub(super) fn body(incoming: Incoming, link: &Link) -> Body {
        use http_body::Body as _;
        if incoming.is_end_stream() {
            return Body::None;
        }
        Body::Streamed(Box::new(Self { body: Some(incoming), link: link.clone() }))
    }
}

impl Source for StreamUpload {
    fn declared(&self) -> Option<u64> {
        use http_body::Body as _;
        self.body.as_ref().and_then(|body| body.size_hint().exact())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>> {
        use http_body::Body as _;
        loop {
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(None)) };
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                // Trailers are hop-by-hop here: nobody sends them to WeCom.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Ok(Some(detached(data)))),
                    _ => {}
                },
                Some(Err(_)) => return Poll::Ready(Err(Cut::Broken)),
                None if body.is_end_stream() => self.body = None,
                // hyper takes a stream that its client resets, with NO_ERROR for a body that ends.
                None => return Poll::Ready(Err(Cut::Broken)),
            }
        }
    }

    fn is_ended(&self) -> bool {
        use http_body::Body as _;
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }
}

impl Drop for StreamUpload {
    /// The rest of a body that nobody reads is taken and thrown away: clients take a reset stream for a failure even where
    /// the answer is there.
    fn drop(&mut self) {
        if self.is_ended() {
            return;
        }
        let (Some(body), Ok(runtime)) = (self.body.take(), Handle::try_current()) else { return };
        // Without an authorized request only a few may wait for that.
        let refused = if self.link.is_authorized() { None } else { self.link.refused() };
        if refused.is_some() || self.link.is_authorized() {
            runtime.spawn(throw_away(body, refused));
        }
    }
}

/// Takes what still comes of a body, within bounds.
async fn throw_away(mut body: Incoming, _refused: Option<Refused>) {
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
