//! Tracks a client's frames as far as needed to know where a header block begins and ends.

use crate::server::HTTP2_PREFACE;

/// Size of a frame header (RFC 9113 §4.1).
pub(super) const FRAME_HEADER_BYTES: usize = 9;
pub(super) const DATA_FRAME: u8 = 0;
const HEADERS_FRAME: u8 = 1;
const PRIORITY_FRAME: u8 = 2;
const SETTINGS_FRAME: u8 = 4;
const WINDOW_UPDATE_FRAME: u8 = 8;
pub(super) const CONTINUATION_FRAME: u8 = 9;
/// Maximum size of SETTINGS and the like without an authorized request: 170 settings. h2 keeps a buffer as large as one.
const MAX_CONTROL_FRAME_BYTES: usize = 1024;
const ACK_FLAG: u8 = 1;
const END_HEADERS_FLAG: u8 = 4;

/// Position of a connection in its client's frames.
#[derive(Debug)]
pub(super) struct FrameTracker {
    /// Bytes still to come of the preface or of the current frame's payload.
    payload_remaining: usize,
    /// The next frame header, as far as received.
    frame_header: [u8; FRAME_HEADER_BYTES],
    frame_header_len: usize,
    /// The current frame's header block continues in the next frame.
    expects_continuation: bool,
    /// A header block has begun and its last frame has not ended.
    in_header_block: bool,
    /// Bytes of header blocks so far, with their frame headers.
    header_bytes: usize,
    /// The current frame is a SETTINGS frame that must be acknowledged.
    in_settings: bool,
    /// Complete SETTINGS frames so far that must be acknowledged.
    settings_frames: usize,
    /// Frames so far other than DATA, HEADERS and CONTINUATION.
    control_frames: usize,
    /// A frame other than DATA and of a header block was seen whose payload h2 takes as a whole and that is large.
    has_large_control_frame: bool,
    /// A frame other than HEADERS, CONTINUATION, SETTINGS, WINDOW_UPDATE and PRIORITY was seen: only h2 handles it.
    has_other_frames: bool,
}

impl Default for FrameTracker {
    fn default() -> Self {
        Self {
            payload_remaining: HTTP2_PREFACE.len(),
            frame_header: [0; FRAME_HEADER_BYTES],
            frame_header_len: 0,
            expects_continuation: false,
            in_header_block: false,
            header_bytes: 0,
            in_settings: false,
            settings_frames: 0,
            control_frames: 0,
            has_large_control_frame: false,
            has_other_frames: false,
        }
    }
}

