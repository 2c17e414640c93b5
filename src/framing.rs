//! How a body is framed on an HTTP/1 connection, in either direction: decided once from its head, then taken off byte by
//! byte. Strict: what two parsers could read in two ways is an error.

mod chunked;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version};

pub use self::chunked::Chunked;
use crate::fields::{Fields, Known};

/// Body bytes below this are copied out of the read buffer: a slice of it would keep all of it alive.
pub const MIN_SLICE_BYTES: usize = 4 * 1024;

/// A message that cannot be trusted to end where it seems to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// `Content-Length` is absent of sense or said twice.
    #[error("its Content-Length is not one number")]
    Length,
    /// A coding other than one `chunked`.
    #[error("its Transfer-Encoding is not exactly \"chunked\"")]
    TransferEncoding,
    /// A coding where there can be none: beside a length, or before HTTP/1.1.
    #[error("it has a Transfer-Encoding beside a Content-Length, or is of HTTP/1.0")]
    TwoFramings,
    /// A chunk that two parsers could read in two ways.
    #[error("its chunks are not well formed")]
    Chunk,
    /// Far more chunk-size lines, extensions and trailers than data.
    #[error("its chunk framing is more than 64 KiB and 16 times its data")]
    Overhead,
}

/// What is left of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Nothing.
    Done,
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
    /// All that comes until the connection closes.
    UntilClose,
    /// Nobody knows: what came was not well formed.
    Broken,
}

/// One step of taking a body off the buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A piece of the body.
    Data(Bytes),
    /// More must be read first.
    Starved,
    /// The body has ended.
    End,
}

impl Framing {
    /// A chunked body from its first byte.
    pub fn chunked() -> Self {
        Self::Chunked(Chunked::default())
    }

    /// How many bytes of chunk framing were taken so far of a body that has not ended.
    pub fn overhead(&self) -> u64 {
        match self {
            Self::Chunked(chunked) => chunked.overhead(),
            _ => 0,
        }
    }

    /// Reads it off a request's head (RFC 9112 §6.3).
    pub fn of_request(version: Version, fields: &Fields) -> Result<Self, FramingError> {
        let chunked = is_chunked(fields)?;
        let mut lengths = fields.all(Known::ContentLength);
        let length = match fields.known_length() {
            None => lengths.next().map(number).transpose()?,
            known => known,
        };
        match (chunked, length) {
            _ if fields.known_length().is_none() && lengths.next().is_some() => Err(FramingError::Length),
            (true, Some(_)) => Err(FramingError::TwoFramings),
            (true, None) if version < Version::HTTP_11 => Err(FramingError::TwoFramings),
            (true, None) => Ok(Self::chunked()),
            (false, None | Some(0)) => Ok(Self::Done),
            (false, Some(length)) => Ok(Self::Length(length)),
        }
    }

    /// Reads it off an answer's head (RFC 9112 §6.3).
    pub fn of_answer(method: &Method, status: StatusCode, fields: &Fields) -> Result<Self, FramingError> {
        let bodiless = method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
        let (chunked, length) = (is_chunked(fields)?, answer_length(fields)?);
        Ok(match length {
            Some(_) if chunked => return Err(FramingError::TwoFramings),
            _ if bodiless => Self::Done,
            _ if chunked => Self::chunked(),
            Some(0) => Self::Done,
            Some(length) => Self::Length(length),
            None => Self::UntilClose,
        })
    }

    /// Takes the next piece of the body off `buffer`. After an error nothing is taken any more.
    pub fn step(&mut self, buffer: &mut BytesMut) -> Result<Step, FramingError> {
        let step = self.take_step(buffer);
        if step.is_err() {
            *self = Self::Broken;
        }
        step
    }

    fn take_step(&mut self, buffer: &mut BytesMut) -> Result<Step, FramingError> {
        match self {
            Self::Broken => Err(FramingError::Chunk),
            Self::Done => Ok(Step::End),
            _ if buffer.is_empty() => Ok(Step::Starved),
            Self::UntilClose => {
                let here = buffer.len();
                Ok(Step::Data(split(buffer, here)))
            }
            Self::Length(left) => {
                let piece = take(buffer, left);
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Step::Data(piece))
            }
            Self::Chunked(chunked) => {
                let step = chunked.step(buffer)?;
                if step == Step::End {
                    *self = Self::Done;
                }
                Ok(step)
            }
        }
    }
}

/// Whether a line of a head ends in LF alone: that is two lines to one reader and one to another.
pub fn has_bare_line_feed(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

/// Whether a head says that its body is chunked, and nothing else of it.
fn is_chunked(fields: &Fields) -> Result<bool, FramingError> {
    let mut codings = fields.all(Known::TransferEncoding);
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(FramingError::TransferEncoding),
    }
}

/// The one Content-Length of an answer's head; the same number said several times is still one.
pub fn answer_length(fields: &Fields) -> Result<Option<u64>, FramingError> {
    if let Some(known) = fields.known_length().filter(|known| *known <= i64::MAX as u64) {
        return Ok(Some(known));
    }
    let mut length = None;
    for value in fields.all(Known::ContentLength) {
        let number = number(value)?;
        if number > i64::MAX as u64 || length.replace(number).is_some_and(|before| before != number) {
            return Err(FramingError::Length);
        }
    }
    Ok(length)
}

