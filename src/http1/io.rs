//! Byte streams as one type a side: TCP or a unix socket, plain or under TLS.

use std::{
    future::Future,
    io, net,
    os::{fd::AsFd, unix},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use rustix::{
    io::retry_on_intr,
    net::{RecvFlags, SendFlags},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
    task::coop::has_budget_remaining,
};
use tokio_rustls::{client, server};

use super::buffer_pool;

/// One byte stream, whatever it runs over.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS towards a client.
    ServerTls(Box<server::TlsStream<Stream>>),
    /// TLS towards the upstream.
    ClientTls(Box<client::TlsStream<Stream>>),
}

/// Calls the same method on whichever stream it is.
macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
            Stream::ServerTls($inner) => $call,
            Stream::ClientTls($inner) => $call,
        }
    };
}

impl Stream {
    /// Whether there is no TLS on it.
    pub fn is_plaintext(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }

    /// Reads once to the buffer's end, about as much as `most`; 0 is the end of the stream. `caller` is who waits for this
    /// stream.
    pub fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        most: usize,
        caller: &mut RegisteredWaker,
    ) -> Poll<io::Result<usize>> {
        if let Self::Tcp(tcp) = self {
            return poll_recv(tcp, cx, buffer, most, caller);
        }
        if buffer.capacity() == 0 {
            *buffer = buffer_pool::acquire();
        }
        buffer.reserve(most);
        pin!(self.read_buf(buffer)).poll(cx)
    }

    /// Whether more has come, or the end, as far as the runtime has heard.
    pub fn is_readable(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Unix(unix) => unix.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::ServerTls(tls) => tls.get_ref().0.is_readable(),
            Self::ClientTls(tls) => tls.get_ref().0.is_readable(),
        }
    }

    /// The TCP socket at the bottom, if there is one.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Unix(_) => None,
            Self::ServerTls(tls) => tls.get_ref().0.tcp(),
            Self::ClientTls(tls) => tls.get_ref().0.tcp(),
        }
    }
}

/// Ready when one side of a socket is closed. Any other readiness is cleared, so that the next event wakes the task.
macro_rules! poll_closed {
    ($socket:expr, $cx:expr, $poll_ready:ident, $interest:expr, $is_closed:ident) => {
        loop {
            let ready = match $socket {
                Stream::Tcp(tcp) => {
                    let _ = ready!(tcp.$poll_ready($cx));
                    let ready = pin!(tcp.ready($interest)).poll($cx);
                    let _ = tcp.try_io($interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                    ready
                }
                Stream::Unix(unix) => {
                    let _ = ready!(unix.$poll_ready($cx));
                    let ready = pin!(unix.ready($interest)).poll($cx);
                    let _ = unix.try_io($interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                    ready
                }
                Stream::ServerTls(_) | Stream::ClientTls(_) => return Poll::Pending,
            };
            // An error is that of a runtime which ends.
            if matches!(&ready, Poll::Ready(Err(_))) || matches!(&ready, Poll::Ready(Ok(ready)) if ready.$is_closed()) {
                return Poll::Ready(());
            }
        }
    };
}

/// Tells the end of a connection behind bytes that nobody has read. It has a descriptor of its own, so that the readiness of
/// the stream's own stays as whoever reads it left it.
#[derive(Debug)]
pub struct CloseWatch(Stream);

impl CloseWatch {
    /// Watches the socket of this stream.
    pub fn new(stream: &Stream) -> io::Result<Self> {
        match stream {
            Stream::Tcp(tcp) => {
                let tcp = net::TcpStream::from(tcp.as_fd().try_clone_to_owned()?);
                TcpStream::from_std(tcp).map(|tcp| Self(Stream::Tcp(tcp)))
            }
            Stream::Unix(unix) => {
                let unix = unix::net::UnixStream::from(unix.as_fd().try_clone_to_owned()?);
                UnixStream::from_std(unix).map(|unix| Self(Stream::Unix(unix)))
            }
            Stream::ServerTls(tls) => Self::new(tls.get_ref().0),
            Stream::ClientTls(tls) => Self::new(tls.get_ref().0),
        }
    }

    /// Ready when FIN or RST has come.
    pub fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_closed!(&self.0, cx, poll_read_ready, Interest::READABLE, is_read_closed)
    }

    /// Ready when RST has come.
    pub fn poll_write_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_closed!(&self.0, cx, poll_write_ready, Interest::WRITABLE, is_write_closed)
    }
}

