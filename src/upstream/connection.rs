//! Idle HTTP/1.1 connections to the upstream: the check before reuse.

use std::{
    future::{Future, poll_fn},
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Waker},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, ReadBuf},
    task::unconstrained,
    time::Instant,
};

use super::open_connection::OpenConnection;
use crate::{
    http1::{
        headers::HeaderCache,
        io::{RegisteredWaker, Stream},
        write_buf::WriteBuf,
    },
    secret::random_fraction,
};

/// How long before the end of `Keep-Alive: timeout` a connection is no longer reused.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// A longest age within a tenth of `max_age`, so that connections of one time do not end at one time.
pub(super) fn spread(max_age: Duration) -> Duration {
    max_age.mul_f64(0.9 + 0.2 * random_fraction())
}

/// An HTTP/1.1 connection between two requests.
pub(super) struct UpstreamConnection {
    pub(super) stream: Stream,
    pub(super) read_waker: RegisteredWaker,
    pub(super) read_buf: BytesMut,
    pub(super) write_buf: WriteBuf,
    /// Cache of this connection's response headers.
    pub(super) header_cache: HeaderCache,
    pub(super) peer: Option<SocketAddr>,
    /// When its dial began.
    pub(super) dialed_at: Instant,
    /// When its longest age ends; no request begins on it after that.
    expires_at: Instant,
    /// When the last response ended; `None` before the first request.
    pub(super) idle_since: Option<Instant>,
    /// How long the peer keeps it open when idle, as the last response said.
    pub(super) keep_alive_timeout: Option<Duration>,
    _open: OpenConnection,
}

impl UpstreamConnection {
    pub(super) fn new(stream: Stream, dialed_at: Instant, max_age: Duration, open: OpenConnection) -> Self {
        Self {
            peer: stream.peer_addr(),
            dialed_at,
            expires_at: dialed_at + max_age,
            idle_since: None,
            keep_alive_timeout: None,
            stream,
            read_waker: RegisteredWaker::default(),
            read_buf: BytesMut::new(),
            write_buf: WriteBuf::default(),
            header_cache: HeaderCache::default(),
            _open: open,
        }
    }

    /// Until when it may be reused, if it is idle from now on. Ends a second before the peer closes it
    /// (`Keep-Alive: timeout`), because a request that is on its way then is lost.
    pub(super) fn reusable_until(&self, now: Instant, idle_timeout: Duration) -> Instant {
        let keep_alive = self.keep_alive_timeout.map(|timeout| timeout.saturating_sub(KEEP_ALIVE_MARGIN));
        self.expires_at.min(now + keep_alive.map_or(idle_timeout, |timeout| timeout.min(idle_timeout)))
    }

    /// Whether an idle connection is open and has no unread data, by the runtime's readiness state: data that arrived
    /// before the runtime last polled its driver is seen, at the cost of a system call; without an event there is none.
    pub(super) fn is_reusable(&mut self) -> bool {
        let mut byte = [0; 1];
        if let Stream::Tcp(tcp) = &self.stream {
            return matches!(tcp.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        }
        let mut buffer = ReadBuf::new(&mut byte);
        // Under TLS this read also consumes session tickets, which belong to no response. Unconstrained, because a
        // task without coop budget would see `Pending` although data is there.
        let read = poll_fn(|cx| Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
        let mut cx = Context::from_waker(Waker::noop());
        pin!(unconstrained(read)).poll(&mut cx).is_pending()
    }

    /// Like [`Self::is_reusable`], but peeks at the socket: for a connection that was idle for a while, or before a
    /// request that must not be sent twice.
    pub(super) fn is_reusable_by_peek(&mut self) -> bool {
        let silent = self.stream.tcp().is_none_or(|tcp| {
            let mut byte = [MaybeUninit::uninit(); 1];
            let peeked = socket2::SockRef::from(tcp).peek(&mut byte);
            matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        });
        silent && self.is_reusable()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
        task::coop::{consume_budget, has_budget_remaining},
    };

    use super::*;
    use crate::upstream::open_connection::OpenConnections;

    #[tokio::test]
    async fn unsolicited_data_is_seen_without_coop_budget() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client =
            TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (mut server, _) = listener.accept().await.expect("a connection");
        let open = OpenConnections::default().open();
        let mut connection =
            UpstreamConnection::new(Stream::Tcp(client), Instant::now(), Duration::from_secs(60), open);
        assert!(connection.is_reusable());
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("written");
        connection.stream.tcp().expect("TCP").readable().await.expect("readable");
        while has_budget_remaining() {
            consume_budget().await;
        }
        assert!(!connection.is_reusable());
    }
}
