//! What waits to be written on an HTTP/1 connection: text, a large piece of a body behind it, and what closes its chunk.

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

/// Pieces up to this size are copied behind the text: that costs less than a second slice.
const MAX_COPIED_BYTES: usize = 4 * 1024;

/// Bytes on their way out, in as few writes as they take.
#[derive(Default)]
pub struct WriteBuf {
    /// Heads, chunk sizes, small pieces.
    buffer: BytesMut,
    /// How much of that was written.
    written: usize,
    chunk: Bytes,
    chunk_suffix: &'static [u8],
    /// Whether the text is wiped as soon as it is written, since its memory goes elsewhere.
    wipe_when_written: bool,
}

impl Drop for WriteBuf {
    /// The text may have held a token.
    fn drop(&mut self) {
        self.buffer.clear();
        let room = self.buffer.spare_capacity_mut();
        room.fill(MaybeUninit::new(0));
        black_box(room);
    }
}

impl WriteBuf {
    /// One that writes its text into this buffer.
    pub fn with_buffer(text: BytesMut) -> Self {
        let mut outbox = Self::default();
        (outbox.buffer, outbox.wipe_when_written) = (text, true);
        outbox
    }

    /// Room for a head. Nothing may have been put behind it.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Takes the buffer out, whatever is in it.
    pub fn take_buffer(&mut self) -> BytesMut {
        self.clear_buffer();
        std::mem::take(&mut self.buffer)
    }

    /// Empties the text. One that may hold a pass, and whose memory is used for another connection, is wiped.
    fn clear_buffer(&mut self) {
        if self.wipe_when_written {
            wipe(&mut self.buffer);
        }
        self.buffer.clear();
        self.written = 0;
    }

    fn unwritten(&self) -> &[u8] {
        &self.buffer[self.written..]
    }

    /// Whether everything was written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.chunk.is_empty() && self.chunk_suffix.is_empty()
    }

    /// Whether another piece may be put behind what is here. What waits is bounded: whoever brings more need not be
    /// the one who takes it.
    pub fn can_buffer(&self) -> bool {
        self.chunk.is_empty() && self.chunk_suffix.is_empty() && self.buffer.len() < buffer_pool::BUFFER_BYTES
    }

    /// Puts a piece of a body behind what is here, as a chunk if the body goes in chunks. The last piece is `last`, and may be
    /// empty. There must be room.
    pub fn push_chunk(&mut self, piece: Bytes, chunked: bool, last: bool) {
        let in_chunk = chunked && !piece.is_empty();
        if in_chunk {
            let _ = write!(self.buffer, "{:x}\r\n", piece.len());
        }
        let after: &'static [u8] = match (in_chunk, chunked && last) {
            (true, true) => b"\r\n0\r\n\r\n",
            (true, false) => b"\r\n",
            (false, true) => b"0\r\n\r\n",
            (false, false) => b"",
        };
        if piece.len() <= MAX_COPIED_BYTES {
            self.buffer.extend_from_slice(&piece);
            self.buffer.extend_from_slice(after);
        } else {
            (self.chunk, self.chunk_suffix) = (piece, after);
        }
    }

    /// Writes once. It must not be empty.
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
            // An empty first slice would make a stream without vectored writes write nothing.
            let first = slices.iter().position(|slice| !slice.is_empty()).unwrap_or(0);
            ready!(stream.poll_write_vectored(cx, &slices[first..]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_text = written.min(self.unwritten().len());
        self.written += of_text;
        if self.written == self.buffer.len() {
            // From its beginning again: a buffer that is eaten up from the front has to be won back.
            self.clear_buffer();
        }
        let of_piece = (written - of_text).min(self.chunk.len());
        self.chunk.advance(of_piece);
        self.chunk_suffix = &self.chunk_suffix[written - of_text - of_piece..];
        Poll::Ready(Ok(()))
    }

    /// Throws away what was not written.
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

    /// Takes a few bytes at a time, in slices or not, and now and then nothing.
    struct PartialWriter {
        written: Vec<u8>,
        max_bytes: usize,
        vectored: bool,
        polls: usize,
    }

    impl AsyncWrite for PartialWriter {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let narrow = self.get_mut();
            narrow.polls += 1;
            if narrow.polls.is_multiple_of(3) {
                return Poll::Pending;
            }
            let taken = bytes.len().min(narrow.max_bytes);
            narrow.written.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
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
            chunked: bool, most in prop_oneof![1usize..9, 5000..5001usize, 100_000..100_001usize], vectored: bool,
            between in 0usize..4,
        ) {
            let (mut expected, mut outbox) = (b"head\r\n\r\n".to_vec(), WriteBuf::default());
            outbox.buffer_mut().extend_from_slice(&expected);
            let mut narrow = PartialWriter { written: Vec::new(), max_bytes: most, vectored, polls: 0 };
            let drain = |outbox: &mut WriteBuf, narrow: &mut PartialWriter| {
                while !outbox.is_empty() {
                    let mut cx = Context::from_waker(Waker::noop());
                    if let Poll::Ready(written) = outbox.poll_write(narrow, &mut cx) {
                        written.expect("it takes something");
                    }
                }
            };
            let last = lengths.len() - 1;
            for (nth, length) in lengths.into_iter().enumerate() {
                let piece = vec![b'a' + nth as u8; length];
                match chunked {
                    true if length > 0 => {
                        expected.extend_from_slice(format!("{length:x}\r\n").as_bytes());
                        expected.extend_from_slice(&piece);
                        expected.extend_from_slice(b"\r\n");
                    }
                    _ => expected.extend_from_slice(&piece),
                }
                if !outbox.can_buffer() {
                    drain(&mut outbox, &mut narrow);
                }
                outbox.push_chunk(piece.into(), chunked, nth == last);
                // The next piece may come behind what was written in part.
                for _ in 0..between {
                    let mut cx = Context::from_waker(Waker::noop());
                    if !outbox.is_empty() && let Poll::Ready(written) = outbox.poll_write(&mut narrow, &mut cx) {
                        written.expect("it takes something");
                    }
                }
            }
            expected.extend_from_slice(if chunked { b"0\r\n\r\n" } else { b"" });
            drain(&mut outbox, &mut narrow);
            prop_assert!(narrow.written == expected);
        }
    }

    #[tokio::test]
    async fn zero_byte_write_is_an_error() {
        let mut narrow = PartialWriter { written: Vec::new(), max_bytes: 0, vectored: true, polls: 0 };
        let mut outbox = WriteBuf::with_buffer(BytesMut::from("text"));
        let written = poll_fn(|cx| outbox.poll_write(&mut narrow, cx)).await;
        assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::WriteZero));
        outbox.clear();
        assert!(outbox.is_empty() && outbox.can_buffer());
    }

    #[tokio::test]
    async fn cleared_partial_write_leaves_no_bytes() {
        for clears in [true, false] {
            let mut narrow = PartialWriter { written: Vec::new(), max_bytes: 3, vectored: true, polls: 0 };
            let mut outbox = WriteBuf::with_buffer(BytesMut::from("first"));
            poll_fn(|cx| outbox.poll_write(&mut narrow, cx)).await.expect("it takes something");
            if clears {
                outbox.clear();
            } else {
                outbox.take_buffer();
            }
            outbox.buffer_mut().extend_from_slice(b"second");
            while !outbox.is_empty() {
                if let Poll::Ready(written) =
                    poll_fn(|cx| Poll::Ready(outbox.poll_write(&mut narrow, cx))).await
                {
                    written.expect("it takes something");
                }
            }
            assert_eq!(String::from_utf8_lossy(&narrow.written), "firsecond");
        }
    }
}
