//! Which heads are accepted, of requests and responses: what httparse accepts, within the limits of both.

/// Maximum bytes of a head.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Why a head is refused.
pub enum HeadSyntaxError {
    /// httparse refuses it.
    Parser(httparse::Error),
    /// It has more than [`MAX_HEAD_BYTES`].
    TooLarge,
    /// A line ends in LF without CR.
    BareLf,
    /// `Connection` lists more options than are applied.
    TooManyConnectionOptions,
}

/// The length of the head that `buffer` begins with; `None` while it is incomplete.
#[inline]
pub fn head_length(
    parsed: Result<httparse::Status<usize>, httparse::Error>,
    buffer: &[u8],
) -> Result<Option<usize>, HeadSyntaxError> {
    match parsed {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => {
            if has_bare_lf(&buffer[..length]) { Err(HeadSyntaxError::BareLf) } else { Ok(Some(length)) }
        }
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD_BYTES => Ok(None),
        Ok(_) => Err(HeadSyntaxError::TooLarge),
        Err(error) => Err(HeadSyntaxError::Parser(error)),
    }
}

/// Whether a line of a head ends in a bare LF: some parsers take that for a line end and others do not.
pub fn has_bare_lf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}