impl FrameTracker {
    /// Tracks the first of `bytes`, which must not be empty, to the end of a frame header or payload at most. Returns
    /// how many bytes that were, and whether a header block ended with them.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> (usize, bool) {
        if self.payload_remaining > 0 {
            let skipped = self.payload_remaining.min(bytes.len());
            self.payload_remaining -= skipped;
            self.header_bytes += if self.in_header_block { skipped } else { 0 };
            return (skipped, self.finish_frame());
        }
        let consumed = (FRAME_HEADER_BYTES - self.frame_header_len).min(bytes.len());
        self.frame_header[self.frame_header_len..self.frame_header_len + consumed]
            .copy_from_slice(&bytes[..consumed]);
        self.frame_header_len += consumed;
        if self.frame_header_len < FRAME_HEADER_BYTES {
            return (consumed, false);
        }
        self.frame_header_len = 0;
        let [high, middle, low, kind, flags, ..] = self.frame_header;
        self.payload_remaining = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.in_header_block = matches!(kind, HEADERS_FRAME | CONTINUATION_FRAME);
        self.expects_continuation = self.in_header_block && flags & END_HEADERS_FLAG == 0;
        self.header_bytes += if self.in_header_block { FRAME_HEADER_BYTES } else { 0 };
        self.control_frames += usize::from(!self.in_header_block && kind != DATA_FRAME);
        self.has_large_control_frame |= (PRIORITY_FRAME..=WINDOW_UPDATE_FRAME).contains(&kind)
            && self.payload_remaining > MAX_CONTROL_FRAME_BYTES;
        self.in_settings = kind == SETTINGS_FRAME && flags & ACK_FLAG == 0;
        self.has_other_frames |= !matches!(
            kind,
            HEADERS_FRAME | CONTINUATION_FRAME | SETTINGS_FRAME | WINDOW_UPDATE_FRAME | PRIORITY_FRAME
        );
        (consumed, self.finish_frame())
    }

    /// Notes the end of the current frame, if it has ended, and counts SETTINGS. Returns whether a header block ended
    /// with it.
    fn finish_frame(&mut self) -> bool {
        if self.in_settings && self.payload_remaining == 0 {
            self.in_settings = false;
            self.settings_frames += 1;
        }
        let ends_block = self.in_header_block && self.payload_remaining == 0 && !self.expects_continuation;
        self.in_header_block &= !ends_block;
        ends_block
    }

    /// Whether a header block has begun and not ended.
    pub(super) fn is_in_header_block(&self) -> bool {
        self.in_header_block
    }

    /// Number of complete SETTINGS frames that must be acknowledged.
    pub(super) fn settings_frames(&self) -> usize {
        self.settings_frames
    }

    /// Whether a frame other than HEADERS, CONTINUATION, SETTINGS, WINDOW_UPDATE and PRIORITY was seen.
    pub(super) fn has_other_frames(&self) -> bool {
        self.has_other_frames
    }

    /// Whether a control frame of more than [`MAX_CONTROL_FRAME_BYTES`] was seen.
    pub(super) fn has_large_control_frame(&self) -> bool {
        self.has_large_control_frame
    }

    /// Number of frames other than DATA, HEADERS and CONTINUATION.
    pub(super) fn control_frames(&self) -> usize {
        self.control_frames
    }

    /// Number of bytes tracked last that belong to an incomplete frame header.
    pub(super) fn partial_frame_header_bytes(&self) -> usize {
        self.frame_header_len
    }

    /// Bytes of header blocks so far, with their frame headers.
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

    /// Whether a header block is incomplete after these bytes.
    fn is_in_header_block_after(tracker: &mut FrameTracker, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            bytes = &bytes[tracker.advance(bytes).0..];
        }
        tracker.is_in_header_block()
    }

    #[test]
    fn header_block_is_tracked_from_first_to_last_frame() {
        let frames = [
            (HTTP2_PREFACE.to_vec(), false),
            (frame(4, 0, 6), false),
            (frame(HEADERS_FRAME, END_HEADERS_FLAG, 20), false),
            (frame(0, 4, 9), false),
            (frame(HEADERS_FRAME, 0, 5), true),
            (frame(CONTINUATION_FRAME, 0, 0), true),
            (frame(CONTINUATION_FRAME, END_HEADERS_FLAG, 3), false),
            (frame(HEADERS_FRAME, END_HEADERS_FLAG, 0), false),
        ];
        let (mut at_once, mut bytewise) = (FrameTracker::default(), FrameTracker::default());
        for (nth, (bytes, in_block)) in frames.iter().enumerate() {
            assert_eq!(is_in_header_block_after(&mut at_once, bytes), *in_block, "{nth}");
            let last = bytes.iter().map(|byte| is_in_header_block_after(&mut bytewise, &[*byte])).last();
            assert_eq!(last, Some(*in_block), "{nth}");
        }
        assert_eq!((at_once.header_bytes(), bytewise.header_bytes()), (73, 73));
        assert!(!is_in_header_block_after(&mut at_once, &frame(HEADERS_FRAME, END_HEADERS_FLAG, 2)[..5]));
        assert!(is_in_header_block_after(&mut at_once, &frame(HEADERS_FRAME, END_HEADERS_FLAG, 2)[5..10]));
        assert!(!is_in_header_block_after(&mut at_once, &[1]));
        assert_eq!((at_once.settings_frames(), bytewise.settings_frames()), (1, 1));
        assert_eq!((at_once.control_frames(), bytewise.control_frames()), (1, 1));
        assert!(at_once.has_other_frames() && bytewise.has_other_frames());
    }
}
