//! Compression and entity tags of responses, for slow lines.

use std::{io::Write, mem};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, response};
use sha2::{Digest, Sha256};

use super::{
    api::{Evaluation, Preconditions},
    error::ApiError,
    response::AdminBody,
};
use crate::{blocking, secret::hex};

/// Shorter bodies are sent as they are.
const MIN_GZIP_BYTES: usize = 1024;
/// A body of this size takes about a millisecond; longer ones are tagged and compressed on another thread.
const MAX_INLINE_BYTES: usize = 16 * 1024;
/// Bytes that are compressed between two yields of the CPU.
const MAX_PART_BYTES: usize = 4 * 1024;
/// Bytes of a hash in an entity tag.
const TAG_BYTES: usize = 16;

/// How a client takes its response.
pub(super) struct AcceptedEncoding {
    is_read: bool,
    /// Nothing may delay a health check.
    is_health_check: bool,
    gzip: bool,
    preconditions: Option<Preconditions>,
}

impl AcceptedEncoding {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self {
            is_read: matches!(*request.method(), Method::GET | Method::HEAD),
            is_health_check: matches!(request.uri().path(), "/healthz" | "/readyz"),
            gzip: accepts_gzip(request.headers()),
            preconditions: Preconditions::from_headers(request.headers()).ok(),
        }
    }

    /// Tags and compresses a response to a read. One with a tag of its own stays as it is.
    pub(super) async fn encode(self, response: Response<AdminBody>) -> Response<AdminBody> {
        let is_tagged = response.headers().contains_key(header::ETAG);
        if !self.is_read || self.is_health_check || response.status() != StatusCode::OK || is_tagged {
            return response;
        }
        let (mut head, body) = response.into_parts();
        let body = match body {
            AdminBody::Full(body) if body.len() > MAX_INLINE_BYTES => {
                let encoded = blocking::run_in_background(move || self.encode_full(head, body)).await;
                return encoded.unwrap_or_else(|panicked| ApiError::from(panicked).into_response());
            }
            AdminBody::Full(body) => return self.encode_full(head, body),
            AdminBody::Pages(pages) if self.gzip => {
                mark_gzip(&mut head.headers);
                AdminBody::Pages(pages.map(|pages| GzipPages { pages, encoder: Some(new_encoder()) }))
            }
            body => body,
        };
        Response::from_parts(head, body)
    }

    fn encode_full(self, mut head: response::Parts, body: Bytes) -> Response<AdminBody> {
        let tag = hex::encode(&Sha256::digest(&body)[..TAG_BYTES]);
        // A weak one: the compressed body has the same.
        if let Ok(value) = HeaderValue::try_from(format!("W/\"{tag}\"")) {
            head.headers.insert(header::ETAG, value);
        }
        let known = self.preconditions.map(|conditions| conditions.evaluate(Some(&tag), true));
        if known == Some(Evaluation::NotModified) {
            head.status = StatusCode::NOT_MODIFIED;
            return Response::from_parts(head, AdminBody::Full(Bytes::new()));
        }
        let is_compressed = self.gzip && body.len() >= MIN_GZIP_BYTES;
        let compressed = is_compressed.then(|| compress(&body)).flatten();
        if compressed.is_some() {
            mark_gzip(&mut head.headers);
        }
        Response::from_parts(head, AdminBody::Full(compressed.unwrap_or(body)))
    }
}

fn mark_gzip(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
}

/// Whether `Accept-Encoding` names gzip with a weight other than 0.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("gzip") && weight != Some(0.0)
    })
}

/// For pages, which are compressed as they are generated.
fn new_encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), Compression::fast())
}

fn compress(body: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    for part in blocking::in_slices_of(1, body.chunks(MAX_PART_BYTES)) {
        encoder.write_all(part).ok()?;
    }
    encoder.finish().ok().map(Bytes::from)
}

/// Pages compressed one by one.
struct GzipPages<I> {
    pages: I,
    /// `None` at the end.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I: Iterator<Item = Bytes>> Iterator for GzipPages<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            let encoder = self.encoder.as_mut()?;
            let Some(page) = self.pages.next() else {
                // Writing to a vector cannot fail.
                return self.encoder.take()?.finish().ok().map(Bytes::from);
            };
            for part in blocking::in_slices_of(1, page.chunks(MAX_PART_BYTES)) {
                encoder.write_all(part).ok()?;
            }
            let compressed = mem::take(encoder.get_mut());
            if !compressed.is_empty() {
                return Some(Bytes::from(compressed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn gzip_is_accepted_unless_its_weight_is_zero() {
        for (value, expected) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0.0, br", false),
            ("br", false),
            ("x-gzip", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(accepts_gzip(&headers), expected, "{value}");
        }
    }

    #[test]
    fn pages_are_one_stream_of_gzip() {
        let pages: Vec<_> =
            (0..50).map(|nth| Bytes::from(format!("page {nth} {}", "x".repeat(9000)))).collect();
        let pages_in_gzip = GzipPages { pages: pages.clone().into_iter(), encoder: Some(new_encoder()) };
        let (mut compressed, mut text) = (Vec::new(), Vec::new());
        pages_in_gzip.for_each(|page| compressed.extend_from_slice(&page));
        GzDecoder::new(&compressed[..]).read_to_end(&mut text).expect("gzip");
        assert!(text == pages.concat() && compressed.len() < text.len() / 10);
    }
}
