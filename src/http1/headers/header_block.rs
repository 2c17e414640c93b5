//! Encoded headers of a message that the proxy sends.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Header, HeaderKind};
use crate::http1::buffer_pool;

/// An encoded header block: `name: value` lines, each with its CRLF.
pub struct HeaderBlock(BytesMut);

impl Default for HeaderBlock {
    fn default() -> Self {
        Self(buffer_pool::acquire())
    }
}

impl Drop for HeaderBlock {
    fn drop(&mut self) {
        buffer_pool::release(std::mem::take(&mut self.0));
    }
}

impl HeaderBlock {
    /// Appends a header. Neither part may contain CR or LF: received headers were parsed, and the proxy's own are
    /// constants or validated.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        Header { kind: HeaderKind::Other, name, value }.encode(&mut self.0);
    }

    /// The buffer, for appending complete lines.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.0
    }

    /// The encoded lines.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same headers for HTTP/2. A line that is not a valid HTTP/2 header is left out.
    pub fn to_header_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        let mut rest = &self.0[..];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let line = rest[..end].trim_ascii_end();
            rest = &rest[end + 1..];
            let Some(colon) = memchr::memchr(b':', line) else { continue };
            let name = HeaderName::from_bytes(&line[..colon]);
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii_start());
            if let (Ok(name), Ok(value)) = (name, value) {
                map.append(name, value);
            }
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_block_is_equal_over_http1_and_http2() {
        let mut block = HeaderBlock::default();
        block.append(b"X-One", b"a: b");
        block.append(b"x-empty", b"");
        assert_eq!(block.as_bytes(), b"X-One: a: b\r\nx-empty: \r\n");
        let map = block.to_header_map();
        assert_eq!((map["x-one"].as_bytes(), map["x-empty"].as_bytes()), (&b"a: b"[..], &b""[..]));
    }
}
