//! Small buffered GET requests of the proxy itself.

use std::time::SystemTime;

use http::Method;
use tokio::time::Instant;

use super::{BodyLength, Upstream, UpstreamErrorKind, UpstreamRequest};
use crate::{
    http1::headers::{HeaderKind, Headers},
    secret::Masked,
    time::deadline::Deadline,
};

/// A buffered response. No `Debug`: the body may contain a token.
pub struct Fetched {
    /// HTTP status.
    pub status: u16,
    /// The `Date` header, if present and valid.
    pub date: Option<SystemTime>,
    /// The body; `None` if it exceeds the requested maximum.
    pub body: Option<Vec<u8>>,
}

impl Upstream {
    /// Sends GET `target` (path and query) without client headers and buffers at most `max_bytes` of the body.
    /// Errors: [`UpstreamErrorKind`].
    pub async fn fetch_buffered(
        &self,
        target: &Masked,
        max_bytes: usize,
    ) -> Result<Fetched, UpstreamErrorKind> {
        let headers = Headers::from_pairs(&[
            ("accept", "application/json"),
            ("user-agent", concat!("wecom-proxy/", env!("CARGO_PKG_VERSION"))),
        ]);
        let request = UpstreamRequest {
            method: &Method::GET,
            target: &[target.expose()],
            headers: &headers,
            body_length: BodyLength::Absent,
            now: Instant::now(),
        };
        let mut response =
            self.send(&request, None, &mut Deadline::unset()).await.map_err(|error| error.kind)?;
        let (status, date) = (response.status.as_u16(), parse_date(&response.headers));
        let mut body = Vec::new();
        while let Some(chunk) = response.body.data().await {
            body.extend_from_slice(&chunk.map_err(|error| error.kind)?);
            if body.len() > max_bytes {
                return Ok(Fetched { status, date, body: None });
            }
        }
        Ok(Fetched { status, date, body: Some(body) })
    }
}

fn parse_date(headers: &Headers) -> Option<SystemTime> {
    let text = std::str::from_utf8(headers.first(HeaderKind::Date)?).ok()?;
    httpdate::parse_http_date(text).ok()
}
