//! gettoken, the only call that carries a secret.

use std::{
    borrow::Cow,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
    task::spawn_local,
    time::{Instant, timeout},
};

use super::FetchToken;
use crate::{
    config,
    secret::{Masked, credential_scan},
    upstream::{Fetched, Settings, Upstream, UpstreamErrorKind},
    wecom::{
        errcode,
        response::{GettokenError, GettokenResponse, parse_gettoken},
    },
};

/// The reason if the access_token is a pass: gettoken's response came from a proxy.
const LOOP_REASON: &str = "access_token is a pass of wecom-proxy: upstream.url leads back to a proxy; on this machine its host name must resolve to WeCom";

/// Length of a WeCom secret. Tokens are longer; the hints and addresses in WeCom's messages contain no word this
/// long.
const SECRET_BYTES: usize = 43;
/// Largest gettoken response body.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// Longest time for a response body, beside the timeouts for the connection and the response head.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The credentials of a gettoken call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The company's corpid.
    pub corpid: String,
    /// The application's secret.
    pub secret: Masked,
}

impl Credentials {
    /// The name of a value of these credentials: with the empty `kind` the token in the store, otherwise a ticket of
    /// that kind, or the key of the backoff history. A keyed hash: it reveals nothing of
    /// the credentials, and a changed secret gives another name.
    pub fn store_name(&self, kind: &str) -> String {
        let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(self.secret.expose().as_bytes()) else {
            return String::new();
        };
        mac.update(b"wecom-proxy store v1");
        mac.update(kind.as_bytes());
        mac.update(b"\0");
        mac.update(self.corpid.as_bytes());
        mac.finalize().into_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Why a token could not be fetched. The texts contain neither the secret nor the URL.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// WeCom returned an errcode.
    #[error("gettoken failed with errcode {errcode}: {errmsg}")]
    Errcode {
        /// The errcode.
        errcode: i64,
        /// Its errmsg, with secrets masked.
        errmsg: String,
    },
    /// The request failed, or the response was truncated.
    #[error("gettoken request failed: {0}")]
    Upstream(UpstreamErrorKind),
    /// The whole call took longer than this.
    #[error("gettoken request failed: no response within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The response has no usable token.
    #[error("gettoken response with HTTP {status} has no usable token: {reason}")]
    InvalidResponse {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another replica's attempt failed, and its backoff has not ended.
    #[error("{0} (reported by another replica)")]
    OtherReplica(String),
    /// The budget for refreshes or for failed secrets is spent.
    #[error(
        "token refresh throttled: too many recent refreshes or failed secrets, and WeCom bans addresses for both"
    )]
    Throttled {
        /// When it may be retried.
        retry_at: Instant,
    },
    /// The refresh task ended without a result.
    #[error("token refresh cancelled")]
    Cancelled,
}

impl FetchError {
    /// Whether a retry soon risks a ban of the whole address.
    pub(super) fn risks_ban(&self) -> bool {
        matches!(self, Self::Errcode { errcode, .. } if errcode::is_credential_or_rate_limit(*errcode))
    }

    /// Whether WeCom refused the credentials, rather than the number of calls.
    pub(super) fn is_credential_error(&self) -> bool {
        let is_rate_limit = matches!(self, Self::Errcode { errcode, .. } if errcode::is_rate_limit(*errcode));
        self.risks_ban() && !is_rate_limit
    }

    /// What to do about it, if WeCom returned an errcode.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Errcode { errcode, .. } => errcode::hint(*errcode),
            _ => None,
        }
    }

    /// The text that callers may see: WeCom's errmsg, and no address, port, host or file, which `Display` may
    /// contain.
    pub fn public_message(&self) -> Cow<'_, str> {
        match self {
            Self::Upstream(error) => format!("gettoken request failed: {}", error.public_message()).into(),
            Self::OtherReplica(_) => "gettoken request failed (reported by another replica)".into(),
            other => other.to_string().into(),
        }
    }

    /// WeCom's errcode; -1 if there is none.
    pub fn errcode(&self) -> i64 {
        match self {
            Self::Errcode { errcode, .. } => *errcode,
            _ => errcode::BUSY,
        }
    }
}

/// Timeout of one of the proxy's own calls.
pub fn call_timeout(upstream: &config::UpstreamConfig) -> Duration {
    upstream.connect_timeout + upstream.response_timeout + BODY_TIMEOUT
}

/// Calls gettoken at the upstream.
pub struct GettokenClient {
    upstream: Upstream,
    /// Timeout of a whole call.
    timeout: Duration,
}

impl GettokenClient {
    /// Calls through `upstream`, each call with this timeout.
    pub fn new(upstream: Upstream, timeout: Duration) -> Self {
        Self { upstream, timeout }
    }

    /// The upstream of its calls.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Calls gettoken once. Also returns the upstream's clock, from the response's Date.
    pub async fn fetch(
        &self,
        credentials: &Credentials,
    ) -> (Option<SystemTime>, Result<GettokenResponse, FetchError>) {
        match timeout(
            self.timeout,
            self.upstream.fetch_buffered(&request_target(credentials), MAX_RESPONSE_BYTES),
        )
        .await
        {
            Err(_) => (None, Err(FetchError::TimedOut(self.timeout))),
            Ok(Err(error)) => (None, Err(FetchError::Upstream(error))),
            Ok(Ok(fetched)) => (fetched.date, parse_response(credentials, fetched)),
        }
    }
}

