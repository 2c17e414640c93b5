//! Encoded headers of a message that the proxy sends.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Header, HeaderKind};
use crate::http1::buffer_pool;

/// Values up to this size together share one allocation. A larger block would be kept alive by a value in HPACK's table.
const MAX_SHARED_BYTES: usize = 1024;

/// Names that nearly all responses have and the http crate does not know, and whether each response has another value.
static COMMON_NAMES: [(HeaderName, bool); 6] = [
    (HeaderName::from_static("x-request-id"), true),
    (HeaderName::from_static("server-timing"), true),
    (HeaderName::from_static("x-wecom-agent"), false),
    (HeaderName::from_static("error-code"), false),
    (HeaderName::from_static("error-msg"), false),
    (HeaderName::from_static("x-w-no"), false),
];

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
    #[inline]
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

    /// The same headers for HTTP/2, with room for one more. A line that is not a valid HTTP/2 header is left out.
    ///
    /// `keeps_unique`: values that no other response has are marked so that HPACK does not put them into its table (RFC
    /// 7541 §6.2.3), where they would only displace others. Their names are found there if one value was put into it.
    pub fn to_header_map(&self, keeps_unique: bool) -> HeaderMap {
        let shared = (self.0.len() <= MAX_SHARED_BYTES).then(|| Bytes::copy_from_slice(&self.0));
        let block = shared.as_deref().unwrap_or(&self.0);
        let mut map = HeaderMap::with_capacity(memchr::memchr_iter(b'\n', block).count() + 1);
        let mut rest = block;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let line = rest[..end].trim_ascii_end();
            rest = &rest[end + 1..];
            let Some(colon) = memchr::memchr(b':', line) else { continue };
            let value = line[colon + 1..].trim_ascii_start();
            let value = match &shared {
                Some(shared) => HeaderValue::from_maybe_shared(shared.slice_ref(value)),
                None => HeaderValue::from_bytes(value),
            };
            let (Some((name, is_unique)), Ok(mut value)) = (header_name(&line[..colon]), value) else {
                continue;
            };
            value.set_sensitive(is_unique && !keeps_unique);
            map.append(name, value);
        }
        map
    }
}

/// The name for HTTP/2, and whether each response has another value.
fn header_name(name: &[u8]) -> Option<(HeaderName, bool)> {
    match COMMON_NAMES.iter().find(|(common, _)| common.as_str().as_bytes().eq_ignore_ascii_case(name)) {
        Some(common) => Some(common.clone()),
        None => HeaderName::from_bytes(name).ok().map(|name| (name, false)),
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
        let map = block.to_header_map(false);
        assert_eq!((map["x-one"].as_bytes(), map["x-empty"].as_bytes()), (&b"a: b"[..], &b""[..]));
    }

    #[test]
    fn unique_values_stay_out_of_the_hpack_table() {
        let mut block = HeaderBlock::default();
        for name in ["X-Request-Id", "server-timing", "x-wecom-agent", "date", "x-other"] {
            block.append(name.as_bytes(), b"1");
        }
        let unique = |keeps_unique| -> Vec<_> {
            let map = block.to_header_map(keeps_unique);
            assert_eq!(map.len(), 5);
            map.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name.to_string()).collect()
        };
        assert_eq!(unique(false), ["x-request-id", "server-timing"]);
        assert!(unique(true).is_empty());
    }

    #[test]
    fn large_block_is_not_shared_by_its_values() {
        for length in [10, 2 * MAX_SHARED_BYTES] {
            let mut block = HeaderBlock::default();
            block.append(b"x-one", &vec![b'a'; length]);
            block.append(b"x-two", b"b");
            let map = block.to_header_map(false);
            assert_eq!((map["x-one"].len(), map["x-two"].as_bytes()), (length, &b"b"[..]));
            let [one, two] = ["x-one", "x-two"].map(|name| map[name].as_bytes().as_ptr().addr());
            assert_eq!(two == one + length + "\r\nx-two: ".len(), length <= MAX_SHARED_BYTES);
        }
    }
}
