//! Small buffered requests of the proxy itself.

use std::time::{Duration, SystemTime};

use http::Method;
use tokio::time::Instant;

use super::{BodyLength, Upstream, UpstreamErrorKind, UpstreamRequest};
use crate::{
    http1::headers::{HeaderKind, Headers},
    request_body::{BodyLimits, ReplayBody, RequestBody},
    secret::{Masked, wipe_on_drop},
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
    /// Sends GET `target` (path and query) for a corp, without client headers and buffers at most `max_bytes` of the body.
    /// Errors: [`UpstreamErrorKind`].
    pub async fn fetch_buffered(
        &self,
        corpid: &str,
        target: &Masked,
        max_bytes: usize,
    ) -> Result<Fetched, UpstreamErrorKind> {
        self.call_buffered(corpid, target, None, max_bytes).await
    }

    /// The same as a POST of a JSON text, if there is one.
    pub async fn call_buffered(
        &self,
        corpid: &str,
        target: &Masked,
        json: Option<&Masked>,
        max_bytes: usize,
    ) -> Result<Fetched, UpstreamErrorKind> {
        let headers = Headers::from_pairs(
            &[
                ("accept", "application/json"),
                ("user-agent", concat!("wecom-proxy/", env!("CARGO_PKG_VERSION"))),
                ("content-type", "application/json"),
            ][..2 + usize::from(json.is_some())],
        );
        let body = json.map(|json| wipe_on_drop(json.expose().as_bytes().to_vec()));
        let body_length =
            body.as_ref().map_or(BodyLength::Absent, |body| BodyLength::Known(body.len() as u64));
        let limits = BodyLimits { max_bytes: u64::MAX, idle_timeout: Duration::MAX };
        // A complete body needs no budget, so this cannot fail.
        let body = body.and_then(|body| ReplayBody::new(RequestBody::Complete(body), limits, None).ok()?);
        let request = UpstreamRequest {
            method: if json.is_some() { &Method::POST } else { &Method::GET },
            corpid,
            target: &[target.expose()],
            headers: &headers,
            body_length,
            now: Instant::now(),
            maybe_sent: None,
        };
        let mut response =
            self.send(&request, body.as_ref(), &mut Deadline::unset()).await.map_err(|error| error.kind)?;
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
