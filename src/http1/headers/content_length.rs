//! The number in `Content-Length`, kept as it was sent: a cached header block has another one in each message.

/// Maximum number of digits in `Content-Length`.
const MAX_LENGTH_DIGITS: usize = 20;

/// The number in `Content-Length`, as it was sent.
#[derive(Clone, Copy)]
pub(super) struct ContentLength {
    value: Option<u64>,
    digits: [u8; MAX_LENGTH_DIGITS],
    digit_count: u8,
}

impl ContentLength {
    /// Parses 1 to 20 digits; a larger number than 64 bits has no [`ContentLength::value`].
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let count =
            u8::try_from(text.len()).ok().filter(|count| (1..=MAX_LENGTH_DIGITS as u8).contains(count))?;
        let number = text.iter().try_fold(Some(0u64), |sum, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            Some(sum.and_then(|sum| sum.checked_mul(10)?.checked_add(digit)))
        })?;
        let mut digits = Self { value: number, digits: [0; MAX_LENGTH_DIGITS], digit_count: count };
        digits.digits[..text.len()].copy_from_slice(text);
        Some(digits)
    }

    /// The number, if it fits into 64 bits.
    pub(super) fn value(&self) -> Option<u64> {
        self.value
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.digits[..usize::from(self.digit_count)]
    }
}
