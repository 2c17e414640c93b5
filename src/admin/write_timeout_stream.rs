//! A stream that records its connection's transfers and bounds a stalled write.
//!
//! Only hyper's connections need it. The server's own connections (`server/http1`, `server/http2`) and the upstream's hold
//! the same [`Deadline`] beside a plain stream: their timeout changes with the first authorized request, and a request that
//! waits for its client must not count. All clients bound a whole exchange instead.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{http1::io::Stream, server::ConnectionPermit, time::deadline::Deadline};

/// A stream that marks its permit at each transfer, and fails when a write makes no progress for the timeout.
pub(super) struct WriteTimeoutStream {
    stream: Stream,
    permit: Arc<ConnectionPermit>,
    write_deadline: Deadline,
    write_timeout: Duration,
}

impl WriteTimeoutStream {
    pub(super) fn new(stream: Stream, permit: Arc<ConnectionPermit>, write_timeout: Duration) -> Self {
        Self { stream, permit, write_deadline: Deadline::unset(), write_timeout }
    }
}

impl AsyncRead for WriteTimeoutStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            this.permit.mark_transferred();
        }
        read
    }
}

impl AsyncWrite for WriteTimeoutStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write(cx, buf);
        if wrote.is_ready() {
            this.permit.mark_transferred();
        }
        this.write_deadline.bound_transfer(cx, wrote, this.write_timeout)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::UnixStream, time::Instant};

    use super::*;
    use crate::server::{ConnectionLimiter, EvictionPolicy};

    #[tokio::test(start_paused = true)]
    async fn blocked_write_times_out() {
        let (stream, _unread) = UnixStream::pair().expect("a pair");
        let limiter = ConnectionLimiter::new(1, EvictionPolicy::EvictActive);
        let permit = limiter.acquire().await.expect("room");
        let mut stream = WriteTimeoutStream::new(Stream::Unix(stream), permit, Duration::from_secs(30));
        let start = Instant::now();
        let result = stream.write_all(&vec![0; 10 << 20]).await;
        assert_eq!(result.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
