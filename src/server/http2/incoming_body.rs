//! A request's body that comes over HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{runtime::Handle, time::timeout};

use super::activity::{Activity, RefusedRequestGuard};
use crate::server::{LINGER_TIMEOUT, MAX_LINGER_BYTES};
use crate::{
    http1::framing::copy_if_small,
    request_body::{BodySource, BodySourceError, RequestBody},
};

/// A request's body as hyper reads it.
pub(super) struct Http2IncomingBody {
    body: Option<Incoming>,
    activity: Activity,
}

impl Http2IncomingBody {
    /// The body of a request on this connection.
    pub(super) fn from_incoming(incoming: Incoming, link: &Activity) -> RequestBody {
        use http_body::Body as _;
        if incoming.is_end_stream() {
            return RequestBody::None;
        }
        RequestBody::Streamed(Box::new(Self { body: Some(incoming), activity: link.clone() }))
    }
}

impl BodySource for Http2IncomingBody {
    fn content_length(&self) -> Option<u64> {
        use http_body::Body as _;
        self.body.as_ref().and_then(|body| body.size_hint().exact())
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        use http_body::Body as _;
        loop {
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(None)) };
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                // Trailers are hop-by-hop here: nobody sends them to WeCom.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Ok(Some(copy_if_small(data)))),
                    _ => {}
                },
                Some(Err(_)) => return Poll::Ready(Err(BodySourceError::Aborted)),
                None if body.is_end_stream() => self.body = None,
                // hyper takes a stream that its client resets, with NO_ERROR for a body that ends.
                None => return Poll::Ready(Err(BodySourceError::Aborted)),
            }
        }
    }

    fn is_ended(&self) -> bool {
        use http_body::Body as _;
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }
}

impl Drop for Http2IncomingBody {
    /// The rest of a body that nobody reads is taken and thrown away: clients take a reset stream for a failure even where
    /// the answer is there.
    fn drop(&mut self) {
        if self.is_ended() {
            return;
        }
        let (Some(body), Ok(runtime)) = (self.body.take(), Handle::try_current()) else { return };
        // Without an authorized request only a few may wait for that.
        let refused =
            if self.activity.is_authorized() { None } else { self.activity.try_refused_request_guard() };
        if refused.is_some() || self.activity.is_authorized() {
            runtime.spawn(discard_body(body, refused));
        }
    }
}

/// Takes what still comes of a body, within bounds.
async fn discard_body(mut body: Incoming, _refused: Option<RefusedRequestGuard>) {
    let all = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, |data| data.len() as u64);
            if taken > MAX_LINGER_BYTES {
                return;
            }
        }
    };
    let _ = timeout(LINGER_TIMEOUT, all).await;
}
