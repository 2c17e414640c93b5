//! Passes large frames to h2 in parts while no request was authorized: h2 keeps a read buffer as large as the largest
//! frame that has begun.

use std::ops::Range;

use tokio::io::ReadBuf;

use super::{
    MAX_FRAME_BYTES,
    frame_tracker::{CONTINUATION_FRAME, DATA_FRAME, FRAME_HEADER_BYTES},
};
use crate::server::HTTP2_PREFACE;

/// Maximum payload of a part, without padding. No part has less than half of it: h2 counts small frames as a flood.
pub(super) const MAX_PART_BYTES: usize = 1024;
const END_STREAM_FLAG: u8 = 1;
const PADDED_FLAG: u8 = 8;

/// Size of the header of a padded frame, with the length of its padding.
const PADDED_HEADER_BYTES: usize = FRAME_HEADER_BYTES + 1;

/// Position in the frames that h2 gets.
#[derive(Debug)]
pub(super) struct FrameSplitter {
    /// Header of the part that h2 is getting.
    header: [u8; PADDED_HEADER_BYTES],
    /// What of it is still to be passed.
    header_remaining: Range<usize>,
    /// Bytes of the part's payload still to be passed.
    part_remaining: usize,
    /// Bytes of the frame that follow the part.
    later_remaining: usize,
    /// Padding at the end of the frame, which its last part has.
    padding: Option<u8>,
    /// Flag of the frame's last part.
    end_stream: u8,
}

impl Default for FrameSplitter {
    fn default() -> Self {
        Self {
            header: [0; PADDED_HEADER_BYTES],
            header_remaining: 0..0,
            part_remaining: HTTP2_PREFACE.len(),
            later_remaining: 0,
            padding: None,
            end_stream: 0,
        }
    }
}

impl FrameSplitter {
    /// Passes bytes from `input`, which does not end in a frame header, as far as they fit, and returns how many. A part
    /// of a large frame waits until it is complete.
    pub(super) fn pass(&mut self, input: &[u8], out: &mut ReadBuf<'_>) -> usize {
        let mut rest = input;
        while self.pass_part(&mut rest, out) {
            if rest.len() < self.next_part_bytes(MAX_PART_BYTES) {
                break;
            }
            if !self.begin_part(MAX_PART_BYTES) && !self.begin_frame(&mut rest) {
                break;
            }
        }
        input.len() - rest.len()
    }

    /// The same without waiting, for the time after: the rest of a frame is one part, and the frames behind it are passed
    /// as they came.
    pub(super) fn pass_all(&mut self, input: &[u8], out: &mut ReadBuf<'_>) -> usize {
        let mut rest = input;
        while self.pass_part(&mut rest, out) && self.begin_part(usize::MAX) {}
        if !self.owes_header() {
            self.part_remaining = 0;
            copy(&mut rest, usize::MAX, out);
        }
        input.len() - rest.len()
    }

    /// Whether a header has to precede what h2 gets next, though it is not in the input.
    pub(super) fn owes_header(&self) -> bool {
        !self.header_remaining.is_empty() || self.later_remaining > 0
    }

    /// Passes what is left of the current part; whether that was all.
    fn pass_part(&mut self, rest: &mut &[u8], out: &mut ReadBuf<'_>) -> bool {
        let mut header = &self.header[self.header_remaining.clone()];
        self.header_remaining.start += copy(&mut header, usize::MAX, out);
        if self.header_remaining.is_empty() {
            self.part_remaining -= copy(rest, self.part_remaining, out);
        }
        self.header_remaining.is_empty() && self.part_remaining == 0
    }

