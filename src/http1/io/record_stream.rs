//! The byte stream beneath TLS towards a client, read one record at a time until a request was authorized.
//!
//! rustls keeps the buffer into which it reads, 18 KiB after a record of the maximum size, until it reads again with
//! nothing in it. Without a part of the next record there is nothing in it between two records, and it can be released.
//! A large record that has not arrived as a whole stays in the socket, because rustls would take up to 32 KiB for it.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use rustix::{io::ioctl_fionread, net::sockopt::socket_recv_buffer_size};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::Stream;

/// Size of a record's header (RFC 8446 §5.1): its kind, a version, and its length.
const RECORD_HEADER_BYTES: usize = 5;
/// Up to this size records fit into the buffer that rustls keeps anyway.
const MAX_SMALL_RECORD_BYTES: usize = 4096 - RECORD_HEADER_BYTES;

/// Size of a receive buffer that holds any record, with what the kernel counts beside its bytes.
const MIN_RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// Bytes that a client may send before the handshake has ended. A long chain of certificates takes a fifth of this; rustls
/// would hold a message of up to 64 KiB until it is complete.
const MAX_HANDSHAKE_BYTES: usize = 32 * 1024;

/// A stream that can end its reads at the end of a TLS record.
#[derive(Debug)]
pub struct RecordStream {
    stream: Stream,
    /// Bytes that the handshake may still have; `None` after it.
    handshake_left: Option<usize>,
    /// `None` if reads are not bounded.
    position: Option<RecordPosition>,
}

/// Where in a record the next byte stands.
#[derive(Debug, Default)]
struct RecordPosition {
    header: [u8; RECORD_HEADER_BYTES],
    header_len: usize,
    /// Bytes still to come of the record whose header is complete.
    remaining: usize,
    /// A record larger than [`MAX_SMALL_RECORD_BYTES`] was read.
    large_record_read: bool,
    /// Nothing of a record larger than this is read but its header; 0 without a limit.
    max_record_bytes: usize,
}

impl RecordStream {
    /// Reads one record at a time.
    pub fn new(stream: Stream) -> Self {
        Self { stream, handshake_left: Some(MAX_HANDSHAKE_BYTES), position: Some(RecordPosition::default()) }
    }

    /// Ends the bound of the handshake.
    pub fn end_handshake(&mut self) {
        self.handshake_left = None;
    }

    /// The stream beneath.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// From now on reads as much as there is.
    pub(super) fn read_ahead(&mut self) {
        self.position = None;
    }

    /// Leaves records larger than this unread, but for their header; 0: no limit. Nothing wakes a read of one.
    pub(super) fn limit_records(&mut self, max_bytes: usize) {
        if let Some(position) = &mut self.position {
            position.max_record_bytes = max_bytes;
        }
    }

    /// Size of an incomplete record whose header was read.
    pub(super) fn incomplete_record_bytes(&self) -> usize {
        self.position
            .as_ref()
            .filter(|position| position.remaining > 0)
            .map_or(0, RecordPosition::record_bytes)
    }

    /// Whether a large record has ended and nothing of the next was read; true once for each.
    pub(super) fn take_large_record(&mut self) -> bool {
        self.position.as_mut().is_some_and(|position| {
            position.header_len == 0 && std::mem::take(&mut position.large_record_read)
        })
    }
}

impl RecordPosition {
    /// Number of bytes to the end of the header, or of the record.
    fn bytes_to_end(&self) -> usize {
        if self.remaining > 0 { self.remaining } else { RECORD_HEADER_BYTES - self.header_len }
    }

    /// The length that the header says.
    fn length(&self) -> usize {
        usize::from(u16::from_be_bytes([self.header[3], self.header[4]]))
    }

    /// The record's size with its header.
    fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.length()
    }

    /// Whether the record is to be left unread.
    fn is_too_large(&self) -> bool {
        self.max_record_bytes > 0
            && self.remaining > 0
            && self.remaining == self.length()
            && self.record_bytes() > self.max_record_bytes
    }

    /// Size of the payload, if it is large and nothing of it was read.
    fn unread_large_payload(&self) -> Option<usize> {
        (self.remaining > MAX_SMALL_RECORD_BYTES && self.remaining == self.length()).then_some(self.remaining)
    }

    /// Moves over bytes that were read, at most [`Self::bytes_to_end`].
    fn advance(&mut self, bytes: &[u8]) {
        if self.remaining > 0 {
            self.remaining -= bytes.len();
        } else {
            self.header[self.header_len..self.header_len + bytes.len()].copy_from_slice(bytes);
            self.header_len += bytes.len();
            if self.header_len < RECORD_HEADER_BYTES {
                return;
            }
            self.remaining = self.length();
            self.large_record_read |= self.remaining > MAX_SMALL_RECORD_BYTES;
        }
        if self.remaining == 0 {
            self.header_len = 0;
        }
    }
}

/// Reads once, and releases what rustls keeps of a large record that was read one at a time.
pub(super) fn poll_read_records(
    tls: &mut TlsStream<RecordStream>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let read = Pin::new(&mut *tls).poll_read(cx, buf);
    let (records, session) = tls.get_mut();
    if records.take_large_record() {
        // A read shrinks the buffer first if nothing is in it.
        let _ = session.read_tls(&mut NothingToRead);
    }
    read
}

