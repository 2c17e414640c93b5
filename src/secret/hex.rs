//! Hexadecimal digits, in which keys, hashes and ids are written: they need no quoting in a command line, URL or file.

/// The digits in lower case.
pub const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Encodes bytes as digits in lower case.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| digits(*byte)).map(char::from).collect()
}

/// The two digits of a byte.
pub fn digits(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)])
}

/// Writes the last digits of a number, filling the buffer.
pub fn write_number(buf: &mut [u8], mut number: u64) {
    for digit in buf.iter_mut().rev() {
        *digit = DIGITS[(number % 16) as usize];
        number /= 16;
    }
}

/// Decodes exactly `N` bytes from digits in either case.
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    (text.len() == 2 * N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_reads_what_encode_wrote() {
        let bytes = [0x00, 0x0f, 0xa5, 0xff];
        assert_eq!(encode(&bytes), "000fa5ff");
        assert_eq!(decode(b"000fA5ff"), Some(bytes));
        for invalid in ["000fa5f", "000fa5ff0", "000fa5f+", "000fa5fg", ""] {
            assert_eq!(decode::<4>(invalid.as_bytes()), None, "{invalid}");
        }
    }
}