    /// Begins the frame whose header comes next in the input; false if that is incomplete.
    fn begin_frame(&mut self, rest: &mut &[u8]) -> bool {
        let Some((header, payload)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() else { return false };
        let [high, middle, low, kind, flags, ..] = *header;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        // Frames of a kind that h2 does not know are ignored, however many they are.
        let is_splittable = kind == DATA_FRAME || kind > CONTINUATION_FRAME;
        // h2 refuses larger ones.
        let is_large = length > MAX_PART_BYTES && length <= MAX_FRAME_BYTES as usize;
        let is_split = is_splittable && is_large;
        let is_padded = is_split && kind == DATA_FRAME && flags & PADDED_FLAG > 0;
        let Some(&padding) = payload.first().or((!is_padded).then_some(&0)) else { return false };
        self.header[..FRAME_HEADER_BYTES].copy_from_slice(header);
        *rest = payload;
        self.later_remaining = length;
        if is_padded {
            *rest = &rest[1..];
            self.later_remaining -= 1 + usize::from(padding);
            self.padding = Some(padding);
        }
        if is_split {
            self.end_stream = flags & END_STREAM_FLAG;
            self.header[4] &= !(END_STREAM_FLAG | PADDED_FLAG);
        } else {
            (self.header_remaining, self.part_remaining) = (0..FRAME_HEADER_BYTES, length);
            self.later_remaining = 0;
        }
        true
    }

    /// Bytes of the input that the next part takes; 0: the frame has ended.
    fn next_part_bytes(&self, max_bytes: usize) -> usize {
        match self.later_remaining {
            last if last <= max_bytes => last + usize::from(self.padding.unwrap_or(0)),
            rest if rest < 2 * max_bytes => rest.div_ceil(2),
            _ => max_bytes,
        }
    }

    /// Begins the next part of a large frame; false if it has ended.
    fn begin_part(&mut self, max_bytes: usize) -> bool {
        self.part_remaining = self.next_part_bytes(max_bytes);
        if self.part_remaining == 0 {
            return false;
        }
        let is_last = self.later_remaining <= max_bytes;
        self.later_remaining = if is_last { 0 } else { self.later_remaining - self.part_remaining };
        let (mut header_bytes, mut length) = (FRAME_HEADER_BYTES, self.part_remaining);
        if is_last {
            self.header[4] |= self.end_stream;
            if let Some(padding) = self.padding.take() {
                self.header[4] |= PADDED_FLAG;
                self.header[FRAME_HEADER_BYTES] = padding;
                (header_bytes, length) = (PADDED_HEADER_BYTES, 1 + length);
            }
        }
        let [_, high, middle, low] = (length as u32).to_be_bytes();
        self.header[..3].copy_from_slice(&[high, middle, low]);
        self.header_remaining = 0..header_bytes;
        true
    }
}

/// Moves at most `max_bytes` from `rest` into `out`, as far as they fit; returns how many.
fn copy(rest: &mut &[u8], max_bytes: usize, out: &mut ReadBuf<'_>) -> usize {
    let bytes = rest.len().min(max_bytes).min(out.remaining());
    let (now, later) = rest.split_at(bytes);
    out.put_slice(now);
    *rest = later;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    type JoinedFrame = (u8, u8, Vec<u8>);

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, high, middle, low] = (length as u32).to_be_bytes();
        let payload = (0..length).map(|nth| (nth % 251) as u8);
        [high, middle, low, kind, flags, 0, 0, 0, 1].into_iter().chain(payload).collect()
    }

    fn padded_frame(flags: u8, length: usize, padding: u8) -> Vec<u8> {
        let mut frame = frame(DATA_FRAME, flags, length);
        frame[FRAME_HEADER_BYTES] = padding;
        frame
    }

    /// Kind, flags and payload without padding of the frames after the preface, parts of a frame joined; the number of bytes
    /// that count against a window; the largest payload.
    fn joined(bytes: &[u8]) -> (Vec<JoinedFrame>, usize, usize) {
        let (mut frames, mut counted, mut largest) = (Vec::<JoinedFrame>::new(), 0, 0);
        let mut bytes = bytes.strip_prefix(HTTP2_PREFACE).expect("the preface");
        while let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let (mut payload, rest) = rest.split_at(length);
            let [kind, mut flags] = [header[3], header[4]];
            counted += if kind == DATA_FRAME { length } else { 0 };
            largest = largest.max(length);
            if kind == DATA_FRAME && flags & PADDED_FLAG > 0 {
                flags &= !PADDED_FLAG;
                payload = &payload[1..length - usize::from(payload[0])];
            }
            match frames.last_mut().filter(|(last, flags, _)| *last == kind && *flags == 0) {
                Some((_, joined_flags, joined)) => {
                    *joined_flags = flags;
                    joined.extend_from_slice(payload);
                }
                None => frames.push((kind, flags, payload.to_vec())),
            }
            bytes = rest;
        }
        assert!(bytes.is_empty());
        (frames, counted, largest)
    }

    /// The smallest payload of a DATA frame that does not end its stream.
    fn smallest_data(bytes: &[u8]) -> usize {
        let (mut smallest, mut bytes) = (usize::MAX, &bytes[HTTP2_PREFACE.len()..]);
        while let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            if header[3] == DATA_FRAME && header[4] & END_STREAM_FLAG == 0 {
                smallest = smallest.min(length);
            }
            bytes = &rest[length..];
        }
        smallest
    }

    #[test]
    fn large_frames_are_passed_in_parts() {
        let frames = [
            frame(4, 0, 6),
            frame(1, 4, 3000),
            frame(0, 0, 16_384),
            frame(8, 0, 4),
            frame(0, END_STREAM_FLAG, 1025),
            frame(0x77, 0, 9000),
            padded_frame(PADDED_FLAG, 2000, 200),
            padded_frame(PADDED_FLAG | END_STREAM_FLAG, 1500, 0),
            padded_frame(PADDED_FLAG | END_STREAM_FLAG, 30, 20),
            frame(0, END_STREAM_FLAG, 0),
        ];
        let bytes = [HTTP2_PREFACE, &frames.concat()].concat();
        let (expected, counted, _) = joined(&bytes);
        for (input_bytes, space, passed_in_parts) in
            [(usize::MAX, usize::MAX, usize::MAX), (900, 5, usize::MAX), (1100, 50, 9_000), (24, 4096, 24)]
        {
            let (mut splitter, mut passed, mut taken) = (FrameSplitter::default(), Vec::new(), 0);
            let mut available = input_bytes.min(bytes.len());
            while taken < bytes.len() || splitter.owes_header() {
                let mut space = vec![0; space.min(40_000)];
                let mut out = ReadBuf::new(&mut space);
                let input = &bytes[taken..available];
                let consumed = match taken < passed_in_parts {
                    true => splitter.pass(input, &mut out),
                    false => splitter.pass_all(input, &mut out),
                };
                taken += consumed;
                if consumed == 0 && out.filled().is_empty() {
                    assert!(available < bytes.len(), "something is always passed");
                    available = available.saturating_add(input_bytes).min(bytes.len());
                }
                passed.extend_from_slice(out.filled());
            }
            let (frames, still_counted, largest) = joined(&passed);
            assert!(frames == expected && still_counted == counted, "{input_bytes} {passed_in_parts}");
            if passed_in_parts == usize::MAX {
                assert_eq!(largest, 3000, "only HEADERS are passed as they came");
            }
            assert!(
                passed_in_parts != usize::MAX || smallest_data(&passed) >= 512,
                "h2 counts small frames as a flood"
            );
        }
    }
}