/// The task that the runtime will call when there is something to read: telling it anew each time costs.
#[derive(Debug, Default)]
pub struct RegisteredWaker(Option<(usize, usize)>);

impl RegisteredWaker {
    /// What a task is called by. Nobody else is called by the same as long as the runtime holds it.
    fn from_context(cx: &Context<'_>) -> Self {
        let waker = cx.waker();
        Self(Some((waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())))
    }
}

/// Reads if the runtime has heard that there is something, and has this task called if not.
///
/// The read comes before the question whether the task has used up its turn: whoever reads writes too, and that asks.
fn poll_recv(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
    most: usize,
    caller: &mut RegisteredWaker,
) -> Poll<io::Result<usize>> {
    loop {
        let (mut heard, mut last) = (false, None);
        let received = tcp.try_io(Interest::READABLE, || {
            heard = true;
            let (received, room) = recv(tcp, buffer, most)?;
            if (1..room).contains(&received) {
                // There is no more, and the runtime need not try in order to see that.
                last = Some(received);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(received)
        });
        if heard {
            // Whoever was to be called has been.
            *caller = RegisteredWaker::default();
        }
        match (last, received) {
            (Some(received), _) => return Poll::Ready(Ok(received)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, received) => return Poll::Ready(received),
        }
        let this = RegisteredWaker::from_context(cx);
        if caller.0 == this.0 {
            return Poll::Pending;
        }
        // To a task that has used up its turn the runtime does not listen.
        let listens = has_budget_remaining();
        if tcp.poll_read_ready(cx)?.is_pending() {
            *caller = if listens { this } else { RegisteredWaker::default() };
            return Poll::Pending;
        }
    }
}

/// Reads at most `most` bytes, or more where these are many and the buffer has room; for how many there was room is returned
/// too. A few are read past the C library, as [`poll_send`] sends, and copied: so a connection on which nothing comes needs no
/// buffer.
fn recv(tcp: &TcpStream, buffer: &mut BytesMut, most: usize) -> io::Result<(usize, usize)> {
    if most > buffer_pool::BUFFER_BYTES {
        buffer.reserve(most);
        let room = buffer.capacity() - buffer.len();
        return Ok((tcp.try_read_buf(buffer)?, room));
    }
    buffer_pool::with_scratch(|tray| {
        let (received, _) = retry_on_intr(|| rustix::net::recv(tcp, &mut tray[..most], RecvFlags::empty()))?;
        if buffer.capacity() == 0 {
            *buffer = buffer_pool::acquire();
        }
        buffer.extend_from_slice(&tray[..received]);
        Ok((received, most))
    })
}

/// A peer that has left is an error and no signal. Apple's systems know no such flag; a Rust program ignores that signal
/// anyway.
#[cfg(not(target_vendor = "apple"))]
const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND_FLAGS: SendFlags = SendFlags::empty();

/// Holds back what fills no segment until more is said, or that no more will be.
#[cfg(target_os = "linux")]
const SEND_MORE_FLAGS: SendFlags = SEND_FLAGS.union(SendFlags::MORE);
#[cfg(not(target_os = "linux"))]
const SEND_MORE_FLAGS: SendFlags = SEND_FLAGS;

/// Sends past the C library, whose `send` is a point at which a thread can be cancelled: that takes two locked instructions
/// each time.
fn poll_send(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    bytes: &[u8],
    flags: SendFlags,
) -> Poll<io::Result<usize>> {
    let send = || Ok(retry_on_intr(|| rustix::net::send(tcp, bytes, flags))?);
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return Poll::Ready(sent),
        }
    }
}

/// The way out for the last bytes on a stream, which must be shut down as soon as they are written: under TCP they then
/// travel in one segment with its end, and wake the other side once.
pub struct FinalWrite<'a>(pub &'a mut Stream);

