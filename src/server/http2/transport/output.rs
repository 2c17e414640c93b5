//! What h2 writes, collected for one write, and its time-out.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use tokio::io::AsyncWrite;

use super::TransportState;
use crate::{http1::buffer_pool, server::http2::early_settings::FilterAction};

/// Maximum number of slices in one write.
const MAX_SLICES: usize = 8;

impl TransportState {
    /// Appends h2's output without the frames that the client has received before.
    fn buffer_new(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.duplicates.is_done() {
            match self.duplicates.next_action(bytes)? {
                FilterAction::Skip(skipped) => bytes = &bytes[skipped..],
                FilterAction::Write(length) => {
                    let (written, rest) = bytes.split_at(length);
                    self.output.extend_from_slice(written);
                    self.duplicates.record_written(length);
                    bytes = rest;
                }
            }
        }
        self.output.extend_from_slice(bytes);
        Ok(())
    }

    /// Buffers a small write, which [`Self::poll_flush_output`] sends with others. A large one goes out at once,
    /// together with what is buffered.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if !self.duplicates.is_done() {
            ready!(self.poll_flush_output(cx))?;
            bufs.iter().try_for_each(|buf| self.buffer_new(buf))?;
            return Poll::Ready(Ok(length));
        }
        if self.output.len() + length <= buffer_pool::BUFFER_BYTES {
            if self.output.capacity() == 0 {
                self.output = buffer_pool::acquire();
            }
            bufs.iter().for_each(|buf| self.output.extend_from_slice(buf));
            return Poll::Ready(Ok(length));
        }
        loop {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = (bufs.len() + 1).min(MAX_SLICES);
            slices[0] = IoSlice::new(&self.output);
            slices[1..count].copy_from_slice(&bufs[..count - 1]);
            let written = Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]);
            let written = ready!(self.poll_with_write_timeout(cx, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let buffered = self.output.len();
            self.output.advance(written.min(buffered));
            if written > buffered {
                return Poll::Ready(Ok(written - buffered));
            }
        }
    }

    pub(super) fn poll_flush_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.output);
            let written = ready!(self.poll_with_write_timeout(cx, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        if self.output.capacity() > 0 {
            buffer_pool::release(std::mem::take(&mut self.output));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.poll_with_write_timeout(cx, flushed)
    }

    /// Turns a write that stays pending for too long into an error.
    pub(super) fn poll_with_write_timeout<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() && self.connection.is_write_blocked() {
            // Reading, which stops while writes block, continues.
            cx.waker().wake_by_ref();
        }
        self.connection.set_write_blocked(written.is_pending());
        self.write_deadline.bound_transfer(cx, written, self.connection.write_timeout())
    }
}
