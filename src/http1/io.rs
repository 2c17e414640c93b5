//! One type for all byte streams: TCP or a unix socket, plain or under TLS.

use std::{
    future::Future,
    io,
    net::{self, SocketAddr},
    num::NonZero,
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
    task::coop::{consume_budget, has_budget_remaining},
};
use tokio_rustls::{client, server};

pub use self::record_stream::RecordStream;
use super::buffer_pool;

mod record_stream;

/// A byte stream.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS towards a client.
    ServerTls(Box<server::TlsStream<RecordStream>>),
    /// TLS towards the upstream.
    ClientTls(Box<client::TlsStream<Stream>>),
}

/// Evaluates the same expression for each kind of stream.
macro_rules! match_stream {
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
    /// Whether the stream is not under TLS.
    pub fn is_plaintext(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }

    /// Reads once, appending about `max_bytes` to the buffer; 0 is the end of the stream. `registered` is the waker
    /// registered with this stream.
    pub fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        max_bytes: usize,
        registered: &mut RegisteredWaker,
    ) -> Poll<io::Result<usize>> {
        if let Self::Tcp(tcp) = self {
            return poll_recv(tcp, cx, buffer, max_bytes, registered);
        }
        if buffer.capacity() == 0 {
            *buffer = buffer_pool::acquire();
        }
        buffer.reserve(max_bytes);
        pin!(self.read_buf(buffer)).poll(cx)
    }

    /// Under TLS towards a client, from now on reads more than one record at a time.
    pub fn read_ahead(&mut self) {
        if let Self::ServerTls(tls) = self {
            tls.get_mut().0.read_ahead();
        }
    }

    /// Decrypted bytes that the next read returns; 0 without TLS towards a client.
    pub fn buffered_plaintext(&mut self) -> usize {
        let Self::ServerTls(tls) = self else { return 0 };
        let processed = tls.get_mut().1.process_new_packets();
        processed.map_or(0, |state| state.plaintext_bytes_to_read())
    }

    /// Size of an incomplete TLS record; 0 without TLS towards a client, and after [`Stream::read_ahead`].
    pub fn incomplete_record_bytes(&self) -> usize {
        if let Self::ServerTls(tls) = self { tls.get_ref().0.incomplete_record_bytes() } else { 0 }
    }

    /// Until [`Stream::read_ahead`] leaves larger TLS records of a client unread; 0: no limit.
    pub fn limit_records(&mut self, max_bytes: usize) {
        if let Self::ServerTls(tls) = self {
            tls.get_mut().0.limit_records(max_bytes);
        }
    }

    /// Waits for the first byte and leaves it unread; `None` at the end of the stream, or under TLS.
    pub async fn peek_byte(&self) -> io::Result<Option<u8>> {
        let received = match self {
            Self::Tcp(tcp) => tcp.async_io(Interest::READABLE, || peek_byte(tcp)).await?,
            Self::Unix(unix) => unix.async_io(Interest::READABLE, || peek_byte(unix)).await?,
            Self::ServerTls(_) | Self::ClientTls(_) => None,
        };
        Ok(received)
    }

    /// Whether the runtime knows of unread bytes or the end of the stream.
    pub fn is_readable(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Unix(unix) => unix.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::ServerTls(tls) => tls.get_ref().0.stream().is_readable(),
            Self::ClientTls(tls) => tls.get_ref().0.is_readable(),
        }
    }

    /// The address of the other end; `None` without TCP or once the connection is reset.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.tcp().and_then(|tcp| tcp.peer_addr().ok())
    }

    /// The underlying TCP socket, if there is one.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Unix(_) => None,
            Self::ServerTls(tls) => tls.get_ref().0.stream().tcp(),
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
            // The runtime returns an error only when it shuts down.
            if matches!(&ready, Poll::Ready(Err(_))) || matches!(&ready, Poll::Ready(Ok(ready)) if ready.$is_closed()) {
                return Poll::Ready(());
            }
        }
    };
}

/// Detects the end of a connection behind unread bytes. It has its own descriptor, so that the readiness of the
/// stream's descriptor is not changed.
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
            Stream::ServerTls(tls) => Self::new(tls.get_ref().0.stream()),
            Stream::ClientTls(tls) => Self::new(tls.get_ref().0),
        }
    }

    /// Ready when FIN or RST has arrived.
    pub fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_closed!(&self.0, cx, poll_read_ready, Interest::READABLE, is_read_closed)
    }

    /// Ready when RST has arrived.
    pub fn poll_write_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_closed!(&self.0, cx, poll_write_ready, Interest::WRITABLE, is_write_closed)
    }
}

fn peek_byte(socket: impl AsFd) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let (received, _) = retry_on_intr(|| rustix::net::recv(&socket, &mut byte[..], RecvFlags::PEEK))?;
    Ok((received > 0).then_some(byte[0]))
}

/// The waker registered for read readiness; lets us skip registering it again, which costs.
#[derive(Debug, Default)]
pub struct RegisteredWaker(Option<(usize, NonZero<usize>)>);