impl AsyncWrite for FinalWrite<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self.get_mut().0 {
            Stream::Tcp(tcp) => poll_send(tcp, cx, buf, SEND_MORE_FLAGS),
            stream => Pin::new(stream).poll_write(cx, buf),
        }
    }

    /// What takes several slices fills segments anyway.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.get_mut().0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().0).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Self::Tcp(tcp) = &*self {
            return poll_send(tcp, cx, buf, SEND_FLAGS);
        }
        each!(self.get_mut(), inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, inner => inner.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{
        io::AsyncWriteExt,
        net::TcpListener,
        task::coop::{consume_budget, has_budget_remaining},
        time::{Instant, timeout_at},
    };

    use super::*;

    /// One side of a connection, which knows whom the runtime calls.
    struct Endpoint {
        stream: Stream,
        read_waker: RegisteredWaker,
        buffer: BytesMut,
    }

    impl Endpoint {
        async fn pair() -> (Self, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let ours = TcpStream::connect(address).await.expect("a connection");
            let (theirs, _) = listener.accept().await.expect("a connection");
            theirs.set_nodelay(true).expect("a socket");
            (
                Self {
                    stream: Stream::Tcp(ours),
                    read_waker: RegisteredWaker::default(),
                    buffer: BytesMut::new(),
                },
                theirs,
            )
        }

        fn poll_read(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
            self.stream.poll_read_buf(cx, &mut self.buffer, most, &mut self.read_waker)
        }

        /// Looks once, in vain.
        async fn assert_pending(&mut self) {
            assert!(
                poll_fn(|cx| Poll::Ready(self.poll_read(cx, 10).is_pending())).await,
                "something has come"
            );
        }

        /// Waits until the runtime calls: a timer would call too, and then what has come is there.
        async fn read_woken(&mut self, most: usize) -> io::Result<usize> {
            let until = Instant::now() + Duration::from_secs(10);
            let read = timeout_at(until, poll_fn(|cx| self.poll_read(cx, most))).await;
            assert!(Instant::now() < until, "nobody was called");
            read.expect("it came before")
        }

        /// The same; how many bytes there were.
        async fn read_bytes(&mut self, most: usize) -> usize {
            self.read_woken(most).await.expect("no error")
        }
    }

    #[tokio::test]
    async fn reader_without_coop_budget_is_still_woken() {
        let (mut side, mut theirs) = Endpoint::pair().await;
        for again in 0..3 {
            while has_budget_remaining() {
                consume_budget().await;
            }
            side.assert_pending().await;
            tokio::task::yield_now().await;
            if again > 0 {
                // Now the runtime has listened.
                side.assert_pending().await;
            }
            theirs.write_all(b"late").await.expect("it is taken");
            assert_eq!(side.read_bytes(10).await, 4);
        }
        assert_eq!(side.buffer, "latelatelate");
    }

    #[tokio::test]
    async fn last_registered_waker_is_woken() {
        let (mut side, mut theirs) = Endpoint::pair().await;
        for _ in 0..3 {
            side.assert_pending().await;
            let waiting = tokio::spawn(async move {
                side.assert_pending().await;
                (side.read_bytes(10).await, side)
            });
            tokio::task::yield_now().await;
            theirs.write_all(b"to the other").await.expect("it is taken");
            let read;
            (read, side) = waiting.await.expect("no panic");
            assert_eq!(read, 10);
            // What was left is seen without a call.
            assert_eq!(side.read_bytes(10).await, 2);
            // One that looked, and has left its place to us.
            let left = tokio::spawn(async move {
                side.assert_pending().await;
                side
            });
            side = left.await.expect("no panic");
            side.assert_pending().await;
            theirs.write_all(b"back").await.expect("it is taken");
            assert_eq!(side.read_bytes(10).await, 4);
        }
    }

    #[tokio::test]
    async fn reader_is_woken_by_eof_and_by_reset() {
        for reset in [false, true] {
            for rest in [0, 3, 10, 30_000] {
                let (mut side, mut theirs) = Endpoint::pair().await;
                side.assert_pending().await;
                theirs.write_all(&vec![b'x'; rest]).await.expect("it is taken");
                if reset {
                    theirs.set_zero_linger().expect("a socket");
                }
                drop(theirs);
                let mut read = 0;
                let end = loop {
                    match side.read_woken(10).await {
                        Ok(0) => break None,
                        Ok(more) => read += more,
                        Err(error) => break Some(error.kind()),
                    }
                };
                match end {
                    None => assert_eq!((read, reset), (rest, false)),
                    Some(kind) => assert_eq!((kind, reset), (io::ErrorKind::ConnectionReset, true)),
                }
            }
        }
    }

    #[tokio::test]
    async fn close_watch_tells_fin_and_rst_behind_unread_bytes() {
        for (unread, reset) in [(0, false), (30_000, false), (0, true), (30_000, true)] {
            let (mut side, mut theirs) = Endpoint::pair().await;
            let watch = CloseWatch::new(&side.stream).expect("a descriptor");
            theirs.write_all(&vec![b'x'; unread]).await.expect("it is taken");
            let pending = |poll: Poll<()>| Poll::Ready(poll.is_pending());
            assert!(poll_fn(|cx| pending(watch.poll_read_closed(cx))).await, "it is open");
            if reset {
                theirs.set_zero_linger().expect("a socket");
            }
            drop(theirs);
            let soon = |end| timeout_at(Instant::now() + Duration::from_secs(10), end);
            soon(poll_fn(|cx| watch.poll_read_closed(cx))).await.expect("FIN or RST");
            if !reset {
                assert!(poll_fn(|cx| pending(watch.poll_write_closed(cx))).await, "it may be half-closed");
                side.stream.write_all(b"anyone?").await.expect("it is taken");
            }
            // One that begins late tells the same.
            let late = CloseWatch::new(&side.stream).expect("a descriptor");
            let closed = async { poll_fn(|cx| late.poll_write_closed(cx)).await };
            timeout_at(Instant::now() + Duration::from_secs(10), closed).await.expect("RST");
            let closed = async { poll_fn(|cx| watch.poll_write_closed(cx)).await };
            timeout_at(Instant::now() + Duration::from_secs(10), closed).await.expect("RST");
        }
    }

    /// A small answer and the end of its connection are one segment: the first is not on its way before the second.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn final_write_shares_a_segment_with_fin() {
        let (mut side, theirs) = Endpoint::pair().await;
        let mut peer = theirs.into_std().expect("a socket");
        FinalWrite(&mut side.stream).write_all(b"bye").await.expect("it is taken");
        // What is sent on the loopback interface is there when the call returns.
        let early = io::Read::read(&mut peer, &mut [0; 9]).map_err(|error| error.kind());
        assert_eq!(early, Err(io::ErrorKind::WouldBlock));
        side.stream.shutdown().await.expect("it ends");
        let mut all = String::new();
        io::Read::read_to_string(&mut peer, &mut all).expect("all, and the end");
        assert_eq!(all, "bye");
    }

    /// Bytes that come as it pleases them, to one task and the other, some of which have used up their turn, and reads of
    /// every size.
    #[tokio::test]
    async fn reads_of_any_size_from_any_task_miss_no_bytes() {
        let (mut side, mut theirs) = Endpoint::pair().await;
        let whole: Vec<_> = (0..400_000u32).map(|nth| (nth % 251) as u8).collect();
        let sent = whole.clone();
        let writing = tokio::spawn(async move {
            let (mut rest, mut size) = (&sent[..], 1);
            while !rest.is_empty() {
                size = size * 7 % 9973;
                let (now, then) = rest.split_at(rest.len().min(size));
                theirs.write_all(now).await.expect("it is taken");
                rest = then;
                if size % 3 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            theirs
        });
        let mut most = 1;
        while side.buffer.len() < whole.len() {
            most = most * 11 % 19_937;
            if most % 4 == 0 {
                let reading = tokio::spawn(async move {
                    side.read_bytes(most).await;
                    side
                });
                side = reading.await.expect("no panic");
                continue;
            }
            if most % 5 == 0 {
                while has_budget_remaining() {
                    consume_budget().await;
                }
            }
            side.read_bytes(most).await;
        }
        assert!(side.buffer == whole);
        writing.await.expect("no panic");
    }
}
