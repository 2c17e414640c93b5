//! Writes one response to its stream. h2 gets no more of a body than the client's window allows, so that what waits
//! for the client waits here, where it has a deadline.

use std::{
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::Bytes;
use h2::{Reason, SendStream, server::SendResponse};
use http::{HeaderValue, StatusCode, header};

use super::connection_state::ConnectionState;
use crate::{
    http1::framing::coalesce,
    proxy::{Response, ResponseAborted, ResponseBody},
    time::deadline::Deadline,
};

/// Body of a response whose head was sent.
pub(super) struct ResponseWriter {
    stream: SendStream<Bytes>,
    body: ResponseBody,
    /// What of the body waits for the client's window.
    pending: Bytes,
    /// The body was aborted after `pending`.
    aborted: bool,
    /// Runs while the client accepts nothing.
    deadline: Deadline,
}

impl ResponseWriter {
    /// Sends the head; `None` if that was all, or the stream has ended.
    pub(super) fn start(
        mut response: Response,
        is_head_request: bool,
        respond: &mut SendResponse<Bytes>,
        connection: &ConnectionState,
    ) -> Option<Self> {
        let is_complete = is_head_request || response.body.is_ended();
        let head = response_head(&mut response, connection.begins_first_response());
        match respond.send_response(head, is_complete) {
            Ok(stream) if !is_complete => Some(Self {
                stream,
                body: response.body,
                pending: Bytes::new(),
                aborted: false,
                deadline: Deadline::unset(),
            }),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "response head not sent");
                respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }

    /// Ready when the body was handed to h2, or the stream was reset: by the client, because the body was aborted, or
    /// because the client accepted nothing for too long.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, connection: &ConnectionState) -> Poll<()> {
        // Registers the waker for a reset, too.
        if !matches!(self.stream.poll_reset(cx), Poll::Pending) {
            return Poll::Ready(());
        }
        loop {
            if self.pending.is_empty() {
                if self.aborted {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(());
                }
                match ready!(self.body.poll_chunk(cx)) {
                    Some(Ok(chunk)) => self.pending = self.coalesce_chunks(chunk, cx),
                    Some(Err(ResponseAborted)) => {
                        self.aborted = true;
                        continue;
                    }
                    None => {
                        let _ = self.stream.send_data(Bytes::new(), true);
                        return Poll::Ready(());
                    }
                }
                self.stream.reserve_capacity(self.pending.len());
            }
            let capacity = self.stream.capacity();
            if capacity == 0 {
                match self.stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return self.poll_write_timeout(cx, connection),
                }
            }
            self.deadline.clear();
            let sent = self.pending.split_to(capacity.min(self.pending.len()));
            let is_last = self.pending.is_empty() && !self.aborted && self.body.is_ended();
            if self.stream.send_data(sent, is_last).is_err() || is_last {
                return Poll::Ready(());
            }
        }
    }

    /// Waits for a client that keeps its window closed.
    fn poll_write_timeout(&mut self, cx: &mut Context<'_>, connection: &ConnectionState) -> Poll<()> {
        // A client may send its whole request before it reads the response.
        self.body.drive_request_body(cx);
        ready!(self.deadline.poll_stalled(cx, connection.write_timeout()));
        tracing::debug!("response write timed out, stream reset");
        self.stream.send_reset(Reason::CANCEL);
        Poll::Ready(())
    }

    /// Appends further chunks that are available to a small one: each frame costs far more memory than one byte.
    fn coalesce_chunks(&mut self, first: Bytes, cx: &mut Context<'_>) -> Bytes {
        coalesce(first, || {
            if self.body.is_ended() {
                return None;
            }
            match self.body.poll_chunk(cx) {
                Poll::Ready(Some(Ok(next))) => Some(next),
                Poll::Ready(Some(Err(ResponseAborted))) => {
                    self.aborted = true;
                    None
                }
                Poll::Ready(None) | Poll::Pending => None,
            }
        })
    }
}

/// The head as h2 takes it. `is_first`: the names of the first response on a connection go into HPACK's table.
fn response_head(response: &mut Response, is_first: bool) -> http::Response<()> {
    let mut headers = response.headers.to_header_map(is_first);
    // RFC 9110 §8.6: a 204 has no Content-Length.
    if let Some(length) = response.content_length.filter(|_| response.status != StatusCode::NO_CONTENT) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    if !response.has_date
        && let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now()))
    {
        headers.insert(header::DATE, date);
    }
    let mut head = http::Response::new(());
    *head.status_mut() = response.status;
    *head.headers_mut() = headers;
    head
}