impl RegisteredWaker {
    /// The identity of a waker. It is unique as long as the runtime holds the waker.
    fn from_context(cx: &Context<'_>) -> Self {
        let waker = cx.waker();
        let vtable = NonZero::new(std::ptr::from_ref(waker.vtable()).addr());
        Self(vtable.map(|vtable| (waker.data().addr(), vtable)))
    }
}

/// Reads if the socket may be readable, otherwise registers the task's waker.
///
/// The read is tried before the coop budget is checked: a task that reads also writes, and the write checks it.
fn poll_recv(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
    max_bytes: usize,
    registered: &mut RegisteredWaker,
) -> Poll<io::Result<usize>> {
    loop {
        let (mut was_ready, mut partial) = (false, None);
        let received = tcp.try_io(Interest::READABLE, || {
            was_ready = true;
            let (received, capacity) = recv(tcp, buffer, max_bytes)?;
            if (1..capacity).contains(&received) {
                // A partial read drains the socket: `WouldBlock` clears the readiness, which saves a read that finds
                // nothing.
                partial = Some(received);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(received)
        });
        if was_ready {
            // A readiness event has consumed the registered waker.
            *registered = RegisteredWaker::default();
        }
        match (partial, received) {
            (Some(received), _) => return Poll::Ready(Ok(received)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, received) => return Poll::Ready(received),
        }
        let this = RegisteredWaker::from_context(cx);
        if registered.0 == this.0 {
            return Poll::Pending;
        }
        // Without coop budget the runtime registers no waker.
        let has_budget = has_budget_remaining();
        if tcp.poll_read_ready(cx)?.is_pending() {
            *registered = if has_budget { this } else { RegisteredWaker::default() };
            return Poll::Pending;
        }
    }
}

/// Reads at most `max_bytes`, or more if that is large and the buffer has spare capacity; returns the bytes read and
/// the capacity of the read. Small reads use the raw system call like [`poll_send`], and are copied from the scratch
/// buffer, so that a connection that receives nothing needs no buffer.
fn recv(tcp: &TcpStream, buffer: &mut BytesMut, max_bytes: usize) -> io::Result<(usize, usize)> {
    if max_bytes > buffer_pool::BUFFER_BYTES {
        buffer.reserve(max_bytes);
        let capacity = buffer.capacity() - buffer.len();
        return Ok((tcp.try_read_buf(buffer)?, capacity));
    }
    buffer_pool::with_scratch(|scratch| {
        let (received, _) =
            retry_on_intr(|| rustix::net::recv(tcp, &mut scratch[..max_bytes], RecvFlags::empty()))?;
        if buffer.capacity() == 0 {
            *buffer = buffer_pool::acquire();
        }
        buffer.extend_from_slice(&scratch[..received]);
        Ok((received, max_bytes))
    })
}

/// A closed peer is an error instead of SIGPIPE. Apple's systems lack the flag; Rust programs ignore that signal
/// anyway.
#[cfg(not(target_vendor = "apple"))]
const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND_FLAGS: SendFlags = SendFlags::empty();

/// Holds back a partial segment until more is written, or the stream is shut down.
#[cfg(target_os = "linux")]
const SEND_MORE_FLAGS: SendFlags = SEND_FLAGS.union(SendFlags::MORE);
#[cfg(not(target_os = "linux"))]
const SEND_MORE_FLAGS: SendFlags = SEND_FLAGS;

/// Sends by the raw system call: `send` of the C library is a thread cancellation point, which takes two locked
/// instructions. The send is tried before the task's waker is registered, because a socket is nearly always writable.
fn poll_send(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    bytes: &[u8],
    flags: SendFlags,
) -> Poll<io::Result<usize>> {
    let send = || Ok(retry_on_intr(|| rustix::net::send(tcp, bytes, flags))?);
    ready!(pin!(consume_budget()).poll(cx));
    loop {
        match tcp.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(tcp.poll_write_ready(cx))?,
            sent => return Poll::Ready(sent),
        }
    }
}

/// Final write on a stream, which must be shut down as soon as it is written: TCP then sends the bytes and FIN in one
/// segment, which wakes the peer once.
pub struct FinalWrite<'a>(pub &'a mut Stream);

impl AsyncWrite for FinalWrite<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self.get_mut().0 {
            Stream::Tcp(tcp) => poll_send(tcp, cx, buf, SEND_MORE_FLAGS),
            stream => Pin::new(stream).poll_write(cx, buf),
        }
    }

    /// Several slices fill segments anyway.
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
        let stream = self.get_mut();
        if let Self::ServerTls(tls) = stream {
            return record_stream::poll_read_records(tls, cx, buf);
        }
        match_stream!(stream, inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Self::Tcp(tcp) = &*self {
            return poll_send(tcp, cx, buf, SEND_FLAGS);
        }
        match_stream!(self.get_mut(), inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match_stream!(self.get_mut(), inner => Pin::new(inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match_stream!(self, inner => inner.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match_stream!(self.get_mut(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match_stream!(self.get_mut(), inner => Pin::new(inner).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests;