/// Digits and nothing else.
fn number(value: &[u8]) -> Result<u64, FramingError> {
    let digit = |sum: u64, digit: &u8| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    };
    let is_sane = (1..=20).contains(&value.len());
    value.iter().try_fold(0, digit).filter(|_| is_sane).ok_or(FramingError::Length)
}

/// Takes at most `left` bytes off the buffer.
fn take(buffer: &mut BytesMut, left: &mut u64) -> Bytes {
    let bytes = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= bytes as u64;
    split(buffer, bytes)
}

/// Takes this many bytes off the buffer; see [`MIN_SLICE_BYTES`].
pub fn split(buffer: &mut BytesMut, bytes: usize) -> Bytes {
    if bytes >= MIN_SLICE_BYTES {
        return buffer.split_to(bytes).freeze();
    }
    let piece = Bytes::copy_from_slice(&buffer[..bytes]);
    buffer.advance(bytes);
    piece
}

/// The same bytes, copied where they may be a small slice of something large; see [`MIN_SLICE_BYTES`].
pub fn detached(piece: Bytes) -> Bytes {
    if piece.len() >= MIN_SLICE_BYTES { piece } else { Bytes::copy_from_slice(&piece) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(wire: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, bool), FramingError> {
        let (mut framing, mut buffer, mut body) = (Framing::chunked(), BytesMut::new(), Vec::new());
        let mut rest = wire;
        for cut in cuts.iter().copied().chain([wire.len()]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            buffer.extend_from_slice(now);
            rest = later;
            loop {
                match framing.step(&mut buffer)? {
                    Step::Data(piece) => body.extend_from_slice(&piece),
                    Step::Starved => break,
                    Step::End => return Ok((body, true)),
                }
            }
        }
        Ok((body, false))
    }

    proptest! {
        #[test]
        fn chunks_come_out_whole_however_they_are_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            cuts in prop::collection::vec(0usize..40, 0..60),
        ) {
            let mut wire = Vec::new();
            for piece in &pieces {
                wire.extend_from_slice(format!("{:x};note=1\r\n", piece.len()).as_bytes());
                wire.extend_from_slice(piece);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\nX-Trailer: yes\r\n\r\n");
            prop_assert_eq!(decode(&wire, &cuts), Ok((pieces.concat(), true)));
        }

        #[test]
        fn garbage_never_panics(
            wire in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(0usize..20, 0..20),
        ) {
            let _ = decode(&wire, &cuts);
        }
    }

    #[test]
    fn after_an_error_there_is_no_way_on() {
        let mut framing = Framing::chunked();
        let mut buffer = BytesMut::from(&b"hello\r\n0\r\n\r\n"[..]);
        for _ in 0..3 {
            assert_eq!(framing.step(&mut buffer), Err(FramingError::Chunk));
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for wire in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "1 1\r\n",
            "1 \r\n",
            "1\x0c\r\n",
            "1;a\0\r\n",
            "1\n",
            "ffffffffffffffff\r\n",
            "1\r\naX\r\n",
            "0x1\r\n",
            "0\r\nX\r\n\r\n",
            "0\r\nX : 1\r\n\r\n",
            "0\r\n X: 1\r\n\r\n",
            "0\r\nX: 1\r\r\n\r\n",
            "0\r\n\n",
        ] {
            assert_eq!(decode(wire.as_bytes(), &[]), Err(FramingError::Chunk), "{wire:?}");
        }
    }

    fn answer(headers: &[(&str, &str)]) -> Result<Framing, FramingError> {
        Framing::of_answer(&Method::GET, StatusCode::OK, &Fields::of(headers))
    }

    fn request(headers: &[(&str, &str)]) -> Result<Framing, FramingError> {
        Framing::of_request(Version::HTTP_11, &Fields::of(headers))
    }

    #[test]
    fn a_head_says_how_its_body_ends() {
        for framing in [answer, request] {
            assert_eq!(framing(&[("content-length", "5")]), Ok(Framing::Length(5)));
            assert_eq!(framing(&[("Transfer-Encoding", "Chunked")]), Ok(Framing::chunked()));
            for bad in ["", "+5", "-5", "5, 5", "5 ", "0x5", "99999999999999999999", "000000000000000000005"]
            {
                assert_eq!(framing(&[("content-length", bad)]), Err(FramingError::Length), "{bad:?}");
            }
            let two = [("content-length", "5"), ("content-length", "6")];
            assert_eq!(framing(&two), Err(FramingError::Length));
            for bad in ["x, chunked", "chunked, chunked", "identity", "gzip", "", "chunked;q=1"] {
                assert_eq!(
                    framing(&[("transfer-encoding", bad)]),
                    Err(FramingError::TransferEncoding),
                    "{bad:?}"
                );
            }
            let both = [("transfer-encoding", "chunked"), ("content-length", "5")];
            assert_eq!(framing(&both), Err(FramingError::TwoFramings));
            let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
            assert_eq!(framing(&twice), Err(FramingError::TransferEncoding));
        }
        let twice = [("content-length", "5"), ("content-length", "5")];
        assert_eq!((answer(&twice), request(&twice)), (Ok(Framing::Length(5)), Err(FramingError::Length)));
        assert_eq!((answer(&[]), request(&[])), (Ok(Framing::UntilClose), Ok(Framing::Done)));
        let chunked = Fields::of(&[("transfer-encoding", "chunked")]);
        assert_eq!(Framing::of_request(Version::HTTP_10, &chunked), Err(FramingError::TwoFramings));
    }
}
