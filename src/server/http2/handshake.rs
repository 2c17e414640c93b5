//! An HTTP/2 connection before its first request: hyper, whose state takes 20 KiB, begins with the first whole header block.
//!
//! Until then the proxy sends its own SETTINGS and acknowledges the client's. hyper sends both again; these are left out.

use std::io;

/// Identifiers of settings (RFC 9113 §6.5.2).
const MAX_CONCURRENT_STREAMS: u8 = 3;
const INITIAL_WINDOW_SIZE: u8 = 4;
const MAX_FRAME_SIZE: u8 = 5;
const MAX_HEADER_LIST_SIZE: u8 = 6;
/// Bytes of a frame's header.
const FRAME_HEADER_BYTES: usize = 9;
/// Acknowledges a SETTINGS frame.
pub(super) const SETTINGS_ACK: [u8; FRAME_HEADER_BYTES] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
/// Most SETTINGS frames that are acknowledged before hyper begins.
pub(super) const MAX_ACKS: usize = 4;
/// Says that the client sends too much (ENHANCE_YOUR_CALM), and that no stream was processed.
pub(super) const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];

/// The SETTINGS frame that hyper sends, byte for byte.
pub(super) fn settings() -> Vec<u8> {
    let settings = [
        (MAX_CONCURRENT_STREAMS, super::MAX_CONCURRENT_STREAMS),
        (INITIAL_WINDOW_SIZE, super::STREAM_WINDOW_BYTES),
        (MAX_FRAME_SIZE, super::MAX_FRAME_BYTES),
        (MAX_HEADER_LIST_SIZE, super::MAX_HEAD_BYTES as u32),
    ];
    let mut frame = vec![0, 0, 6 * settings.len() as u8, 4, 0, 0, 0, 0, 0];
    for (id, value) in settings {
        frame.extend([0, id]);
        frame.extend(value.to_be_bytes());
    }
    frame
}

/// What hyper sends although the client has it already.
#[derive(Debug, Default)]
pub(super) struct Repeated {
    /// Bytes of its SETTINGS frame.
    pub(super) settings: usize,
    /// SETTINGS frames that it will acknowledge.
    pub(super) acks: usize,
    /// Bytes to the end of the frame that is being written.
    frame: usize,
}

/// What becomes of the first bytes that hyper writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// So many are left out.
    Repeated(usize),
    /// So many at most are written.
    New(usize),
}

impl Repeated {
    /// Whether nothing is left to leave out.
    pub(super) fn is_over(&self) -> bool {
        self.settings == 0 && self.acks == 0 && self.frame == 0
    }

    /// What becomes of the first of these bytes, which must not be none. What is written is told to [`Repeated::wrote`].
    pub(super) fn split(&mut self, bytes: &[u8]) -> io::Result<Part> {
        if self.settings > 0 {
            let left_out = self.settings.min(bytes.len());
            self.settings -= left_out;
            return Ok(Part::Repeated(left_out));
        }
        if self.frame == 0 {
            // hyper's frames begin in one piece.
            let Some([long, middle, short, ..]) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            if bytes.starts_with(&SETTINGS_ACK) {
                self.acks -= 1;
                return Ok(Part::Repeated(FRAME_HEADER_BYTES));
            }
            self.frame = FRAME_HEADER_BYTES + u32::from_be_bytes([0, *long, *middle, *short]) as usize;
        }
        Ok(Part::New(self.frame.min(bytes.len())))
    }

    /// So many bytes of a [`Part::New`] were written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.frame -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_client_has_is_left_out() {
        let window = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 3, 0, 0];
        let written = [&settings()[..], &window, &SETTINGS_ACK, &window, &SETTINGS_ACK].concat();
        for step in [1000, 13, 9] {
            let mut repeated = Repeated { settings: settings().len(), acks: 1, frame: 0 };
            let (mut rest, mut sent) = (&written[..], Vec::<u8>::new());
            while !rest.is_empty() && !repeated.is_over() {
                match repeated.split(rest).expect("whole frame headers") {
                    Part::Repeated(bytes) => rest = &rest[bytes..],
                    Part::New(bytes) => {
                        let bytes = bytes.min(step);
                        repeated.wrote(bytes);
                        sent.extend(&rest[..bytes]);
                        rest = &rest[bytes..];
                    }
                }
            }
            sent.extend(rest);
            assert_eq!(sent, [&window[..], &window, &SETTINGS_ACK].concat(), "{step}");
        }
    }
}
