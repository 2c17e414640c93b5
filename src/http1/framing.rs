//! Body framing of HTTP/1 messages in both directions (RFC 9112 §6): determined from the head, then decoded
//! incrementally. Strict: what two parsers could read differently is an error.

mod chunked;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version};

pub use self::chunked::ChunkedDecoder;
use super::headers::{HeaderKind, Headers};

use crate::{display_text, text, text::Text};

/// Body bytes below this size are copied out of the read buffer: a slice would keep the whole buffer alive.
pub const MIN_SLICE_BYTES: usize = 4 * 1024;

/// A message whose end is ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// `Content-Length` is not a number, or repeated; a response may repeat the same one.
    InvalidContentLength,
    /// A transfer coding other than a single `chunked`.
    InvalidTransferEncoding,
    /// A transfer coding together with a length, or before HTTP/1.1.
    UnexpectedTransferEncoding,
    /// A chunk that two parsers could read differently.
    InvalidChunk,
    /// Far more chunk-size lines, extensions and trailers than data.
    ChunkOverhead,
}

display_text!(FramingError);

impl FramingError {
    /// What is ambiguous.
    pub fn text(self) -> Text {
        match self {
            Self::InvalidContentLength => text!("invalid Content-Length", "Content-Length 无效"),
            Self::InvalidTransferEncoding => text!(
                "unsupported Transfer-Encoding, must be chunked",
                "不支持的 Transfer-Encoding，只能是 chunked"
            ),
            Self::UnexpectedTransferEncoding => text!(
                "Transfer-Encoding with Content-Length or in HTTP/1.0",
                "Transfer-Encoding 与 Content-Length 同时出现，或出现在 HTTP/1.0 中"
            ),
            Self::InvalidChunk => text!("malformed chunked body", "分块正文格式错误"),
            Self::ChunkOverhead => text!(
                "chunk framing exceeds 64 KiB plus 16 times the data",
                "分块格式的开销超过 64 KiB 加数据的 16 倍"
            ),
        }
    }
}

/// Framing of the rest of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The body has ended.
    Done,
    /// This many bytes.
    Length(u64),
    /// Chunked coding.
    Chunked(ChunkedDecoder),
    /// Everything until the connection closes.
    UntilClose,
    /// Undefined after a framing error.
    Malformed,
}

/// Result of one decoding step.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyEvent {
    /// A chunk of the body.
    Data(Bytes),
    /// More bytes must be read first.
    NeedMore,
    /// The body has ended.
    End,
}

impl Framing {
    /// A chunked body at its first byte.
    pub fn chunked() -> Self {
        Self::Chunked(ChunkedDecoder::default())
    }

    /// Bytes of chunk framing consumed so far; 0 once the body has ended.
    pub fn overhead_bytes(&self) -> u64 {
        match self {
            Self::Chunked(chunked) => chunked.overhead_bytes(),
            _ => 0,
        }
    }

    /// Determines the framing of a request (RFC 9112 §6.3).
    pub fn of_request(version: Version, headers: &Headers) -> Result<Self, FramingError> {
        let chunked = is_chunked(headers)?;
        let mut lengths = headers.values(HeaderKind::ContentLength);
        let length = match headers.cached_content_length() {
            None => lengths.next().map(parse_content_length).transpose()?,
            cached => cached,
        };
        match (chunked, length) {
            _ if headers.cached_content_length().is_none() && lengths.next().is_some() => {
                Err(FramingError::InvalidContentLength)
            }
            (true, Some(_)) => Err(FramingError::UnexpectedTransferEncoding),
            (true, None) if version < Version::HTTP_11 => Err(FramingError::UnexpectedTransferEncoding),
            (true, None) => Ok(Self::chunked()),
            (false, None | Some(0)) => Ok(Self::Done),
            (false, Some(length)) => Ok(Self::Length(length)),
        }
    }

    /// Determines the framing of a response (RFC 9112 §6.3).
    pub fn of_response(method: &Method, status: StatusCode, headers: &Headers) -> Result<Self, FramingError> {
        let bodiless = method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
        let (chunked, length) = (is_chunked(headers)?, response_content_length(headers)?);
        Ok(match length {
            Some(_) if chunked => return Err(FramingError::UnexpectedTransferEncoding),
            _ if bodiless => Self::Done,
            _ if chunked => Self::chunked(),
            Some(0) => Self::Done,
            Some(length) => Self::Length(length),
            None => Self::UntilClose,
        })
    }

