//! The chunked transfer coding (RFC 9112 §7.1), with a bound on its overhead.

use bytes::{Buf, BytesMut};

use super::{BodyEvent, FramingError, take_up_to};

/// Maximum length of a chunk-size line with its extensions.
const MAX_CHUNK_LINE_BYTES: usize = 1024;
/// Maximum size of the trailer section.
const MAX_TRAILER_BYTES: usize = 16 * 1024;
/// Framing (chunk-size lines, extensions, trailers) that any body may have.
const FREE_OVERHEAD_BYTES: u64 = 64 * 1024;
/// Further framing allowed per byte of data: one-byte chunks have 5 or 6.
const MAX_OVERHEAD_PER_BYTE: u64 = 16;

/// Decoder of one chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChunkedDecoder {
    state: ChunkedState,
    data_bytes: u64,
    overhead_bytes: u64,
}

/// Position of the next byte in the chunked coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ChunkedState {
    /// In a chunk-size line.
    #[default]
    Size,
    /// In a chunk with this many bytes remaining.
    Data(u64),
    /// Before the CRLF that closes a chunk.
    DataEnd,
    /// In the trailers, of which this many bytes were seen.
    Trailers(usize),
}

impl ChunkedDecoder {
    /// Bytes of framing consumed so far.
    pub(super) fn overhead_bytes(&self) -> u64 {
        self.overhead_bytes
    }

    /// Takes the next bytes of data off the buffer.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<BodyEvent, FramingError> {
        loop {
            match &mut self.state {
                ChunkedState::Size => {
                    let Some(line) = take_line(buffer, MAX_CHUNK_LINE_BYTES)? else {
                        return Ok(BodyEvent::NeedMore);
                    };
                    self.add_overhead(line.len() + 2)?;
                    self.state = match parse_chunk_size(&line)? {
                        0 => ChunkedState::Trailers(0),
                        size => ChunkedState::Data(size),
                    };
                }
                ChunkedState::Data(_) if buffer.is_empty() => return Ok(BodyEvent::NeedMore),
                ChunkedState::Data(remaining) => {
                    let chunk = take_up_to(buffer, remaining);
                    if *remaining == 0 {
                        self.state = ChunkedState::DataEnd;
                    }
                    self.data_bytes += chunk.len() as u64;
                    return Ok(BodyEvent::Data(chunk));
                }
                ChunkedState::DataEnd => match buffer.get(..2) {
                    None if b"\r\n".starts_with(buffer) => return Ok(BodyEvent::NeedMore),
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        self.state = ChunkedState::Size;
                        self.add_overhead(2)?;
                    }
                    _ => return Err(FramingError::InvalidChunk),
                },
                ChunkedState::Trailers(seen) => {
                    let Some(line) = take_line(buffer, MAX_TRAILER_BYTES - *seen)? else {
                        return Ok(BodyEvent::NeedMore);
                    };
                    if !line.is_empty() && !is_trailer_line(&line) {
                        return Err(FramingError::InvalidChunk);
                    }
                    *seen = (*seen + line.len() + 2).min(MAX_TRAILER_BYTES);
                    self.add_overhead(line.len() + 2)?;
                    if line.is_empty() {
                        return Ok(BodyEvent::End);
                    }
                }
            }
        }
    }

    /// Counts framing bytes and fails if they exceed the bound.
    fn add_overhead(&mut self, bytes: usize) -> Result<(), FramingError> {
        self.overhead_bytes += bytes as u64;
        let max_overhead =
            self.data_bytes.saturating_mul(MAX_OVERHEAD_PER_BYTE).saturating_add(FREE_OVERHEAD_BYTES);
        if self.overhead_bytes > max_overhead { Err(FramingError::ChunkOverhead) } else { Ok(()) }
    }
}

/// Takes a complete line off the buffer, without its CRLF.
fn take_line(buffer: &mut BytesMut, max_bytes: usize) -> Result<Option<BytesMut>, FramingError> {
    let Some(at) = memchr::memchr(b'\n', &buffer[..]) else {
        return if buffer.len() > max_bytes { Err(FramingError::InvalidChunk) } else { Ok(None) };
    };
    if at > max_bytes || at == 0 || buffer[at - 1] != b'\r' {
        return Err(FramingError::InvalidChunk);
    }
    let mut line = buffer.split_to(at + 1);
    line.truncate(at - 1);
    Ok(Some(line))
}

/// Parses a chunk size: hexadecimal digits, optionally followed by an extension, which is ignored.
fn parse_chunk_size(line: &[u8]) -> Result<u64, FramingError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let before_extension = line[digits..].iter().find(|byte| !matches!(byte, b' ' | b'\t'));
    let has_extension = digits < line.len();
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    if !(1..=15).contains(&digits)
        || (has_extension && before_extension != Some(&b';'))
        || line.iter().any(is_control)
    {
        return Err(FramingError::InvalidChunk);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| FramingError::InvalidChunk)?;
    u64::from_str_radix(text, 16).map_err(|_| FramingError::InvalidChunk)
}

/// Whether a line has the form of a header: a name, a colon, no control characters.
fn is_trailer_line(line: &[u8]) -> bool {
    let name = line.iter().position(|byte| *byte == b':').unwrap_or_default();
    let is_token_char = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    name > 0 && line[..name].iter().all(is_token_char) && !line[name..].iter().any(is_control)
}
