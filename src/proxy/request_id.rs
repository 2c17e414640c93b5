//! Request ids: the client's own if it is safe to log, else generated.

use std::cell::Cell;

use super::{presented_key::may_be_secret, request::Request};
use crate::{
    http1::headers::HeaderKind,
    secret::{hex, random_u64},
};

/// Request id in the log and in `X-Request-Id`.
pub(super) enum RequestId {
    /// The client's. Copied: a slice would keep the whole head in memory until the response has ended.
    FromClient(Box<[u8]>),
    /// Generated, in hexadecimal digits.
    Generated(HexDigits),
}

/// Aligned, so that the check for UTF-8 reads words.
#[repr(align(8))]
pub(super) struct HexDigits([u8; 24]);

impl RequestId {
    /// The id, which is visible ASCII.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::FromClient(text) => text,
            Self::Generated(HexDigits(text)) => text,
        }
    }
}

/// Generator of request ids: a random prefix per worker, and a counter.
pub(super) struct RequestIds {
    prefix: [u8; 16],
    next_number: Cell<u32>,
}

impl Default for RequestIds {
    fn default() -> Self {
        let mut prefix = [0; 16];
        hex::write_number(&mut prefix, random_u64());
        Self { prefix, next_number: Cell::new(0) }
    }
}

impl RequestIds {
    /// The client's id if it is valid and not a credential, else a generated one.
    pub(super) fn assign(&self, request: &Request) -> RequestId {
        let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
        let client_id = request.headers.first(HeaderKind::RequestId);
        let client_id =
            client_id.filter(|text| (1..=128).contains(&text.len()) && text.iter().all(is_allowed));
        match client_id.map(|text| RequestId::FromClient(text.into())) {
            Some(id) if !may_be_secret(request, id.as_str()) => id,
            _ => self.generate(),
        }
    }

    fn generate(&self) -> RequestId {
        let nth = self.next_number.get();
        self.next_number.set(nth.wrapping_add(1));
        let mut text = [0; 24];
        text[..16].copy_from_slice(&self.prefix);
        hex::write_number(&mut text[16..], u64::from(nth));
        RequestId::Generated(HexDigits(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_count_up_after_the_prefix() {
        let ids = RequestIds { prefix: *b"fedcba9876543210", next_number: Cell::new(0xff) };
        assert_eq!(ids.generate().as_str(), "fedcba9876543210000000ff");
        assert_eq!(ids.generate().as_str(), "fedcba987654321000000100");
    }
}