    /// Takes the next chunk of the body off `buffer`. Every call after an error fails.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<BodyEvent, FramingError> {
        let event = self.decode_inner(buffer);
        if event.is_err() {
            *self = Self::Malformed;
        }
        event
    }

    fn decode_inner(&mut self, buffer: &mut BytesMut) -> Result<BodyEvent, FramingError> {
        match self {
            Self::Malformed => Err(FramingError::InvalidChunk),
            Self::Done => Ok(BodyEvent::End),
            _ if buffer.is_empty() => Ok(BodyEvent::NeedMore),
            Self::UntilClose => {
                let available = buffer.len();
                Ok(BodyEvent::Data(split_to(buffer, available)))
            }
            Self::Length(remaining) => {
                let chunk = take_up_to(buffer, remaining);
                if *remaining == 0 {
                    *self = Self::Done;
                }
                Ok(BodyEvent::Data(chunk))
            }
            Self::Chunked(chunked) => {
                let event = chunked.decode(buffer)?;
                if event == BodyEvent::End {
                    *self = Self::Done;
                }
                Ok(event)
            }
        }
    }
}

/// Whether the only transfer coding is `chunked`.
fn is_chunked(headers: &Headers) -> Result<bool, FramingError> {
    let mut codings = headers.values(HeaderKind::TransferEncoding);
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(FramingError::InvalidTransferEncoding),
    }
}

/// The `Content-Length` of a response; equal repeated values are accepted.
pub fn response_content_length(headers: &Headers) -> Result<Option<u64>, FramingError> {
    if let Some(cached) = headers.cached_content_length().filter(|cached| *cached <= i64::MAX as u64) {
        return Ok(Some(cached));
    }
    let mut length = None;
    for value in headers.values(HeaderKind::ContentLength) {
        let number = parse_content_length(value)?;
        if number > i64::MAX as u64 || length.replace(number).is_some_and(|before| before != number) {
            return Err(FramingError::InvalidContentLength);
        }
    }
    Ok(length)
}

/// Parses 1 to 20 digits and nothing else.
fn parse_content_length(value: &[u8]) -> Result<u64, FramingError> {
    let digit = |sum: u64, digit: &u8| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    };
    let is_sane = (1..=20).contains(&value.len());
    value.iter().try_fold(0, digit).filter(|_| is_sane).ok_or(FramingError::InvalidContentLength)
}

/// Takes at most `remaining` bytes off the buffer.
fn take_up_to(buffer: &mut BytesMut, remaining: &mut u64) -> Bytes {
    let bytes = usize::try_from(*remaining).unwrap_or(usize::MAX).min(buffer.len());
    *remaining -= bytes as u64;
    split_to(buffer, bytes)
}

/// Takes this many bytes off the buffer; small ones are copied, see [`MIN_SLICE_BYTES`].
pub fn split_to(buffer: &mut BytesMut, bytes: usize) -> Bytes {
    if bytes >= MIN_SLICE_BYTES {
        return buffer.split_to(bytes).freeze();
    }
    let chunk = Bytes::copy_from_slice(&buffer[..bytes]);
    buffer.advance(bytes);
    chunk
}

/// Appends further chunks, which `next` returns while it can, to a small one, for a consumer whose cost is per chunk.
pub fn coalesce(first: Bytes, mut next: impl FnMut() -> Option<Bytes>) -> Bytes {
    let mut coalesced = BytesMut::new();
    while first.len() + coalesced.len() < MIN_SLICE_BYTES
        && let Some(chunk) = next()
    {
        coalesced.extend_from_slice(&chunk);
    }
    if coalesced.is_empty() { first } else { [&first[..], &coalesced].concat().into() }
}

/// Copies a small slice, which may keep a large buffer alive; see [`MIN_SLICE_BYTES`].
pub fn copy_if_small(chunk: Bytes) -> Bytes {
    if chunk.len() >= MIN_SLICE_BYTES { chunk } else { Bytes::copy_from_slice(&chunk) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(encoded: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, bool), FramingError> {
        let (mut framing, mut buffer, mut body) = (Framing::chunked(), BytesMut::new(), Vec::new());
        let mut rest = encoded;
        for cut in cuts.iter().copied().chain([encoded.len()]) {
            let (first, later) = rest.split_at(cut.min(rest.len()));
            buffer.extend_from_slice(first);
            rest = later;
            loop {
                match framing.decode(&mut buffer)? {
                    BodyEvent::Data(chunk) => body.extend_from_slice(&chunk),
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
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            cuts in prop::collection::vec(0usize..40, 0..60),
        ) {
            let mut encoded = Vec::new();
            for chunk in &chunks {
                encoded.extend_from_slice(format!("{:x};note=1\r\n", chunk.len()).as_bytes());
                encoded.extend_from_slice(chunk);
                encoded.extend_from_slice(b"\r\n");
            }
            encoded.extend_from_slice(b"0\r\nX-Trailer: yes\r\n\r\n");
            prop_assert_eq!(decode(&encoded, &cuts), Ok((chunks.concat(), true)));
        }

        #[test]
        fn garbage_input_never_panics(
            encoded in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(0usize..20, 0..20),
        ) {
            let _ = decode(&encoded, &cuts);
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
        for encoded in [
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
            assert_eq!(decode(encoded.as_bytes(), &[]), Err(FramingError::InvalidChunk), "{encoded:?}");
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
