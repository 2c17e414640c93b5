//! A call of the proxy's own: a GET whose answer is small and taken whole.

use std::time::SystemTime;

use http::Method;
use tokio::time::Instant;

use super::{BodyLength, Flaw, Outgoing, Upstream};
use crate::{
    deadline::Deadline,
    fields::{Fields, Known},
    secret::Masked,
};

/// An answer taken whole. It has no `Debug`: its body may hold a token.
pub struct Whole {
    /// The HTTP status.
    pub status: u16,
    /// What it says by the upstream's clock, where it says so.
    pub date: Option<SystemTime>,
    /// Its body; `None` where that is longer than was asked for.
    pub body: Option<Vec<u8>>,
}

impl Upstream {
    /// Asks for `target`, path and query, in the proxy's own name, and takes at most so many bytes of body.
    pub async fn ask(&self, target: &Masked, most: usize) -> Result<Whole, Flaw> {
        let fields = Fields::of(&[
            ("accept", "application/json"),
            ("user-agent", concat!("wecom-proxy/", env!("CARGO_PKG_VERSION"))),
        ]);
        let outgoing = Outgoing {
            method: &Method::GET,
            target: &[target.expose()],
            fields: &fields,
            body: BodyLength::Absent,
            at: Instant::now(),
        };
        let mut answer =
            self.send(&outgoing, None, &mut Deadline::idle()).await.map_err(|failure| failure.flaw)?;
        let (status, date) = (answer.status.as_u16(), date(&answer.fields));
        let mut body = Vec::new();
        while let Some(piece) = answer.body.data().await {
            body.extend_from_slice(&piece.map_err(|failure| failure.flaw)?);
            if body.len() > most {
                return Ok(Whole { status, date, body: None });
            }
        }
        Ok(Whole { status, date, body: Some(body) })
    }
}

fn date(fields: &Fields) -> Option<SystemTime> {
    let text = std::str::from_utf8(fields.first(Known::Date)?).ok()?;
    httpdate::parse_http_date(text).ok()
}
