//! How a body is framed on an HTTP/1 connection, in either direction: decided once from its head, then taken off byte by
//! byte. Strict: what two parsers could read in two ways is an error.

mod chunked;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version};

pub use self::chunked::ChunkedDecoder;
use super::headers::{Headers, KnownHeader};

/// Body bytes below this are copied out of the read buffer: a slice of it would keep all of it alive.
pub const MIN_SLICE_BYTES: usize = 4 * 1024;

/// A message that cannot be trusted to end where it seems to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// `Content-Length` is absent of sense or said twice.
    #[error("its Content-Length is not one number")]
    InvalidContentLength,
    /// A coding other than one `chunked`.
    #[error("its Transfer-Encoding is not exactly \"chunked\"")]
    InvalidTransferEncoding,
    /// A coding where there can be none: beside a length, or before HTTP/1.1.
    #[error("it has a Transfer-Encoding beside a Content-Length, or is of HTTP/1.0")]
    UnexpectedTransferEncoding,
    /// A chunk that two parsers could read in two ways.
    #[error("its chunks are not well formed")]
    InvalidChunk,
    /// Far more chunk-size lines, extensions and trailers than data.
    #[error("its chunk framing is more than 64 KiB and 16 times its data")]
    ChunkOverhead,
}

/// What is left of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Nothing.
    Done,
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked(ChunkedDecoder),
    /// All that comes until the connection closes.
    UntilClose,
    /// Nobody knows: what came was not well formed.
    Malformed,
}

/// One step of taking a body off the buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyEvent {
    /// A piece of the body.
    Data(Bytes),
    /// More must be read first.
    NeedMore,
    /// The body has ended.
    End,
}

impl Framing {
    /// A chunked body from its first byte.
    pub fn chunked() -> Self {
        Self::Chunked(ChunkedDecoder::default())
    }

    /// How many bytes of chunk framing were taken so far of a body that has not ended.
    pub fn overhead_bytes(&self) -> u64 {
        match self {
            Self::Chunked(chunked) => chunked.overhead_bytes(),
            _ => 0,
        }
    }

    /// Reads it off a request's head (RFC 9112 §6.3).
    pub fn of_request(version: Version, fields: &Headers) -> Result<Self, FramingError> {
        let chunked = is_chunked(fields)?;
        let mut lengths = fields.values(KnownHeader::ContentLength);
        let length = match fields.cached_content_length() {
            None => lengths.next().map(parse_content_length).transpose()?,
            known => known,
        };
        match (chunked, length) {
            _ if fields.cached_content_length().is_none() && lengths.next().is_some() => {
                Err(FramingError::InvalidContentLength)
            }
            (true, Some(_)) => Err(FramingError::UnexpectedTransferEncoding),
            (true, None) if version < Version::HTTP_11 => Err(FramingError::UnexpectedTransferEncoding),
            (true, None) => Ok(Self::chunked()),
            (false, None | Some(0)) => Ok(Self::Done),
            (false, Some(length)) => Ok(Self::Length(length)),
        }
    }

    /// Reads it off an answer's head (RFC 9112 §6.3).
    pub fn of_response(method: &Method, status: StatusCode, fields: &Headers) -> Result<Self, FramingError> {
        let bodiless = method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
        let (chunked, length) = (is_chunked(fields)?, response_content_length(fields)?);
        Ok(match length {
            Some(_) if chunked => return Err(FramingError::UnexpectedTransferEncoding),
            _ if bodiless => Self::Done,
            _ if chunked => Self::chunked(),
            Some(0) => Self::Done,
            Some(length) => Self::Length(length),
            None => Self::UntilClose,
        })
    }

    /// Takes the next piece of the body off `buffer`. After an error nothing is taken any more.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<BodyEvent, FramingError> {
        let step = self.decode_inner(buffer);
        if step.is_err() {
            *self = Self::Malformed;
        }
        step
    }

    fn decode_inner(&mut self, buffer: &mut BytesMut) -> Result<BodyEvent, FramingError> {
        match self {
            Self::Malformed => Err(FramingError::InvalidChunk),
            Self::Done => Ok(BodyEvent::End),
            _ if buffer.is_empty() => Ok(BodyEvent::NeedMore),
            Self::UntilClose => {
                let here = buffer.len();
                Ok(BodyEvent::Data(split_to(buffer, here)))
            }
            Self::Length(left) => {
                let piece = take_up_to(buffer, left);
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(BodyEvent::Data(piece))
            }
            Self::Chunked(chunked) => {
                let step = chunked.decode(buffer)?;
                if step == BodyEvent::End {
                    *self = Self::Done;
                }
                Ok(step)
            }
        }
    }
}

/// Whether a line of a head ends in LF alone: that is two lines to one reader and one to another.
pub fn has_bare_lf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

/// Whether a head says that its body is chunked, and nothing else of it.
fn is_chunked(fields: &Headers) -> Result<bool, FramingError> {
    let mut codings = fields.values(KnownHeader::TransferEncoding);
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(FramingError::InvalidTransferEncoding),
    }
}

