//! Write buffer of an HTTP/1 connection: buffered text, a large body chunk after it, and the suffix that closes the
//! chunk.

use std::{
    fmt::Write as _,
    hint::black_box,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::buffer_pool;
use crate::secret::wipe;

/// Chunks up to this size are copied into the buffer: that costs less than a second slice.
const MAX_INLINE_CHUNK_BYTES: usize = 4 * 1024;

/// Bytes to be written, in as few writes as possible.
#[derive(Default)]
pub struct WriteBuf {
    /// Heads, chunk sizes, small chunks.
    buffer: BytesMut,
    /// Number of bytes of `buffer` that were written.
    written: usize,
    chunk: Bytes,
    chunk_suffix: &'static [u8],
    /// Wipe the buffer as soon as it is written, because its memory is reused elsewhere.
    wipe_when_written: bool,
}

impl Drop for WriteBuf {
    fn drop(&mut self) {
        self.wipe_all();
    }
}

impl WriteBuf {
    /// Uses this buffer for the text.
    pub fn with_buffer(buffer: BytesMut) -> Self {
        let mut write_buf = Self::default();
        (write_buf.buffer, write_buf.wipe_when_written) = (buffer, true);
        write_buf
    }

    /// The buffer, for writing a head; no body chunk may follow it yet.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Takes the buffer out and clears it.
    pub fn take_buffer(&mut self) -> BytesMut {
        self.clear_buffer();
        std::mem::take(&mut self.buffer)
    }

    /// Clears the buffer. If its memory goes to another connection, it is wiped, because it may contain a pass.
    fn clear_buffer(&mut self) {
        if self.wipe_when_written {
            wipe(&mut self.buffer);
        }
        self.buffer.clear();
        self.written = 0;
    }

    /// Wipes all that the buffer has contained, which may include a token.
    fn wipe_all(&mut self) {
        self.buffer.clear();
        let spare = self.buffer.spare_capacity_mut();
        spare.fill(MaybeUninit::new(0));
        black_box(spare);
    }

    /// Frees the buffer, before a wait that may be long. Everything must have been written.
    pub fn release(&mut self) {
        self.wipe_all();
        self.buffer = BytesMut::new();
    }

    fn unwritten(&self) -> &[u8] {
        &self.buffer[self.written..]
    }

    /// Whether everything was written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.chunk.is_empty() && self.chunk_suffix.is_empty()
    }

    /// Whether another chunk may be appended. Stops buffering at about `BUFFER_BYTES` when the body comes faster
    /// than the client reads.
    pub fn can_buffer(&self) -> bool {
        self.chunk.is_empty() && self.chunk_suffix.is_empty() && self.buffer.len() < buffer_pool::BUFFER_BYTES
    }

    /// Appends a body chunk, in the chunked coding if `chunked`. The last chunk has `is_last` and may be empty.
    /// [`WriteBuf::can_buffer`] must be true.
    pub fn push_chunk(&mut self, chunk: Bytes, chunked: bool, is_last: bool) {
        let in_chunk = chunked && !chunk.is_empty();
        if in_chunk {
            let _ = write!(self.buffer, "{:x}\r\n", chunk.len());
        }
        let suffix: &'static [u8] = match (in_chunk, chunked && is_last) {
            (true, true) => b"\r\n0\r\n\r\n",
            (true, false) => b"\r\n",
            (false, true) => b"0\r\n\r\n",
            (false, false) => b"",
        };
        if chunk.len() <= MAX_INLINE_CHUNK_BYTES {
            self.buffer.extend_from_slice(&chunk);
            self.buffer.extend_from_slice(suffix);
        } else {
            (self.chunk, self.chunk_suffix) = (chunk, suffix);
        }
    }

    /// Writes once. The buffer must not be empty.
    pub fn poll_write(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = Pin::new(stream);
        let written = if self.chunk.is_empty() && self.chunk_suffix.is_empty() {
            ready!(stream.poll_write(cx, self.unwritten()))?
        } else {
            let slices =
                [IoSlice::new(self.unwritten()), IoSlice::new(&self.chunk), IoSlice::new(self.chunk_suffix)];
            // With an empty first slice a stream without vectored writes would write nothing.
            let first = slices.iter().position(|slice| !slice.is_empty()).unwrap_or(0);
            ready!(stream.poll_write_vectored(cx, &slices[first..]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let from_buffer = written.min(self.unwritten().len());
        self.written += from_buffer;
        if self.written == self.buffer.len() {
            // Starts again at the beginning: a buffer consumed from the front would have to be reclaimed.
            self.clear_buffer();
        }
        let from_chunk = (written - from_buffer).min(self.chunk.len());
        if from_chunk < self.chunk.len() {
            self.chunk.advance(from_chunk);
        } else if from_chunk > 0 {
            // An empty slice would keep the whole read buffer that it is from, which could then not be read into again.
            self.chunk = Bytes::new();
        }
        self.chunk_suffix = &self.chunk_suffix[written - from_buffer - from_chunk..];
        Poll::Ready(Ok(()))
    }

    /// Discards what was not written.
    pub fn clear(&mut self) {
        self.clear_buffer();
        self.chunk = Bytes::new();
        self.chunk_suffix = b"";
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use proptest::prelude::*;

    use super::*;

    /// Accepts at most `max_bytes` per write, vectored or not; every third write is pending.
    struct PartialWriter {
        written: Vec<u8>,
        max_bytes: usize,
        vectored: bool,
        polls: usize,
    }

    impl AsyncWrite for PartialWriter {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let writer = self.get_mut();
            writer.polls += 1;
            if writer.polls.is_multiple_of(3) {
                return Poll::Pending;
            }
            let accepted = bytes.len().min(writer.max_bytes);
            writer.written.extend_from_slice(&bytes[..accepted]);
            Poll::Ready(Ok(accepted))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            match self.vectored {
                true => {
                    self.poll_write(cx, &slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>())
                }
                false => self.poll_write(cx, &slices[0]),
            }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn chunks_through_partial_writes_arrive_in_order(
            lengths in prop::collection::vec(prop_oneof![0usize..10, 4090..4100usize, 9000..9001usize], 1..6),
            chunked: bool, max_bytes in prop_oneof![1usize..9, 5000..5001usize, 100_000..100_001usize], vectored: bool,
            between in 0usize..4,
        ) {
            let (mut expected, mut write_buf) = (b"head\r\n\r\n".to_vec(), WriteBuf::default());
            write_buf.buffer_mut().extend_from_slice(&expected);
            let mut writer = PartialWriter { written: Vec::new(), max_bytes, vectored, polls: 0 };
            let drain = |write_buf: &mut WriteBuf, writer: &mut PartialWriter| {
                while !write_buf.is_empty() {
                    let mut cx = Context::from_waker(Waker::noop());
                    if let Poll::Ready(written) = write_buf.poll_write(writer, &mut cx) {
                        written.expect("write accepted");
                    }
                }
            };
            let last = lengths.len() - 1;
            for (nth, length) in lengths.into_iter().enumerate() {
                let chunk = vec![b'a' + nth as u8; length];
                match chunked {
                    true if length > 0 => {
                        expected.extend_from_slice(format!("{length:x}\r\n").as_bytes());
                        expected.extend_from_slice(&chunk);
                        expected.extend_from_slice(b"\r\n");
                    }
                    _ => expected.extend_from_slice(&chunk),
                }
                if !write_buf.can_buffer() {
                    drain(&mut write_buf, &mut writer);
                }
                write_buf.push_chunk(chunk.into(), chunked, nth == last);
                // The next chunk may follow a partial write.
                for _ in 0..between {
                    let mut cx = Context::from_waker(Waker::noop());
                    if !write_buf.is_empty() && let Poll::Ready(written) = write_buf.poll_write(&mut writer, &mut cx) {
                        written.expect("write accepted");
                    }
                }
            }
            expected.extend_from_slice(if chunked { b"0\r\n\r\n" } else { b"" });
            drain(&mut write_buf, &mut writer);
            prop_assert!(writer.written == expected);
        }
    }

    #[tokio::test]
    async fn zero_byte_write_is_an_error() {
        let mut writer = PartialWriter { written: Vec::new(), max_bytes: 0, vectored: true, polls: 0 };
        let mut write_buf = WriteBuf::with_buffer(BytesMut::from("text"));
        let written = poll_fn(|cx| write_buf.poll_write(&mut writer, cx)).await;
        assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::WriteZero));
        write_buf.clear();
        assert!(write_buf.is_empty() && write_buf.can_buffer());
    }

    #[tokio::test]
    async fn written_chunk_no_longer_keeps_its_read_buffer() {
        let mut read_buf = BytesMut::from(&[b'a'; 10_000][..]);
        let capacity = read_buf.capacity();
        let mut writer = PartialWriter { written: Vec::new(), max_bytes: 6_000, vectored: true, polls: 0 };
        let mut write_buf = WriteBuf::with_buffer(BytesMut::from("text"));
        write_buf.push_chunk(read_buf.split().freeze(), false, false);
        poll_fn(|cx| write_buf.poll_write(&mut writer, cx)).await.expect("write accepted");
        assert!(!write_buf.is_empty() && !read_buf.try_reclaim(capacity));
        poll_fn(|cx| write_buf.poll_write(&mut writer, cx)).await.expect("write accepted");
        assert!(write_buf.is_empty() && read_buf.try_reclaim(capacity));
    }

    #[tokio::test]
    async fn cleared_partial_write_leaves_no_bytes() {
        for clears in [true, false] {
            let mut writer = PartialWriter { written: Vec::new(), max_bytes: 3, vectored: true, polls: 0 };
            let mut write_buf = WriteBuf::with_buffer(BytesMut::from("first"));
            poll_fn(|cx| write_buf.poll_write(&mut writer, cx)).await.expect("write accepted");
            if clears {
                write_buf.clear();
            } else {
                write_buf.take_buffer();
            }
            write_buf.buffer_mut().extend_from_slice(b"second");
            while !write_buf.is_empty() {
                if let Poll::Ready(written) =
                    poll_fn(|cx| Poll::Ready(write_buf.poll_write(&mut writer, cx))).await
                {
                    written.expect("write accepted");
                }
            }
            assert_eq!(String::from_utf8_lossy(&writer.written), "firsecond");
        }
    }
}
