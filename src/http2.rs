//! HTTP/2 on the wire, shared by server and upstream; h2 implements the protocol.

mod keep_alive;

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};

pub use self::keep_alive::KeepAlive;

/// The next DATA frame of a body, which may be empty; `None` at the end, which only END_STREAM marks. Trailers are
/// dropped. Errors: those of h2; NO_ERROR if the body ended without END_STREAM.
pub fn poll_data(stream: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h2::Error>> {
    if let Some(data) = ready!(stream.poll_data(cx)) {
        let data = data?;
        // The window bounds what waits to be read; what was read counts no more.
        let _ = stream.flow_control().release_capacity(data.len());
        return Poll::Ready(Ok(Some(data)));
    }
    ready!(stream.poll_trailers(cx))?;
    Poll::Ready(if stream.is_end_stream() { Ok(None) } else { Err(Reason::NO_ERROR.into()) })
}