/// The one Content-Length of an answer's head; the same number said several times is still one.
pub fn response_content_length(fields: &Headers) -> Result<Option<u64>, FramingError> {
    if let Some(known) = fields.cached_content_length().filter(|known| *known <= i64::MAX as u64) {
        return Ok(Some(known));
    }
    let mut length = None;
    for value in fields.values(KnownHeader::ContentLength) {
        let number = parse_content_length(value)?;
        if number > i64::MAX as u64 || length.replace(number).is_some_and(|before| before != number) {
            return Err(FramingError::InvalidContentLength);
        }
    }
    Ok(length)
}

/// Digits and nothing else.
fn parse_content_length(value: &[u8]) -> Result<u64, FramingError> {
    let digit = |sum: u64, digit: &u8| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    };
    let is_sane = (1..=20).contains(&value.len());
    value.iter().try_fold(0, digit).filter(|_| is_sane).ok_or(FramingError::InvalidContentLength)
}

/// Takes at most `left` bytes off the buffer.
fn take_up_to(buffer: &mut BytesMut, left: &mut u64) -> Bytes {
    let bytes = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= bytes as u64;
    split_to(buffer, bytes)
}

/// Takes this many bytes off the buffer; see [`MIN_SLICE_BYTES`].
pub fn split_to(buffer: &mut BytesMut, bytes: usize) -> Bytes {
    if bytes >= MIN_SLICE_BYTES {
        return buffer.split_to(bytes).freeze();
    }
    let piece = Bytes::copy_from_slice(&buffer[..bytes]);
    buffer.advance(bytes);
    piece
}

/// The same bytes, copied where they may be a small slice of something large; see [`MIN_SLICE_BYTES`].
pub fn copy_if_small(piece: Bytes) -> Bytes {
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
                match framing.decode(&mut buffer)? {
                    BodyEvent::Data(piece) => body.extend_from_slice(&piece),
                    BodyEvent::NeedMore => break,
                    BodyEvent::End => return Ok((body, true)),
                }
            }
        }
        Ok((body, false))
    }

    proptest! {
        #[test]
        fn chunked_body_split_anywhere_decodes_the_same(
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
        fn garbage_input_never_panics(
            wire in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(0usize..20, 0..20),
        ) {
            let _ = decode(&wire, &cuts);
        }
    }

    #[test]
    fn decode_after_error_keeps_failing() {
        let mut framing = Framing::chunked();
        let mut buffer = BytesMut::from(&b"hello\r\n0\r\n\r\n"[..]);
        for _ in 0..3 {
            assert_eq!(framing.decode(&mut buffer), Err(FramingError::InvalidChunk));
        }
    }

    #[test]
    fn ambiguous_chunks_are_rejected() {
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
            assert_eq!(decode(wire.as_bytes(), &[]), Err(FramingError::InvalidChunk), "{wire:?}");
        }
    }

    fn response_framing(headers: &[(&str, &str)]) -> Result<Framing, FramingError> {
        Framing::of_response(&Method::GET, StatusCode::OK, &Headers::from_pairs(headers))
    }

    fn request_framing(headers: &[(&str, &str)]) -> Result<Framing, FramingError> {
        Framing::of_request(Version::HTTP_11, &Headers::from_pairs(headers))
    }

    #[test]
    fn head_determines_body_framing() {
        for framing in [response_framing, request_framing] {
            assert_eq!(framing(&[("content-length", "5")]), Ok(Framing::Length(5)));
            assert_eq!(framing(&[("Transfer-Encoding", "Chunked")]), Ok(Framing::chunked()));
            for bad in ["", "+5", "-5", "5, 5", "5 ", "0x5", "99999999999999999999", "000000000000000000005"]
            {
                assert_eq!(
                    framing(&[("content-length", bad)]),
                    Err(FramingError::InvalidContentLength),
                    "{bad:?}"
                );
            }
            let two = [("content-length", "5"), ("content-length", "6")];
            assert_eq!(framing(&two), Err(FramingError::InvalidContentLength));
            for bad in ["x, chunked", "chunked, chunked", "identity", "gzip", "", "chunked;q=1"] {
                assert_eq!(
                    framing(&[("transfer-encoding", bad)]),
                    Err(FramingError::InvalidTransferEncoding),
                    "{bad:?}"
                );
            }
            let both = [("transfer-encoding", "chunked"), ("content-length", "5")];
            assert_eq!(framing(&both), Err(FramingError::UnexpectedTransferEncoding));
            let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
            assert_eq!(framing(&twice), Err(FramingError::InvalidTransferEncoding));
        }
        let twice = [("content-length", "5"), ("content-length", "5")];
        assert_eq!(
            (response_framing(&twice), request_framing(&twice)),
            (Ok(Framing::Length(5)), Err(FramingError::InvalidContentLength))
        );
        assert_eq!(
            (response_framing(&[]), request_framing(&[])),
            (Ok(Framing::UntilClose), Ok(Framing::Done))
        );
        let chunked = Headers::from_pairs(&[("transfer-encoding", "chunked")]);
        assert_eq!(
            Framing::of_request(Version::HTTP_10, &chunked),
            Err(FramingError::UnexpectedTransferEncoding)
        );
    }
}
