//! One stream: a request, its handling, and its response.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{Method, StatusCode};

use super::{
    connection_state::{ConnectionState, PendingRejection, RequestGuard},
    incoming_body::ContinueSignal,
    response_writer::ResponseWriter,
};
use crate::{
    proxy::{Proxy, Request, Response},
    request_body::RequestBody,
    server::Server,
};

/// What the streams of a connection share.
#[derive(Clone)]
pub(super) struct StreamContext {
    pub(super) connection: Rc<ConnectionState>,
    pub(super) server: Arc<Server>,
    pub(super) proxy: Rc<Proxy>,
}

/// A stream whose response has not begun.
pub(super) struct RequestStream {
    pub(super) respond: SendResponse<Bytes>,
    /// Set if the client waits for `100 Continue`.
    pub(super) continue_signal: Option<Rc<ContinueSignal>>,
    /// `None` if the request does not keep the connection open.
    pub(super) request_guard: Option<RequestGuard>,
    pub(super) context: StreamContext,
}

impl RequestStream {
    /// Handles the request and writes the response. Dropped with its state when the client resets the stream.
    pub(super) async fn serve(mut self, request: Box<Request>, body: RequestBody) {
        let (peer, is_head_request) = (request.peer, request.method == Method::HEAD);
        // Boxed: large, and done when the response begins, which may wait for the client.
        let Some(mut response) = Box::pin(self.handle(request, body)).await else { return };
        let Ok(_pending_rejection) = self.begin_rejection(&mut response, is_head_request) else { return };
        if response.wrong_key {
            let delay = self.context.server.count_wrong_key(peer);
            if !delay.is_zero() {
                drop(self.request_guard.take());
                let connection = self.context.connection.clone();
                let elapsed = Box::pin(connection.delay_wrong_key(delay));
                if self.unless_reset(elapsed).await.is_none() {
                    return;
                }
            }
        }
        let connection = &self.context.connection;
        let writer = ResponseWriter::start(response, is_head_request, &mut self.respond, connection);
        let Some(mut writer) = writer else { return };
        poll_fn(|cx| writer.poll_write(cx, &self.context.connection)).await;
    }

    /// The response to the request; `None` if the client resets the stream first, or too many wait without being
    /// authorized. The request's memory is released before the response is written.
    async fn handle(&mut self, request: Box<Request>, body: RequestBody) -> Option<Response> {
        let Self { respond, continue_signal, context, .. } = self;
        let mut deadline = context.connection.take_deadline();
        // What waits without a body, as a browser's signature for its ticket, holds little.
        let may_hold_body = !matches!(body, RequestBody::None);
        let response = {
            let mut handling = pin!(context.proxy.handle(&request, body, &mut deadline));
            let mut unverified = None;
            let handled = poll_fn(|cx| {
                if respond.poll_reset(cx).is_ready() {
                    return Poll::Ready(None);
                }
                let polled = handling.as_mut().poll(cx);
                if request.authorized.get() && !context.connection.is_authorized() {
                    context.connection.permit().mark_authorized();
                }
                let is_unverified = may_hold_body && !context.connection.is_authorized();
                if polled.is_pending() && is_unverified && unverified.is_none() {
                    unverified = context.connection.try_begin_unverified();
                    if unverified.is_none() {
                        context.connection.record_stream_reset();
                        respond.send_reset(Reason::REFUSED_STREAM);
                        return Poll::Ready(None);
                    }
                }
                if polled.is_pending() && continue_signal.as_ref().is_some_and(|signal| signal.take_due(cx)) {
                    send_continue(respond);
                }
                polled.map(Some)
            });
            handled.await
        };
        context.connection.put_deadline(deadline);
        response
    }

    /// On a connection without an authorized request: ends the request's context and its access log line, so that a
    /// client that does not read holds no memory, and counts the response as pending. If too many are, resets the
    /// stream and fails.
    fn begin_rejection(
        &mut self,
        response: &mut Response,
        is_head_request: bool,
    ) -> Result<Option<PendingRejection>, ()> {
        let connection = &self.context.connection;
        if connection.is_authorized() {
            return Ok(None);
        }
        response.finish_context(is_head_request);
        match connection.try_begin_rejection() {
            Some(pending_rejection) => Ok(Some(pending_rejection)),
            None => {
                connection.record_stream_reset();
                self.respond.send_reset(Reason::REFUSED_STREAM);
                Err(())
            }
        }
    }

    /// Waits for a future; `None` if the client resets the stream first.
    async fn unless_reset<T>(&mut self, mut future: impl Future<Output = T> + Unpin) -> Option<T> {
        poll_fn(|cx| match self.respond.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => pin!(&mut future).poll(cx).map(Some),
        })
        .await
    }
}

/// Sends `100 Continue` (RFC 9110 §10.1.1).
fn send_continue(respond: &mut SendResponse<Bytes>) {
    let mut interim = http::Response::new(());
    *interim.status_mut() = StatusCode::CONTINUE;
    if let Err(error) = respond.send_informational(interim) {
        tracing::debug!(%error, "100 Continue not sent");
    }
}
