//! What WeCom pushes to a suite's command URL: tickets, and corps that authorise, are reset or cancel. It wants an answer
//! within a second, so an auth_code is made durable first and redeemed afterwards.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{
    AuthorizeError, RedeemVersion, Redeemed, Suites,
    records::{AuthCodeRecord, encode, hash_name},
    suite_agent,
};
use crate::{
    directory::{Agent, Suite},
    secret::{Masked, random_fraction, random_u64},
    state::{Collection, Write, WriteError},
    time::{backoff::BackoffRange, clock::unix_now},
    tokens::FetchError,
    wecom::provider_api,
};

/// How long an auth_code is valid.
const AUTH_CODE_TTL: Duration = Duration::from_secs(10 * 60);
/// The delays between attempts to redeem an auth_code.
const BACKOFF_RANGE: BackoffRange =
    BackoffRange { min: Duration::from_secs(1), max: Duration::from_secs(30) };
/// How long the browser of an administrator waits.
const REDIRECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Auth_codes that are read from the state at the start.
const MAX_RESUMED: usize = 10_000;

/// A message at the command URL of a suite, as far as it concerns the suite.
pub struct SuiteCommand<'a> {
    /// InfoType.
    pub info_type: &'a str,
    /// SuiteTicket.
    pub ticket: Option<&'a str>,
    /// AuthCode.
    pub auth_code: Option<&'a str>,
    /// AuthCorpId.
    pub corpid: Option<&'a str>,
}

impl Suites {
    /// Takes a command. On success its effect is durable.
    pub async fn take_command(
        self: &Arc<Self>,
        suite_agent: &Arc<Agent>,
        command: &SuiteCommand<'_>,
    ) -> Result<(), WriteError> {
        let Some(suite) = suite_agent.suite() else { return Ok(()) };
        match (command.info_type, command.ticket, command.auth_code, command.corpid) {
            ("suite_ticket", Some(ticket), ..) => self.receive_ticket(suite, Masked::new(ticket)).await,
            ("create_auth" | "reset_permanent_code", _, Some(code), _) => {
                let auth_code = Masked::new(code);
                self.keep_auth_code(suite, &auth_code).await?;
                self.spawn_redeem(suite_agent.clone(), auth_code, unix_now() + AUTH_CODE_TTL.as_secs());
                Ok(())
            }
            ("cancel_auth", _, _, Some(corpid)) => self.cancel(suite, corpid).await,
            _ => Ok(()),
        }
    }

    /// Counts an installation from which this address comes back; the error says how long it is to wait.
    pub fn admit_redirect(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        self.redirects.try_acquire(address, Instant::now())
    }

    /// Redeems the auth_code with which an administrator's browser comes back. It is durable first, and redeemed even if
    /// the browser does not wait.
    pub async fn redeem_redirect(
        self: &Arc<Self>,
        suite_agent: &Arc<Agent>,
        auth_code: &Masked,
    ) -> Result<Arc<Redeemed>, AuthorizeError> {
        if let Some(suite) = suite_agent.suite() {
            self.keep_auth_code(suite, auth_code).await?;
        }
        self.spawn_redeem(suite_agent.clone(), auth_code.clone(), unix_now() + AUTH_CODE_TTL.as_secs());
        let redeemed = self.authorize(suite_agent, auth_code, RedeemVersion::V2);
        timeout(REDIRECT_TIMEOUT, redeemed)
            .await
            .unwrap_or(Err(AuthorizeError::Fetch(FetchError::TimedOut(REDIRECT_TIMEOUT))))
    }

    /// A text for programs that want a suite_ticket; it is worth nothing at WeCom.
    pub fn stand_in_ticket() -> String {
        format!("wpt1-{:016x}{:016x}", random_u64(), random_u64())
    }

    async fn keep_auth_code(&self, suite: &Suite, auth_code: &Masked) -> Result<(), WriteError> {
        let expires_at = unix_now() + AUTH_CODE_TTL.as_secs();
        let suite_id = suite.config.suite_id.clone();
        let record = AuthCodeRecord { suite_id, auth_code: auth_code.clone(), expires_at };
        let write = Write::put(Collection::AuthCodes, hash_name(auth_code.expose()), encode(&record));
        self.write(vec![write.expires_at(expires_at)]).await.map(drop)
    }

    fn spawn_redeem(self: &Arc<Self>, suite_agent: Arc<Agent>, auth_code: Masked, expires_at: u64) {
        let Some(context) = self.context.get() else { return };
        let suites = self.clone();
        context.runtime.spawn(async move { suites.redeem_until(&suite_agent, &auth_code, expires_at).await });
    }

    /// Redeems an auth_code, with retries until it is worthless.
    async fn redeem_until(self: &Arc<Self>, suite_agent: &Arc<Agent>, auth_code: &Masked, expires_at: u64) {
        for earlier in 0.. {
            let error = match self.authorize(suite_agent, auth_code, RedeemVersion::V2).await {
                Ok(_) => break,
                Err(error) => error,
            };
            // The code is wrong, or was used by another program.
            let is_final = match &error {
                AuthorizeError::Fetch(FetchError::Errcode { errcode, .. }) => {
                    provider_api::is_auth_code_error(*errcode)
                }
                AuthorizeError::Invalid(_) => true,
                _ => false,
            };
            tracing::warn!(agent = &*suite_agent.name, %error, "auth_code not redeemed");
            if is_final || unix_now() >= expires_at {
                break;
            }
            sleep(BACKOFF_RANGE.jittered(earlier, random_fraction())).await;
        }
        let _ = self.write(vec![Write::delete(Collection::AuthCodes, hash_name(auth_code.expose()))]).await;
    }

    /// Goes on with the auth_codes that the process before did not redeem.
    pub(super) fn resume_auth_codes(self: &Arc<Self>) {
        let Some(context) = self.context.get() else { return };
        let suites = self.clone();
        context.runtime.spawn(async move {
            let Some(context) = suites.context.get() else { return };
            let found = context.state.scan(Collection::AuthCodes, "", "", MAX_RESUMED).await;
            for record in found.unwrap_or_default() {
                let value = record.value.as_ref();
                let parsed = value.and_then(|value| serde_json::from_slice::<AuthCodeRecord>(value).ok());
                let Some(AuthCodeRecord { suite_id, auth_code, expires_at }) = parsed else { continue };
                if let Some(agent) = suite_agent(&context.directory.load(), &suite_id).cloned() {
                    suites.spawn_redeem(agent, auth_code, expires_at);
                }
            }
        });
    }
}
