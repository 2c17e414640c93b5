//! gettoken: the one call that carries a secret.

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

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
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

/// What is wrong where the proxy's own answer comes back to it.
const LOOP_REASON: &str = "it is a pass of wecom-proxy: upstream.url leads back to a proxy; on this machine the name must lead to WeCom";

/// The length of every secret of WeCom. Tokens are longer; the hints and addresses in its messages have no such word.
const SECRET_BYTES: usize = 43;
/// Most bytes of gettoken's answer.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// Beside connecting and waiting for the head, so long may an answer take for its few bytes of body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

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
    Upstream(UpstreamErrorKind),
    /// All of it together took too long.
    #[error("gettoken did not get through: no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The answer makes no sense.
    #[error("gettoken was answered with HTTP {status} and no usable token: {what}")]
    InvalidResponse {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Another replica tried, and it is too early for another try.
    #[error("{0} (asked by another replica)")]
    OtherReplica(String),
    /// Too many renewals were needed, or too many secrets were refused.
    #[error(
        "its renewal is held back: too many were needed lately, and WeCom bans the address of who asks too often"
    )]
    Throttled {
        /// When it may be tried.
        retry_at: Instant,
    },
    /// The renewal was cut off.
    #[error("the renewal was cut off")]
    Cancelled,
}

impl FetchError {
    /// Whether repeating it soon endangers the whole address.
    pub(super) fn risks_ban(&self) -> bool {
        matches!(self, Self::Refused { errcode, .. } if errcode::is_credential_or_rate_limit(*errcode))
    }

    /// Whether WeCom refused the credentials, and not for the number of calls.
    pub(super) fn is_credential_error(&self) -> bool {
        let is_frequency = matches!(self, Self::Refused { errcode, .. } if errcode::is_rate_limit(*errcode));
        self.risks_ban() && !is_frequency
    }

    /// What to do about it, where it was WeCom that refused.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused { errcode, .. } => errcode::hint(*errcode),
            _ => None,
        }
    }

    /// What callers may see of it: WeCom's own words, and no address, port, host or file, which `Display` may name.
    pub fn public_message(&self) -> Cow<'_, str> {
        match self {
            Self::Upstream(flaw) => format!("gettoken did not get through: {}", flaw.public_message()).into(),
            Self::OtherReplica(_) => "gettoken did not get through (asked by another replica)".into(),
            other => other.to_string().into(),
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

/// How long one call of the proxy's own may take.
pub fn call_timeout(upstream: &config::UpstreamConfig) -> Duration {
    upstream.connect_timeout + upstream.response_timeout + BODY_TIMEOUT
}

/// Asks the real upstream.
pub struct GettokenClient {
    upstream: Upstream,
    /// Longest that one call may take.
    timeout: Duration,
}

impl GettokenClient {
    /// Asks through `upstream`; gives up after `patience`.
    pub fn new(upstream: Upstream, timeout: Duration) -> Self {
        Self { upstream, timeout }
    }

    /// What it asks through.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// One gettoken, whatever it says, and the upstream's clock where its answer tells the time.
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
            Ok(Err(flaw)) => (None, Err(FetchError::Upstream(flaw))),
            Ok(Ok(whole)) => (whole.date, parse_response(credentials, whole)),
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

/// A message of WeCom's without words that may be secrets of other agents, or any secret encoded.
fn without_secrets(errmsg: &str) -> String {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "-_%+".contains(letter);
    let mut kept = String::with_capacity(errmsg.len());
    for word in errmsg.split_inclusive(|letter| !is_part(letter)) {
        let end = word.rfind(is_part).map_or(0, |last| last + 1);
        kept.push_str(if end < SECRET_BYTES { &word[..end] } else { "[masked]" });
        kept.push_str(&word[end..]);
    }
    kept
}

fn parse_response(
    Credentials { secret, .. }: &Credentials,
    whole: Fetched,
) -> Result<GettokenResponse, FetchError> {
    let status = whole.status;
    let senseless = |what| FetchError::InvalidResponse { status, what };
    let body = whole.body.ok_or_else(|| senseless("it is longer than 64 KiB"))?;
    let grant = parse_gettoken(&body).map_err(|error| match error {
        // WeCom is not known to echo a secret, but a gateway before it may say the URL back: it stops here.
        GettokenError::Refused { errcode, errmsg } => {
            let errmsg = errmsg.replace(secret.expose(), "[masked]");
            let errmsg = without_secrets(&errmsg.replace(percent_encoded(secret).expose(), "[masked]"));
            FetchError::Refused { errcode, errmsg }
        }
        GettokenError::NotJson => senseless("it is not JSON"),
        GettokenError::MissingToken => senseless("it holds no access_token"),
        GettokenError::InvalidToken => senseless("its access_token cannot stand in a URL"),
    })?;
    // Calls made with a pass would come back here again and again.
    match credential_scan::has_pass_prefix(grant.token.expose()) {
        true => Err(senseless(LOOP_REASON)),
        false => Ok(grant),
    }
}

/// Tokens from the real upstream, asked for on a thread of its own: an [`Asker`] stays on one.
pub struct Fetcher(mpsc::UnboundedSender<FetchJob>);

/// What is to be asked, and who waits for the answer.
type FetchJob = (Credentials, oneshot::Sender<Result<GettokenResponse, FetchError>>);

impl Fetcher {
    /// Starts the thread, which ends with this. It asks through an upstream of these settings, and gives up after `patience`.
    pub fn start(upstream: Arc<Settings>, patience: Duration) -> io::Result<Self> {
        let (sender, orders) = mpsc::unbounded_channel();
        thread::Builder::new().name("gettoken".to_owned()).spawn(
            move || match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => {
                    runtime.block_on(run_jobs(orders, GettokenClient::new(Upstream::new(upstream), patience)))
                }
                Err(error) => tracing::error!(%error, "no token can be asked for"),
            },
        )?;
        Ok(Self(sender))
    }
}

/// Asks what is ordered, one beside the other.
async fn run_jobs(mut orders: mpsc::UnboundedReceiver<FetchJob>, asker: GettokenClient) {
    let asker = Rc::new(asker);
    while let Some((credentials, mut answer)) = orders.recv().await {
        let asker = asker.clone();
        spawn_local(async move {
            tokio::select! {
                asked = asker.fetch(&credentials) => drop(answer.send(asked.1)),
                // Nobody waits for it any more.
                () = answer.closed() => {}
            }
        });
    }
}

impl FetchToken for Fetcher {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        let (sender, answer) = oneshot::channel();
        let sent = self.0.send((credentials.clone(), sender));
        Box::pin(async move {
            match sent {
                Ok(()) => answer.await.unwrap_or(Err(FetchError::Cancelled)),
                Err(_) => Err(FetchError::Cancelled),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_wecom_lose_whatever_may_be_a_secret() {
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
