//! The headers that a response starts with: the upstream's without hop-by-hop headers and token, or the proxy's own.

use bytes::BufMut;
use memchr::memmem;

use crate::{
    http1::headers::{HeaderBlock, Headers},
    tokens::Token,
};

/// Headers of a response whose body the proxy generates.
pub(super) fn local_headers(content_type: &str) -> HeaderBlock {
    let mut headers = HeaderBlock::default();
    headers.append(b"content-type", content_type.as_bytes());
    headers
}

/// The upstream's end-to-end headers without the token: a redirect may contain the request's URL.
pub(super) fn headers_for_client(headers: &Headers, token: Option<&Token>) -> HeaderBlock {
    let mut for_client = HeaderBlock::default();
    let token = token.map(|token| token.value.expose().as_bytes());
    if let Some(encoded) = headers.encoded_for_client(token.map_or(usize::MAX, <[u8]>::len)) {
        for_client.buffer_mut().put_slice(encoded);
        return for_client;
    }
    for header in headers.forwarded_to_client() {
        match token {
            Some(token) if header.value.len() >= token.len() => {
                for_client.append(header.name, &remove_token(token, header.value));
            }
            _ => for_client.append(header.name, header.value),
        }
    }
    for_client
}

/// Removes every occurrence of `token`.
fn remove_token(token: &[u8], text: &[u8]) -> Vec<u8> {
    let (mut result, mut rest) = (Vec::new(), text);
    while let Some(position) = memmem::find(rest, token) {
        result.extend_from_slice(&rest[..position]);
        rest = &rest[position + token.len()..];
    }
    result.extend_from_slice(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remove_token_removes_every_occurrence() {
        assert_eq!(remove_token(b"T0k", b"/a?access_token=T0k&b=T0k"), b"/a?access_token=&b=");
        assert_eq!(remove_token(b"T0k", b"T0"), b"T0");
    }
}
