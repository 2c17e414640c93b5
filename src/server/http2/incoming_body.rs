//! Request bodies received over HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{runtime::Handle, time::timeout};

use super::activity::{Activity, PendingRefusal};
use crate::server::{LINGER_TIMEOUT, MAX_LINGER_BYTES};
use crate::{
    http1::framing::copy_if_small,
    request_body::{BodySource, BodySourceError, RequestBody},
};

/// A request body as hyper reads it.
pub(super) struct Http2IncomingBody {
    body: Option<Incoming>,
    activity: Activity,
}

impl Http2IncomingBody {
    /// Wraps the body of a request on this connection.
    pub(super) fn from_incoming(incoming: Incoming, activity: &Activity) -> RequestBody {
        use http_body::Body as _;
        if incoming.is_end_stream() {
            return RequestBody::None;
        }
        RequestBody::Streamed(Box::new(Self { body: Some(incoming), activity: activity.clone() }))
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
                // Trailers are dropped: they are not forwarded to WeCom.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Ok(Some(copy_if_small(data)))),
                    _ => {}
                },
                Some(Err(_)) => return Poll::Ready(Err(BodySourceError::Aborted)),
                None if body.is_end_stream() => self.body = None,
                // hyper also ends a body without an error when its client resets the stream with NO_ERROR.
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
    /// Discards the rest of an unread body: clients take a reset stream for a failure even if the response has arrived.
    fn drop(&mut self) {
        if self.is_ended() {
            return;
        }
        let (Some(body), Ok(runtime)) = (self.body.take(), Handle::try_current()) else { return };
        // Without an authorized request the number of such bodies is bounded.
        let pending_refusal =
            if self.activity.is_authorized() { None } else { self.activity.try_begin_refusal() };
        if pending_refusal.is_some() || self.activity.is_authorized() {
            runtime.spawn(discard_body(body, pending_refusal));
        }
    }
}

/// Reads and discards the rest of a body, within bounds.
async fn discard_body(mut body: Incoming, _pending_refusal: Option<PendingRefusal>) {
    let discard_all = async {
        let mut discarded_bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            discarded_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            if discarded_bytes > MAX_LINGER_BYTES {
                return;
            }
        }
    };
    let _ = timeout(LINGER_TIMEOUT, discard_all).await;
}
