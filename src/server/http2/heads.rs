//! Follows a client's frames, as far as it takes to know where a request's head begins and ends.

use super::super::PREFACE;

/// Bytes before a frame's payload.
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Where in its client's frames a connection is.
#[derive(Debug)]
pub(super) struct Heads {
    /// What is still to come of the preface, or of the current frame's payload.
    skip: usize,
    /// The next frame's head, as far as it has come.
    next: [u8; FRAME_HEAD],
    have: usize,
    /// The current frame is of a head that goes on behind it.
    goes_on: bool,
    /// The current frame is of a head.
    within: bool,
    /// Bytes of heads so far.
    bytes: usize,
    /// The current frame is a SETTINGS frame that is to be acknowledged.
    in_settings: bool,
    /// SETTINGS frames so far that are to be acknowledged.
    settings: usize,
    /// A frame began that is of none of the kinds that a connection may begin with.
    has_others: bool,
}

impl Default for Heads {
    fn default() -> Self {
        Self {
            skip: PREFACE.len(),
            next: [0; FRAME_HEAD],
            have: 0,
            goes_on: false,
            within: false,
            bytes: 0,
            in_settings: false,
            settings: 0,
            has_others: false,
        }
    }
}

impl Heads {
    /// Follows the first of these bytes, which must not be none, to the end of a frame's head or payload at most. How many
    /// that were, and whether a request's head ended with them.
    pub(super) fn step(&mut self, bytes: &[u8]) -> (usize, bool) {
        if self.skip > 0 {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            self.bytes += if self.within { skipped } else { 0 };
            return (skipped, self.ends_frame());
        }
        let taken = (FRAME_HEAD - self.have).min(bytes.len());
        self.next[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        if self.have < FRAME_HEAD {
            return (taken, false);
        }
        self.have = 0;
        let [long, middle, short, kind, flags, ..] = self.next;
        self.skip = u32::from_be_bytes([0, long, middle, short]) as usize;
        self.within = matches!(kind, HEADERS | CONTINUATION);
        self.goes_on = self.within && flags & END_HEADERS == 0;
        self.bytes += if self.within { FRAME_HEAD } else { 0 };
        self.in_settings = kind == SETTINGS && flags & ACK == 0;
        self.has_others |= !matches!(kind, HEADERS | CONTINUATION | SETTINGS | WINDOW_UPDATE | PRIORITY);
        (taken, self.ends_frame())
    }

    /// Whether a head ends here.
    fn ends_frame(&mut self) -> bool {
        if self.in_settings && self.skip == 0 {
            self.in_settings = false;
            self.settings += 1;
        }
        let ends = self.within && self.skip == 0 && !self.goes_on;
        self.within &= !ends;
        ends
    }

    /// Whether a head has begun and not ended.
    pub(super) fn is_within(&self) -> bool {
        self.within
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
    pub(super) fn undecided(&self) -> usize {
        self.have
    }

    /// Bytes of heads so far, those of their frames among them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], &vec![1; usize::from(length)][..]].concat()
    }

    /// Whether a head has begun and not ended after these bytes.
    fn is_within_after(heads: &mut Heads, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            bytes = &bytes[heads.step(bytes).0..];
        }
        heads.is_within()
    }

    #[test]
    fn a_head_is_followed_from_its_first_frame_to_its_last() {
        let wire = [
            (PREFACE.to_vec(), false),
            (frame(4, 0, 6), false),
            (frame(HEADERS, END_HEADERS, 20), false),
            (frame(0, 4, 9), false),
            (frame(HEADERS, 0, 5), true),
            (frame(CONTINUATION, 0, 0), true),
            (frame(CONTINUATION, END_HEADERS, 3), false),
            (frame(HEADERS, END_HEADERS, 0), false),
        ];
        let (mut whole, mut by_byte) = (Heads::default(), Heads::default());
        for (nth, (bytes, within)) in wire.iter().enumerate() {
            assert_eq!(is_within_after(&mut whole, bytes), *within, "{nth}");
            let last = bytes.iter().map(|byte| is_within_after(&mut by_byte, &[*byte])).last();
            assert_eq!(last, Some(*within), "{nth}");
        }
        assert_eq!((whole.bytes(), by_byte.bytes()), (73, 73));
        assert!(!is_within_after(&mut whole, &frame(HEADERS, END_HEADERS, 2)[..5]));
        assert!(is_within_after(&mut whole, &frame(HEADERS, END_HEADERS, 2)[5..10]));
        assert!(!is_within_after(&mut whole, &[1]));
        assert_eq!((whole.settings(), by_byte.settings()), (1, 1));
        assert!(whole.has_others() && by_byte.has_others());
    }
}
