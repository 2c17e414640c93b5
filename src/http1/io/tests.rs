use std::{future::poll_fn, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    task::coop::{consume_budget, has_budget_remaining},
    time::{Instant, timeout_at},
};

use super::*;

/// One end of a connection, with its registered waker.
struct Endpoint {
    stream: Stream,
    read_waker: RegisteredWaker,
    buffer: BytesMut,
}

impl Endpoint {
    async fn pair() -> (Self, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let local = TcpStream::connect(address).await.expect("a connection");
        let (peer, _) = listener.accept().await.expect("a connection");
        peer.set_nodelay(true).expect("a socket");
        (
            Self {
                stream: Stream::Tcp(local),
                read_waker: RegisteredWaker::default(),
                buffer: BytesMut::new(),
            },
            peer,
        )
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, max_bytes: usize) -> Poll<io::Result<usize>> {
        self.stream.poll_read_buf(cx, &mut self.buffer, max_bytes, &mut self.read_waker)
    }

    /// Polls once and expects nothing.
    async fn assert_pending(&mut self) {
        assert!(poll_fn(|cx| Poll::Ready(self.poll_read(cx, 10).is_pending())).await, "unexpected bytes");
    }

    /// Waits for a wakeup by the runtime, and fails if the time-out's timer caused it.
    async fn read_woken(&mut self, max_bytes: usize) -> io::Result<usize> {
        let until = Instant::now() + Duration::from_secs(10);
        let read = timeout_at(until, poll_fn(|cx| self.poll_read(cx, max_bytes))).await;
        assert!(Instant::now() < until, "the waker was not called");
        read.expect("read before the time-out")
    }

    /// The same; returns the number of bytes.
    async fn read_bytes(&mut self, max_bytes: usize) -> usize {
        self.read_woken(max_bytes).await.expect("no error")
    }
}

#[tokio::test]
async fn reader_without_coop_budget_is_still_woken() {
    let (mut endpoint, mut peer) = Endpoint::pair().await;
    for again in 0..3 {
        while has_budget_remaining() {
            consume_budget().await;
        }
        endpoint.assert_pending().await;
        tokio::task::yield_now().await;
        if again > 0 {
            // Now the waker is registered.
            endpoint.assert_pending().await;
        }
        peer.write_all(b"late").await.expect("write accepted");
        assert_eq!(endpoint.read_bytes(10).await, 4);
    }
    assert_eq!(endpoint.buffer, "latelatelate");
}

#[tokio::test]
async fn last_registered_waker_is_woken() {
    let (mut endpoint, mut peer) = Endpoint::pair().await;
    for _ in 0..3 {
        endpoint.assert_pending().await;
        let waiting = tokio::spawn(async move {
            endpoint.assert_pending().await;
            (endpoint.read_bytes(10).await, endpoint)
        });
        tokio::task::yield_now().await;
        peer.write_all(b"to the other").await.expect("write accepted");
        let read;
        (read, endpoint) = waiting.await.expect("no panic");
        assert_eq!(read, 10);
        // The remaining bytes are read without a wakeup.
        assert_eq!(endpoint.read_bytes(10).await, 2);
        // Another task polls first and then returns the stream.
        let left = tokio::spawn(async move {
            endpoint.assert_pending().await;
            endpoint
        });
        endpoint = left.await.expect("no panic");
        endpoint.assert_pending().await;
        peer.write_all(b"back").await.expect("write accepted");
        assert_eq!(endpoint.read_bytes(10).await, 4);
    }
}

#[tokio::test]
async fn reader_is_woken_by_eof_and_by_reset() {
    for reset in [false, true] {
        for rest in [0, 3, 10, 30_000] {
            let (mut endpoint, mut peer) = Endpoint::pair().await;
            endpoint.assert_pending().await;
            peer.write_all(&vec![b'x'; rest]).await.expect("write accepted");
            if reset {
                peer.set_zero_linger().expect("a socket");
            }
            drop(peer);
            let mut read = 0;
            let end = loop {
                match endpoint.read_woken(10).await {
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
        let (mut endpoint, mut peer) = Endpoint::pair().await;
        let watch = CloseWatch::new(&endpoint.stream).expect("a descriptor");
        peer.write_all(&vec![b'x'; unread]).await.expect("write accepted");
        let pending = |poll: Poll<()>| Poll::Ready(poll.is_pending());
        assert!(poll_fn(|cx| pending(watch.poll_read_closed(cx))).await, "it is open");
        if reset {
            peer.set_zero_linger().expect("a socket");
        }
        drop(peer);
        let soon = |end| timeout_at(Instant::now() + Duration::from_secs(10), end);
        soon(poll_fn(|cx| watch.poll_read_closed(cx))).await.expect("FIN or RST");
        if !reset {
            assert!(poll_fn(|cx| pending(watch.poll_write_closed(cx))).await, "it may be half-closed");
            endpoint.stream.write_all(b"anyone?").await.expect("write accepted");
        }
        // A watch that is created late reports the same.
        let late = CloseWatch::new(&endpoint.stream).expect("a descriptor");
        let closed = async { poll_fn(|cx| late.poll_write_closed(cx)).await };
        timeout_at(Instant::now() + Duration::from_secs(10), closed).await.expect("RST");
        let closed = async { poll_fn(|cx| watch.poll_write_closed(cx)).await };
        timeout_at(Instant::now() + Duration::from_secs(10), closed).await.expect("RST");
    }
}

/// A small final write and FIN share a segment: the bytes are not sent before the shutdown.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn final_write_shares_a_segment_with_fin() {
    let (mut endpoint, peer) = Endpoint::pair().await;
    let mut peer = peer.into_std().expect("a socket");
    FinalWrite(&mut endpoint.stream).write_all(b"bye").await.expect("write accepted");
    // On the loopback interface sent bytes have arrived when the call returns.
    let early = io::Read::read(&mut peer, &mut [0; 9]).map_err(|error| error.kind());
    assert_eq!(early, Err(io::ErrorKind::WouldBlock));
    endpoint.stream.shutdown().await.expect("it ends");
    let mut all = String::new();
    io::Read::read_to_string(&mut peer, &mut all).expect("all, and the end");
    assert_eq!(all, "bye");
}

/// Bytes arrive at any time, are read by alternating tasks, with and without coop budget, in reads of every size.
#[tokio::test]
async fn reads_of_any_size_from_any_task_miss_no_bytes() {
    let (mut endpoint, mut peer) = Endpoint::pair().await;
    let expected: Vec<_> = (0..400_000u32).map(|nth| (nth % 251) as u8).collect();
    let sent = expected.clone();
    let writing = tokio::spawn(async move {
        let (mut rest, mut size) = (&sent[..], 1);
        while !rest.is_empty() {
            size = size * 7 % 9973;
            let (now, later) = rest.split_at(rest.len().min(size));
            peer.write_all(now).await.expect("write accepted");
            rest = later;
            if size % 3 == 0 {
                tokio::task::yield_now().await;
            }
        }
        peer
    });
    let mut max_bytes = 1;
    while endpoint.buffer.len() < expected.len() {
        max_bytes = max_bytes * 11 % 19_937;
        if max_bytes % 4 == 0 {
            let reading = tokio::spawn(async move {
                endpoint.read_bytes(max_bytes).await;
                endpoint
            });
            endpoint = reading.await.expect("no panic");
            continue;
        }
        if max_bytes % 5 == 0 {
            while has_budget_remaining() {
                consume_budget().await;
            }
        }
        endpoint.read_bytes(max_bytes).await;
    }
    assert!(endpoint.buffer == expected);
    writing.await.expect("no panic");
}
