//! The chunked coding (RFC 9112 §7.1), and how much of it there may be beside the data.

use bytes::{Buf, BytesMut};

use super::{FramingError, Step, take};

/// Longest line of a chunk's size, with its extensions.
const MAX_CHUNK_LINE: usize = 1024;
/// Most bytes of trailers after the last chunk.
const MAX_TRAILERS: usize = 16 * 1024;
/// Framing (chunk-size lines, extensions, trailers) that any body may have.
const FREE_OVERHEAD_BYTES: u64 = 64 * 1024;
/// Framing that a body may have beyond that for each byte of data: chunks of one byte have 5 or 6.
const MAX_OVERHEAD_PER_BYTE: u64 = 16;

/// A chunked body that is being taken off its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chunked {
    at: Chunk,
    data: u64,
    overhead: u64,
}

/// Where in the chunked coding the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Chunk {
    /// In the line that gives a chunk's size.
    #[default]
    Size,
    /// In a chunk, with this many bytes to go.
    Data(u64),
    /// Before the line end that closes a chunk.
    DataEnd,
    /// In the trailers, with this many bytes of them seen.
    Trailers(usize),
}

impl Chunked {
    /// How many bytes of framing were taken so far.
    pub(super) fn overhead(&self) -> u64 {
        self.overhead
    }

    /// Takes the next bytes of data off the buffer.
    pub(super) fn step(&mut self, buffer: &mut BytesMut) -> Result<Step, FramingError> {
        loop {
            match &mut self.at {
                Chunk::Size => {
                    let Some(line) = line(buffer, MAX_CHUNK_LINE)? else { return Ok(Step::Starved) };
                    self.count(line.len() + 2)?;
                    self.at = match chunk_size(&line)? {
                        0 => Chunk::Trailers(0),
                        size => Chunk::Data(size),
                    };
                }
                Chunk::Data(_) if buffer.is_empty() => return Ok(Step::Starved),
                Chunk::Data(left) => {
                    let piece = take(buffer, left);
                    if *left == 0 {
                        self.at = Chunk::DataEnd;
                    }
                    self.data += piece.len() as u64;
                    return Ok(Step::Data(piece));
                }
                Chunk::DataEnd => match buffer.get(..2) {
                    None if b"\r\n".starts_with(buffer) => return Ok(Step::Starved),
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        self.at = Chunk::Size;
                        self.count(2)?;
                    }
                    _ => return Err(FramingError::Chunk),
                },
                Chunk::Trailers(seen) => {
                    let Some(line) = line(buffer, MAX_TRAILERS - *seen)? else { return Ok(Step::Starved) };
                    if !line.is_empty() && !is_trailer(&line) {
                        return Err(FramingError::Chunk);
                    }
                    *seen = (*seen + line.len() + 2).min(MAX_TRAILERS);
                    self.count(line.len() + 2)?;
                    if line.is_empty() {
                        return Ok(Step::End);
                    }
                }
            }
        }
    }

    /// Counts bytes of framing, of which there may not be many more than of data.
    fn count(&mut self, bytes: usize) -> Result<(), FramingError> {
        self.overhead += bytes as u64;
        let most = self.data.saturating_mul(MAX_OVERHEAD_PER_BYTE).saturating_add(FREE_OVERHEAD_BYTES);
        if self.overhead > most { Err(FramingError::Overhead) } else { Ok(()) }
    }
}

/// Takes a whole line off the buffer, without its line end.
fn line(buffer: &mut BytesMut, longest: usize) -> Result<Option<BytesMut>, FramingError> {
    let Some(at) = memchr::memchr(b'\n', &buffer[..]) else {
        return if buffer.len() > longest { Err(FramingError::Chunk) } else { Ok(None) };
    };
    if at > longest || at == 0 || buffer[at - 1] != b'\r' {
        return Err(FramingError::Chunk);
    }
    let mut line = buffer.split_to(at + 1);
    line.truncate(at - 1);
    Ok(Some(line))
}

/// A chunk's size: hexadecimal digits, then nothing or an extension, which means nothing to us.
fn chunk_size(line: &[u8]) -> Result<u64, FramingError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let before_extension = line[digits..].iter().find(|byte| !matches!(byte, b' ' | b'\t'));
    let extends = digits < line.len();
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    if !(1..=15).contains(&digits)
        || (extends && before_extension != Some(&b';'))
        || line.iter().any(is_control)
    {
        return Err(FramingError::Chunk);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| FramingError::Chunk)?;
    u64::from_str_radix(text, 16).map_err(|_| FramingError::Chunk)
}

/// Whether a line could be a header's: a name, a colon, and no control characters behind it.
fn is_trailer(line: &[u8]) -> bool {
    let name = line.iter().position(|byte| *byte == b':').unwrap_or_default();
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    name > 0 && line[..name].iter().all(is_letter) && !line[name..].iter().any(is_control)
}