fn request_target(Credentials { corpid, secret }: &Credentials) -> Masked {
    let corpid = utf8_percent_encode(corpid, NON_ALPHANUMERIC);
    Masked::new(format!("/cgi-bin/gettoken?corpid={corpid}&corpsecret={}", percent_encoded(secret).expose()))
}

fn percent_encoded(secret: &Masked) -> Masked {
    Masked::new(utf8_percent_encode(secret.expose(), NON_ALPHANUMERIC).to_string())
}

/// Masks every word of WeCom's message that is long enough to be a secret, encoded or not, of any agent.
fn without_secrets(errmsg: &str) -> String {
    let is_word_char = |char: char| char.is_ascii_alphanumeric() || "-_%+".contains(char);
    let mut masked = String::with_capacity(errmsg.len());
    for part in errmsg.split_inclusive(|char| !is_word_char(char)) {
        let end = part.rfind(is_word_char).map_or(0, |last| last + 1);
        masked.push_str(if end < SECRET_BYTES { &part[..end] } else { "[masked]" });
        masked.push_str(&part[end..]);
    }
    masked
}

fn parse_response(
    Credentials { secret, .. }: &Credentials,
    fetched: Fetched,
) -> Result<GettokenResponse, FetchError> {
    let status = fetched.status;
    let invalid = |reason| FetchError::InvalidResponse { status, reason };
    let body = fetched.body.ok_or_else(|| invalid("body exceeds 64 KiB"))?;
    let response = parse_gettoken(&body).map_err(|error| match error {
        // WeCom is not known to echo a secret, but a gateway in front of it may echo the URL: secrets are masked
        // here.
        GettokenError::Refused { errcode, errmsg } => {
            let errmsg = errmsg.replace(secret.expose(), "[masked]");
            let errmsg = without_secrets(&errmsg.replace(percent_encoded(secret).expose(), "[masked]"));
            FetchError::Errcode { errcode, errmsg }
        }
        GettokenError::NotJson => invalid("not JSON"),
        GettokenError::MissingToken => invalid("no access_token"),
        GettokenError::InvalidToken => invalid("access_token is not 1 to 512 characters allowed in a URL"),
    })?;
    // A pass as a token would make this proxy call itself without end.
    match credential_scan::has_pass_prefix(response.token.expose()) {
        true => Err(invalid(LOOP_REASON)),
        false => Ok(response),
    }
}

/// Fetches tokens on a thread of its own, because a [`GettokenClient`] stays on one thread.
pub struct GettokenThread(mpsc::UnboundedSender<FetchJob>);

/// The credentials, and where the response is sent.
type FetchJob = (Credentials, oneshot::Sender<Result<GettokenResponse, FetchError>>);

impl GettokenThread {
    /// Starts the thread, which ends when the `GettokenThread` is dropped. Each call has this timeout.
    pub fn start(upstream: Arc<Settings>, timeout: Duration) -> io::Result<Self> {
        let (sender, jobs) = mpsc::unbounded_channel();
        thread::Builder::new().name("gettoken".to_owned()).spawn(
            move || match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => {
                    runtime.block_on(run_jobs(jobs, GettokenClient::new(Upstream::new(upstream), timeout)))
                }
                Err(error) => {
                    tracing::error!(%error, "gettoken thread failed to start, no token can be fetched")
                }
            },
        )?;
        Ok(Self(sender))
    }
}

/// Runs jobs concurrently.
async fn run_jobs(mut jobs: mpsc::UnboundedReceiver<FetchJob>, client: GettokenClient) {
    let client = Rc::new(client);
    while let Some((credentials, mut response)) = jobs.recv().await {
        let client = client.clone();
        spawn_local(async move {
            tokio::select! {
                fetched = client.fetch(&credentials) => drop(response.send(fetched.1)),
                // The receiver is gone: cancel the call.
                () = response.closed() => {}
            }
        });
    }
}

impl FetchToken for GettokenThread {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        let (sender, response) = oneshot::channel();
        let sent = self.0.send((credentials.clone(), sender));
        Box::pin(async move {
            match sent {
                Ok(()) => response.await.unwrap_or(Err(FetchError::Cancelled)),
                Err(_) => Err(FetchError::Cancelled),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errmsg_words_as_long_as_a_secret_are_masked() {
        let secret = "Kq3-5vXz_7bN1mPqRsTuVwXyZaBcDeFgHiJkLmNoPqR";
        assert_eq!(secret.len(), SECRET_BYTES);
        let message = "invalid credential, hint: [1523937387_46_b2dc8f6d4b9cc1a9e0a0d0], from ip: 1.2.3.4, more info at \
                       https://open.work.weixin.qq.com/devtool/query?e=40001";
        assert_eq!(without_secrets(message), message);
        let encoded = utf8_percent_encode(secret, NON_ALPHANUMERIC);
        for shown in [secret.to_owned(), encoded.to_string(), "T".repeat(512)] {
            let masked = without_secrets(&format!("bad corpsecret={shown}, 好 {shown}"));
            assert_eq!(masked, "bad corpsecret=[masked], 好 [masked]");
        }
        assert_eq!(without_secrets(""), "");
    }
}
