//! Reads a small request body as a whole, for calls that the proxy answers or changes itself.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::timeout;

use super::error::{ErrorKind, ProxyError};
use crate::{
    request_body::{BodySource, BodySourceError, RequestBody},
    secret::wipe_on_drop,
};

/// How long the whole body may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Reserved for a body of unknown length.
const INITIAL_BYTES: usize = 4096;

/// A body that was read.
pub(super) enum SmallBody {
    /// All of it.
    Whole(Bytes),
    /// One that is larger than the limit, to be forwarded as it came.
    Larger(RequestBody),
}

/// Reads a body of at most `max_bytes`.
pub(super) async fn read(body: RequestBody, max_bytes: usize) -> Result<SmallBody, ProxyError> {
    let mut source = match body {
        RequestBody::None => return Ok(SmallBody::Whole(Bytes::new())),
        RequestBody::Complete(bytes) if bytes.len() <= max_bytes => return Ok(SmallBody::Whole(bytes)),
        RequestBody::Complete(bytes) => return Ok(SmallBody::Larger(RequestBody::Complete(bytes))),
        RequestBody::Streamed(source) => source,
    };
    let length = source.content_length().and_then(|length| usize::try_from(length).ok());
    if length.is_some_and(|length| length > max_bytes) {
        return Ok(SmallBody::Larger(RequestBody::Streamed(source)));
    }
    let mut received = Vec::with_capacity(length.unwrap_or(INITIAL_BYTES));
    let reading = async {
        while let Some(chunk) = poll_fn(|cx| source.poll_chunk(cx)).await? {
            received.extend_from_slice(&chunk);
            if received.len() > max_bytes {
                break;
            }
        }
        Ok(())
    };
    match timeout(READ_TIMEOUT, reading).await {
        Err(_) => Err(ErrorKind::BadRequest.error("request body stalled: a small one was expected")),
        Ok(Err(BodySourceError::Aborted | BodySourceError::ChunkOverhead)) => {
            Err(ErrorKind::BadRequest.error("request body incomplete or malformed"))
        }
        Ok(Ok(())) if received.len() <= max_bytes => Ok(SmallBody::Whole(wipe_on_drop(received))),
        Ok(Ok(())) => {
            let first = Some(wipe_on_drop(received));
            Ok(SmallBody::Larger(RequestBody::Streamed(Box::new(PrefixedSource { first, source }))))
        }
    }
}

/// A body of which the first part was read.
struct PrefixedSource {
    first: Option<Bytes>,
    source: Box<dyn BodySource>,
}

impl BodySource for PrefixedSource {
    fn content_length(&self) -> Option<u64> {
        self.source.content_length()
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Ok(Some(first))),
            None => self.source.poll_chunk(cx),
        }
    }

    fn is_ended(&self) -> bool {
        self.first.is_none() && self.source.is_ended()
    }

    fn release_buffer(&mut self) {
        self.source.release_buffer();
    }
}
