//! Follows a client's frames, as far as it takes to know where a request's head begins and ends.

use crate::server::HTTP2_PREFACE;

/// Bytes before a frame's payload.
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS_FRAME: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION_FRAME: u8 = 9;
const ACK: u8 = 1;
const END_HEADERS_FLAG: u8 = 4;

/// Where in its client's frames a connection is.
#[derive(Debug)]
pub(super) struct FrameTracker {
    /// What is still to come of the preface, or of the current frame's payload.
    payload_remaining: usize,
    /// The next frame's head, as far as it has come.
    frame_header: [u8; FRAME_HEADER_BYTES],
    frame_header_len: usize,
    /// The current frame is of a head that goes on behind it.
    continues: bool,
    /// The current frame is of a head.
    in_header_block: bool,
    /// Bytes of heads so far.
    header_bytes: usize,
    /// The current frame is a SETTINGS frame that is to be acknowledged.
    in_settings: bool,
    /// SETTINGS frames so far that are to be acknowledged.
    settings: usize,
    /// A frame began that is of none of the kinds that a connection may begin with.
    has_others: bool,
}

impl Default for FrameTracker {
    fn default() -> Self {
        Self {
            payload_remaining: HTTP2_PREFACE.len(),
            frame_header: [0; FRAME_HEADER_BYTES],
            frame_header_len: 0,
            continues: false,
            in_header_block: false,
            header_bytes: 0,
            in_settings: false,
            settings: 0,
            has_others: false,
        }
    }
}

impl FrameTracker {
    /// Follows the first of these bytes, which must not be none, to the end of a frame's head or payload at most. How many
    /// that were, and whether a request's head ended with them.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> (usize, bool) {
        if self.payload_remaining > 0 {
            let skipped = self.payload_remaining.min(bytes.len());
            self.payload_remaining -= skipped;
            self.header_bytes += if self.in_header_block { skipped } else { 0 };
            return (skipped, self.ends_frame());
        }
        let taken = (FRAME_HEADER_BYTES - self.frame_header_len).min(bytes.len());
        self.frame_header[self.frame_header_len..self.frame_header_len + taken]
            .copy_from_slice(&bytes[..taken]);
        self.frame_header_len += taken;
        if self.frame_header_len < FRAME_HEADER_BYTES {
            return (taken, false);
        }
        self.frame_header_len = 0;
        let [long, middle, short, kind, flags, ..] = self.frame_header;
        self.payload_remaining = u32::from_be_bytes([0, long, middle, short]) as usize;
        self.in_header_block = matches!(kind, HEADERS_FRAME | CONTINUATION_FRAME);
        self.continues = self.in_header_block && flags & END_HEADERS_FLAG == 0;
        self.header_bytes += if self.in_header_block { FRAME_HEADER_BYTES } else { 0 };
        self.in_settings = kind == SETTINGS && flags & ACK == 0;
        self.has_others |=
            !matches!(kind, HEADERS_FRAME | CONTINUATION_FRAME | SETTINGS | WINDOW_UPDATE | PRIORITY);
        (taken, self.ends_frame())
    }

    /// Whether a head ends here.
    fn ends_frame(&mut self) -> bool {
        if self.in_settings && self.payload_remaining == 0 {
            self.in_settings = false;
            self.settings += 1;
        }
        let ends = self.in_header_block && self.payload_remaining == 0 && !self.continues;
        self.in_header_block &= !ends;
        ends
    }

    /// Whether a head has begun and not ended.
    pub(super) fn is_in_header_block(&self) -> bool {
        self.in_header_block
    }

    /// How many SETTINGS frames have come whole that are to be acknowledged.
    pub(super) fn settings(&self) -> usize {
        self.settings
    }

    /// Whether a frame began that is of none of the kinds that a connection may begin with.
    pub(super) fn has_others(&self) -> bool {
        self.has_others
    }

    /// How many of the bytes that were followed last belong to a frame whose kind is not known yet.
    pub(super) fn partial_frame_header_bytes(&self) -> usize {
        self.frame_header_len
    }

    /// Bytes of heads so far, those of their frames among them.
    pub(super) fn header_bytes(&self) -> usize {
        self.header_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], &vec![1; usize::from(length)][..]].concat()
    }

    /// Whether a head has begun and not ended after these bytes.
    fn is_in_header_block_after(heads: &mut FrameTracker, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            bytes = &bytes[heads.advance(bytes).0..];
        }
        heads.is_in_header_block()
    }

    #[test]
    fn header_block_is_tracked_from_first_to_last_frame() {
        let wire = [
            (HTTP2_PREFACE.to_vec(), false),
            (frame(4, 0, 6), false),
            (frame(HEADERS_FRAME, END_HEADERS_FLAG, 20), false),
            (frame(0, 4, 9), false),
            (frame(HEADERS_FRAME, 0, 5), true),
            (frame(CONTINUATION_FRAME, 0, 0), true),
            (frame(CONTINUATION_FRAME, END_HEADERS_FLAG, 3), false),
            (frame(HEADERS_FRAME, END_HEADERS_FLAG, 0), false),
        ];
        let (mut whole, mut by_byte) = (FrameTracker::default(), FrameTracker::default());
        for (nth, (bytes, within)) in wire.iter().enumerate() {
            assert_eq!(is_in_header_block_after(&mut whole, bytes), *within, "{nth}");
            let last = bytes.iter().map(|byte| is_in_header_block_after(&mut by_byte, &[*byte])).last();
            assert_eq!(last, Some(*within), "{nth}");
        }
        assert_eq!((whole.header_bytes(), by_byte.header_bytes()), (73, 73));
        assert!(!is_in_header_block_after(&mut whole, &frame(HEADERS_FRAME, END_HEADERS_FLAG, 2)[..5]));
        assert!(is_in_header_block_after(&mut whole, &frame(HEADERS_FRAME, END_HEADERS_FLAG, 2)[5..10]));
        assert!(!is_in_header_block_after(&mut whole, &[1]));
        assert_eq!((whole.settings(), by_byte.settings()), (1, 1));
        assert!(whole.has_others() && by_byte.has_others());
    }
}
