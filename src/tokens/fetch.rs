//! gettoken: the one call that carries a secret.

use std::{future::Future, pin::Pin, time::Duration};

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use super::Source;
use crate::{
    fields::Fields,
    passes,
    secret::Masked,
    upstream::{BodyLength, Flaw, Outgoing, Upstream},
    wecom::{
        errcode,
        reply::{Grant, GrantError, parse_grant},
    },
};

/// What is wrong where the proxy's own answer comes back to it.
const LOOP: &str = "it is a pass of wecom-proxy: upstream.url leads back to a proxy; on this machine the name must lead to WeCom";
/// Most bytes of gettoken's answer.
const MAX_ANSWER: usize = 64 * 1024;

/// What a token is bought with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The company's id.
    pub corpid: String,
    /// The application's secret.
    pub secret: Masked,
}

/// Why no token came. The texts hold neither the secret nor the URL.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// WeCom refused.
    #[error("gettoken was refused with errcode {errcode}: {errmsg}")]
    Refused {
        /// WeCom's code.
        errcode: i64,
        /// WeCom's words.
        errmsg: String,
    },
    /// WeCom could not be asked, or its answer broke off.
    #[error("gettoken did not get through: {0}")]
    Upstream(String),
    /// The answer makes no sense.
    #[error("gettoken was answered with HTTP {status} and no usable token: {what}")]
    Senseless {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Another replica tried, and it is too early for another try.
    #[error("{0} (asked by another replica)")]
    Elsewhere(String),
    /// This proxy has asked as often as it may.
    #[error(
        "this proxy has called gettoken 300 times in the last hour; it waits, lest WeCom bans its address"
    )]
    Budget,
    /// The renewal was cut off.
    #[error("the renewal was cut off")]
    Stopped,
}

impl FetchError {
    /// Whether repeating it soon endangers the whole address.
    pub(super) fn is_dangerous(&self) -> bool {
        matches!(self, Self::Refused { errcode, .. } if errcode::is_credential_or_frequency(*errcode))
    }

    /// What to do about it, where it was WeCom that refused.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused { errcode, .. } => errcode::hint(*errcode),
            _ => None,
        }
    }

    /// WeCom's errcode, -1 where WeCom said none.
    pub fn errcode(&self) -> i64 {
        match self {
            Self::Refused { errcode, .. } => *errcode,
            _ => errcode::BUSY,
        }
    }
}

/// Tokens from the real upstream.
pub struct Gettoken {
    upstream: Upstream,
    /// Longest that one call may take.
    patience: Duration,
}

impl Gettoken {
    /// Asks through `upstream`; gives up after `patience`.
    pub fn new(upstream: Upstream, patience: Duration) -> Self {
        Self { upstream, patience }
    }

    async fn ask(&self, credentials: &Credentials) -> Result<Grant, FetchError> {
        let secret = credentials.secret.expose();
        let encoded = Masked::new(utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string());
        let corpid = utf8_percent_encode(&credentials.corpid, NON_ALPHANUMERIC);
        let target =
            Masked::new(format!("/cgi-bin/gettoken?corpid={corpid}&corpsecret={}", encoded.expose()));
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
        let upstream = |flaw: Flaw| FetchError::Upstream(flaw.to_string());
        let mut answer =
            self.upstream.send(&outgoing, None).await.map_err(|failure| upstream(failure.flaw))?;
        let status = answer.status.as_u16();
        let mut body = Vec::new();
        while let Some(piece) = answer.body.data().await {
            body.extend_from_slice(&piece.map_err(|failure| upstream(failure.flaw))?);
            if body.len() > MAX_ANSWER {
                return Err(FetchError::Senseless { status, what: "it is longer than 64 KiB" });
            }
        }
        let grant = parse_grant(&body).map_err(|error| match error {
            // WeCom is not known to echo a secret, but a gateway before it may say the URL back: it stops here.
            GrantError::Refused { errcode, errmsg } => {
                let errmsg = errmsg.replace(secret, "[masked]").replace(encoded.expose(), "[masked]");
                FetchError::Refused { errcode, errmsg }
            }
            GrantError::NotJson => FetchError::Senseless { status, what: "it is not JSON" },
            GrantError::NoToken => FetchError::Senseless { status, what: "it holds no access_token" },
            GrantError::BadToken => {
                FetchError::Senseless { status, what: "its access_token cannot stand in a URL" }
            }
        })?;
        // Calls made with a pass would come back here again and again.
        if passes::is_marked(grant.token.expose()) {
            return Err(FetchError::Senseless { status, what: LOOP });
        }
        Ok(grant)
    }
}

impl Source for Gettoken {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let late = |_| FetchError::Upstream(format!("no answer within {} s", self.patience.as_secs()));
            tokio::time::timeout(self.patience, self.ask(credentials)).await.map_err(late)?
        })
    }
}