/// Ready when this many bytes have arrived, or no more come.
fn poll_arrived(tcp: &TcpStream, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        if socket_recv_buffer_size(tcp)? < MIN_RECEIVE_BUFFER_BYTES {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(ready) = pin!(tcp.ready(Interest::READABLE)).poll(cx)
            && ready?.is_read_closed()
        {
            return Poll::Ready(Ok(()));
        }
        // If they are too few, the next bytes make it readable again.
        let arrived = tcp.try_io(Interest::READABLE, || match ioctl_fionread(tcp)? >= bytes as u64 {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        match arrived {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            arrived => return Poll::Ready(arrived),
        }
    }
}

/// A source that has no bytes now.
struct NothingToRead;

impl io::Read for NothingToRead {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl AsyncRead for RecordStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, handshake_left, position } = self.get_mut();
        let Some(position) = position else { return Pin::new(stream).poll_read(cx, buf) };
        if position.is_too_large() {
            return Poll::Pending;
        }
        if let (Stream::Tcp(tcp), Some(bytes)) = (&*stream, position.unread_large_payload()) {
            ready!(poll_arrived(tcp, cx, bytes))?;
        }
        let max_bytes = position.bytes_to_end().min(buf.remaining());
        // rustls lends initialized memory, so nothing is written here.
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(max_bytes));
        ready!(Pin::new(stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        if let Some(left) = handshake_left {
            let too_long = || io::Error::new(io::ErrorKind::InvalidData, "handshake longer than 32 KiB");
            *left = left.checked_sub(read).ok_or_else(too_long)?;
        }
        position.advance(part.filled());
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RecordStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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
    use std::{future::Future, future::poll_fn, pin::pin};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, UnixStream},
    };

    use super::*;

    fn record(length: usize) -> Vec<u8> {
        [&[23, 3, 3], &(length as u16).to_be_bytes()[..], &vec![1; length]].concat()
    }

    #[tokio::test]
    async fn large_record_is_read_when_all_of_it_has_arrived() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client =
            TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        client.set_nodelay(true).expect("a socket");
        let (server, _) = listener.accept().await.expect("a connection");
        let mut stream = RecordStream::new(Stream::Tcp(server));
        let (mut buffer, bytes) = (vec![0; 20_000], record(16_000));
        let (first, rest) = bytes.split_at(15_000);
        client.write_all(first).await.expect("written");
        assert_eq!(stream.read(&mut buffer).await.expect("a header"), RECORD_HEADER_BYTES);
        let unread = poll_fn(|cx| Poll::Ready(pin!(stream.read(&mut buffer)).poll(cx).is_pending())).await;
        assert!(unread, "it stays in the socket");
        let reading = tokio::spawn(async move {
            let read = stream.read(&mut buffer).await.expect("bytes");
            (read, stream)
        });
        tokio::task::yield_now().await;
        client.write_all(rest).await.expect("written");
        let (read, mut stream) = reading.await.expect("no panic");
        assert_eq!(read, 16_000);
        // One that will never be complete is read.
        client.write_all(&bytes[..9_000]).await.expect("written");
        drop(client);
        let mut buffer = Vec::new();
        assert_eq!(stream.read_to_end(&mut buffer).await.expect("the end"), 9_000);
    }

    #[tokio::test]
    async fn read_ends_with_the_record() {
        let records = [record(0), record(7), record(MAX_SMALL_RECORD_BYTES), record(5000)];
        let (mut client, server) = UnixStream::pair().expect("a pair");
        client.write_all(&records.concat()).await.expect("written");
        let mut stream = RecordStream::new(Stream::Unix(server));
        let mut buffer = vec![0; 20_000];
        for bytes in &records {
            let mut received = Vec::new();
            while received.len() < bytes.len() {
                assert!(!stream.take_large_record());
                let read = stream.read(&mut buffer).await.expect("bytes");
                assert!(read > 0);
                received.extend_from_slice(&buffer[..read]);
            }
            assert_eq!(&received, bytes);
            assert_eq!(stream.take_large_record(), bytes.len() > 4096);
        }
        client.write_all(&record(5000)).await.expect("written");
        stream.limit_records(5004);
        assert_eq!(
            (stream.read(&mut buffer).await.expect("a header"), stream.incomplete_record_bytes()),
            (5, 5005)
        );
        let unread = poll_fn(|cx| Poll::Ready(pin!(stream.read(&mut buffer)).poll(cx).is_pending())).await;
        assert!(unread);
        stream.limit_records(5005);
        assert_eq!(stream.read(&mut buffer).await.expect("bytes"), 5000);
        assert_eq!(stream.incomplete_record_bytes(), 0);
        client.write_all(&records.concat()).await.expect("written");
        stream.read_ahead();
        assert_eq!(stream.read(&mut buffer).await.expect("bytes"), records.concat().len());
        assert!(!stream.take_large_record());
    }
}
