//! Request bodies received over HTTP/1.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::transport::{Transport, WeakTransport};
use crate::{
    http1::framing::Framing,
    request_body::{BodySource, BodySourceError},
};

/// Reader of one request's body.
pub(super) struct Http1IncomingBody {
    transport: WeakTransport,
    request_seq: u64,
    content_length: Option<u64>,
}

impl Http1IncomingBody {
    /// The body of the current request.
    pub(super) fn new(transport: &Transport, content_length: Option<u64>) -> Self {
        let request_seq = transport.state().request_seq;
        Self { transport: transport.downgrade(), request_seq, content_length }
    }

    fn transport(&self) -> Option<Transport> {
        Transport::upgrade(&self.transport)
    }
}

impl BodySource for Http1IncomingBody {
    fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        let Some(transport) = self.transport() else { return Poll::Ready(Err(BodySourceError::Aborted)) };
        let mut state = transport.state();
        if state.request_seq != self.request_seq {
            return Poll::Ready(Err(BodySourceError::Aborted));
        }
        state.poll_body_chunk(cx)
    }

    fn is_ended(&self) -> bool {
        self.transport().is_some_and(|transport| {
            let state = transport.state();
            state.request_seq == self.request_seq && state.framing == Framing::Done
        })
    }

    fn release_buffer(&mut self) {
        if let Some(transport) = self.transport() {
            let mut state = transport.state();
            if state.request_seq == self.request_seq && state.framing != Framing::Done {
                state.release_body_buffer();
            }
        }
    }
}
