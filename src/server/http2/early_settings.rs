//! The server side of an HTTP/2 connection before its first request. h2, whose state takes 20 KiB, is created
//! when the first complete header block has arrived, or a frame that only h2 handles.
//!
//! Until then the proxy sends its own SETTINGS and acknowledges the client's. h2 sends both again;
//! [`DuplicateFilter`] removes these.

use std::io;

use super::frame_tracker::FRAME_HEADER_BYTES;

/// Identifiers of settings (RFC 9113 §6.5.2).
const SETTINGS_MAX_CONCURRENT_STREAMS: u8 = 3;
const SETTINGS_INITIAL_WINDOW_SIZE: u8 = 4;
const SETTINGS_MAX_FRAME_SIZE: u8 = 5;
const SETTINGS_MAX_HEADER_LIST_SIZE: u8 = 6;

/// SETTINGS frame with the ACK flag.
pub(super) const SETTINGS_ACK: [u8; FRAME_HEADER_BYTES] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
/// Maximum number of SETTINGS frames acknowledged before h2 is created.
pub(super) const MAX_ACKS: usize = 4;
/// GOAWAY frame with ENHANCE_YOUR_CALM and last stream 0: no stream was processed.
pub(super) const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];

/// The SETTINGS frame that h2 sends, byte for byte.
pub(super) fn settings_frame() -> Vec<u8> {
    let settings = [
        (SETTINGS_MAX_CONCURRENT_STREAMS, super::MAX_CONCURRENT_STREAMS),
        (SETTINGS_INITIAL_WINDOW_SIZE, super::STREAM_WINDOW_BYTES),
        (SETTINGS_MAX_FRAME_SIZE, super::MAX_FRAME_BYTES),
        (SETTINGS_MAX_HEADER_LIST_SIZE, super::MAX_HEAD_BYTES as u32),
    ];
    let mut frame = vec![0, 0, 6 * settings.len() as u8, 4, 0, 0, 0, 0, 0];
    for (id, value) in settings {
        frame.extend([0, id]);
        frame.extend(value.to_be_bytes());
    }
    frame
}

/// Removes the frames from h2's output that the client has received before.
#[derive(Debug, Default)]
pub(super) struct DuplicateFilter {
    /// Bytes of h2's SETTINGS frame still to be removed.
    settings_bytes: usize,
    /// Acknowledgements still to be removed.
    acks: usize,
    /// Bytes to the end of the frame that is being written.
    frame_remaining: usize,
}

/// What to do with the first bytes of h2's output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FilterAction {
    /// Skip this many bytes.
    Skip(usize),
    /// Write at most this many bytes.
    Write(usize),
}

impl DuplicateFilter {
    /// Records that the client was sent the SETTINGS frame, of this length. Call this before h2 writes.
    pub(super) fn record_settings_sent(&mut self, length: usize) {
        self.settings_bytes = length;
    }

    /// Records that the client was sent an acknowledgement. Call this before h2 writes.
    pub(super) fn record_ack_sent(&mut self) {
        self.acks += 1;
    }

    /// Before h2 writes: whether the SETTINGS frame was sent.
    pub(super) fn is_settings_sent(&self) -> bool {
        self.settings_bytes > 0
    }

    /// Before h2 writes: number of acknowledgements sent.
    pub(super) fn acks_sent(&self) -> usize {
        self.acks
    }

    /// Whether nothing is left to remove.
    pub(super) fn is_done(&self) -> bool {
        self.settings_bytes == 0 && self.acks == 0 && self.frame_remaining == 0
    }

    /// Decides about the first of `bytes`, which must not be empty. Bytes that are then written must be reported to
    /// [`DuplicateFilter::record_written`].
    pub(super) fn next_action(&mut self, bytes: &[u8]) -> io::Result<FilterAction> {
        if self.settings_bytes > 0 {
            let skipped = self.settings_bytes.min(bytes.len());
            self.settings_bytes -= skipped;
            return Ok(FilterAction::Skip(skipped));
        }
        if self.frame_remaining == 0 {
            // h2 writes a frame header in one call.
            let Some([high, middle, low, ..]) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            if bytes.starts_with(&SETTINGS_ACK) {
                self.acks -= 1;
                return Ok(FilterAction::Skip(FRAME_HEADER_BYTES));
            }
            self.frame_remaining =
                FRAME_HEADER_BYTES + u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        }
        Ok(FilterAction::Write(self.frame_remaining.min(bytes.len())))
    }

    /// Records that this many bytes of a [`FilterAction::Write`] were written.
    pub(super) fn record_written(&mut self, bytes: usize) {
        self.frame_remaining -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_sent_before_h2_are_filtered() {
        let window_update = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 3, 0, 0];
        let output =
            [&settings_frame()[..], &window_update, &SETTINGS_ACK, &window_update, &SETTINGS_ACK].concat();
        for step in [1000, 13, 9] {
            let mut filter =
                DuplicateFilter { settings_bytes: settings_frame().len(), acks: 1, frame_remaining: 0 };
            let (mut remaining, mut passed) = (&output[..], Vec::<u8>::new());
            while !remaining.is_empty() && !filter.is_done() {
                match filter.next_action(remaining).expect("whole frame headers") {
                    FilterAction::Skip(bytes) => remaining = &remaining[bytes..],
                    FilterAction::Write(bytes) => {
                        let bytes = bytes.min(step);
                        filter.record_written(bytes);
                        passed.extend(&remaining[..bytes]);
                        remaining = &remaining[bytes..];
                    }
                }
            }
            passed.extend(remaining);
            assert_eq!(passed, [&window_update[..], &window_update, &SETTINGS_ACK].concat(), "{step}");
        }
    }
}
