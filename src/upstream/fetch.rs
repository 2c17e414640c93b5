//! A call of the proxy's own: a GET whose answer is small and taken whole.

use std::time::SystemTime;

use http::Method;
use tokio::time::Instant;

use super::{BodyLength, Upstream, UpstreamErrorKind, UpstreamRequest};
use crate::{
    http1::headers::{Headers, KnownHeader},
    secret::Masked,
    time::deadline::Deadline,
};

/// An answer taken whole. It has no `Debug`: its body may hold a token.
pub struct Fetched {
    /// The HTTP status.
    pub status: u16,
    /// What it says by the upstream's clock, where it says so.
    pub date: Option<SystemTime>,
    /// Its body; `None` where that is longer than was asked for.
    pub body: Option<Vec<u8>>,
}

impl Upstream {
    /// Asks for `target`, path and query, in the proxy's own name, and takes at most so many bytes of body.
    pub async fn fetch_buffered(&self, target: &Masked, most: usize) -> Result<Fetched, UpstreamErrorKind> {
        let fields = Headers::from_pairs(&[
            ("accept", "application/json"),
            ("user-agent", concat!("wecom-proxy/", env!("CARGO_PKG_VERSION"))),
        ]);
        let outgoing = UpstreamRequest {
            method: &Method::GET,
            target: &[target.expose()],
            headers: &fields,
            body_length: BodyLength::Absent,
            now: Instant::now(),
        };
        let mut answer =
            self.send(&outgoing, None, &mut Deadline::unset()).await.map_err(|failure| failure.kind)?;
        let (status, date) = (answer.status.as_u16(), parse_date(&answer.headers));
        let mut body = Vec::new();
        while let Some(piece) = answer.body.data().await {
            body.extend_from_slice(&piece.map_err(|failure| failure.kind)?);
            if body.len() > most {
                return Ok(Fetched { status, date, body: None });
            }
        }
        Ok(Fetched { status, date, body: Some(body) })
    }
}

fn parse_date(fields: &Headers) -> Option<SystemTime> {
    let text = std::str::from_utf8(fields.first(KnownHeader::Date)?).ok()?;
    httpdate::parse_http_date(text).ok()
}
