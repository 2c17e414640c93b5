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

use crate::{buffers, secret::wipe};

/// Pieces up to this size are copied behind the text: that costs less than a second slice.
const SMALL: usize = 4 * 1024;

/// Bytes on their way out, in as few writes as they take.
#[derive(Default)]
pub struct Outbox {
    /// Heads, chunk sizes, small pieces.
    text: BytesMut,
    /// How much of that was written.
    sent: usize,
    piece: Bytes,
    after_piece: &'static [u8],
    /// Whether the text is wiped as soon as it is written, since its memory goes elsewhere.
    lent: bool,
}

impl Drop for Outbox {
    /// The text may have held a token.
    fn drop(&mut self) {
        self.text.clear();
        let room = self.text.spare_capacity_mut();
        room.fill(MaybeUninit::new(0));
        black_box(room);
    }
}

impl Outbox {
    /// One that writes its text into this buffer.
    pub fn within(text: BytesMut) -> Self {
        let mut outbox = Self::default();
        (outbox.text, outbox.lent) = (text, true);
        outbox
    }

    /// Room for a head. Nothing may have been put behind it.
    pub fn text(&mut self) -> &mut BytesMut {
        &mut self.text
    }

    /// Takes the buffer out, whatever is in it.
    pub fn take_buffer(&mut self) -> BytesMut {
        self.clear_text();
        std::mem::take(&mut self.text)
    }

    /// Empties the text. One that may hold a pass, and whose memory is used for another connection, is wiped.
    fn clear_text(&mut self) {
        if self.lent {
            wipe(&mut self.text);
        }
        self.text.clear();
        self.sent = 0;
    }

    fn unsent(&self) -> &[u8] {
        &self.text[self.sent..]
    }

    /// Whether everything was written.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.piece.is_empty() && self.after_piece.is_empty()
    }

    /// Whether another piece may be put behind what is here. What waits is bounded: whoever brings more need not be
    /// the one who takes it.
    pub fn has_room(&self) -> bool {
        self.piece.is_empty() && self.after_piece.is_empty() && self.text.len() < buffers::SIZE
    }

    /// Puts a piece of a body behind what is here, as a chunk if the body goes in chunks. The last piece is `last`, and may be
    /// empty. There must be room.
    pub fn put(&mut self, piece: Bytes, chunked: bool, last: bool) {
        let in_chunk = chunked && !piece.is_empty();
        if in_chunk {
            let _ = write!(self.text, "{:x}\r\n", piece.len());
        }
        let after: &'static [u8] = match (in_chunk, chunked && last) {
            (true, true) => b"\r\n0\r\n\r\n",
            (true, false) => b"\r\n",
            (false, true) => b"0\r\n\r\n",
            (false, false) => b"",
        };
        if piece.len() <= SMALL {
            self.text.extend_from_slice(&piece);
            self.text.extend_from_slice(after);
        } else {
            (self.piece, self.after_piece) = (piece, after);
        }
    }

    /// Writes once. It must not be empty.
    pub fn poll_write(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = Pin::new(stream);
        let written = if self.piece.is_empty() && self.after_piece.is_empty() {
            ready!(stream.poll_write(cx, self.unsent()))?
        } else {
            let slices =
                [IoSlice::new(self.unsent()), IoSlice::new(&self.piece), IoSlice::new(self.after_piece)];
            // An empty first slice would make a stream without vectored writes write nothing.
            let first = slices.iter().position(|slice| !slice.is_empty()).unwrap_or(0);
            ready!(stream.poll_write_vectored(cx, &slices[first..]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_text = written.min(self.unsent().len());
        self.sent += of_text;
        if self.sent == self.text.len() {
            // From its beginning again: a buffer that is eaten up from the front has to be won back.
            self.clear_text();
        }
        let of_piece = (written - of_text).min(self.piece.len());
        self.piece.advance(of_piece);
        self.after_piece = &self.after_piece[written - of_text - of_piece..];
        Poll::Ready(Ok(()))
    }

    /// Throws away what was not written.
    pub fn clear(&mut self) {
        self.clear_text();
        self.piece = Bytes::new();
        self.after_piece = b"";
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use proptest::prelude::*;

    use super::*;

    /// Takes a few bytes at a time, in slices or not, and now and then nothing.
    struct Narrow {
        taken: Vec<u8>,
        most: usize,
        vectored: bool,
        turn: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let narrow = self.get_mut();
            narrow.turn += 1;
            if narrow.turn.is_multiple_of(3) {
                return Poll::Pending;
            }
            let taken = bytes.len().min(narrow.most);
            narrow.taken.extend_from_slice(&bytes[..taken]);
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
        fn every_piece_arrives_in_order(
            lengths in prop::collection::vec(prop_oneof![0usize..10, 4090..4100usize, 9000..9001usize], 1..6),
            chunked: bool, most in prop_oneof![1usize..9, 5000..5001usize, 100_000..100_001usize], vectored: bool,
            between in 0usize..4,
        ) {
            let (mut expected, mut outbox) = (b"head\r\n\r\n".to_vec(), Outbox::default());
            outbox.text().extend_from_slice(&expected);
            let mut narrow = Narrow { taken: Vec::new(), most, vectored, turn: 0 };
            let drain = |outbox: &mut Outbox, narrow: &mut Narrow| {
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
                if !outbox.has_room() {
                    drain(&mut outbox, &mut narrow);
                }
                outbox.put(piece.into(), chunked, nth == last);
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
            prop_assert!(narrow.taken == expected);
        }
    }

    #[tokio::test]
    async fn who_takes_nothing_is_an_error() {
        let mut narrow = Narrow { taken: Vec::new(), most: 0, vectored: true, turn: 0 };
        let mut outbox = Outbox::within(BytesMut::from("text"));
        let written = poll_fn(|cx| outbox.poll_write(&mut narrow, cx)).await;
        assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::WriteZero));
        outbox.clear();
        assert!(outbox.is_empty() && outbox.has_room());
    }

    #[tokio::test]
    async fn what_was_thrown_away_half_written_leaves_nothing_behind() {
        for clears in [true, false] {
            let mut narrow = Narrow { taken: Vec::new(), most: 3, vectored: true, turn: 0 };
            let mut outbox = Outbox::within(BytesMut::from("first"));
            poll_fn(|cx| outbox.poll_write(&mut narrow, cx)).await.expect("it takes something");
            if clears {
                outbox.clear();
            } else {
                outbox.take_buffer();
            }
            outbox.text().extend_from_slice(b"second");
            while !outbox.is_empty() {
                if let Poll::Ready(written) =
                    poll_fn(|cx| Poll::Ready(outbox.poll_write(&mut narrow, cx))).await
                {
                    written.expect("it takes something");
                }
            }
            assert_eq!(String::from_utf8_lossy(&narrow.taken), "firsecond");
        }
    }
}
