//! WeCom's quotas: each call is counted, and in the mode `shape` waits before it spends one.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use tokio::time::{Instant, sleep};

use super::{
    Proxy, RequestTemplate,
    error::{ErrorKind, ProxyError},
    message_body::{self, MessageBody},
    query,
    request_context::RequestContext,
    target::RequestTarget,
    wait::end_wait,
};
use crate::{
    config::QuotaMode,
    limits::quotas::{Call, QuotaDenied},
    telemetry::traces::Operation,
    tokens::ceil_seconds,
};

/// Calls with a robot's key, which has quotas.
const WEBHOOK_ROOT: &str = "/cgi-bin/webhook/";

impl Proxy {
    /// In the mode `shape`, counts the call that is to be made, and the members that its message goes to, after a wait if it
    /// would spend a quota. Error: it would still do so after `queue_timeout`, or WeCom blocks it.
    pub(super) async fn pass_quotas(
        &self,
        template: &RequestTemplate<'_>,
        has_token: bool,
        context: &mut RequestContext,
    ) -> Result<(), ProxyError> {
        let message = context.message_body.take().map(MessageBody::into_bytes);
        let touser = message.as_ref().and_then(|message| message_body::touser(message));
        let members = touser.as_deref().map(message_body::members).unwrap_or_default();
        let Err(first) = self.quotas.try_take(&counted_call(template.target, has_token, context), &members)
        else {
            return Ok(());
        };
        if first.is_held {
            return Err(quota_error(&first));
        }
        self.acquire_wait_permit(template, context)?;
        let started = Instant::now();
        context.begin(Operation::Queue, started);
        let mut denied = first;
        let result = loop {
            let left = self.upstream_settings(template).queue_timeout.saturating_sub(started.elapsed());
            if denied.is_held || left.is_zero() {
                break Err(quota_error(&denied));
            }
            sleep(denied.wait.min(left)).await;
            match self.quotas.try_take(&counted_call(template.target, has_token, context), &members) {
                Ok(()) => break Ok(()),
                Err(still) => denied = still,
            }
        };
        end_wait(template, context);
        context.cached_now = Instant::now();
        context.end_now(result.as_ref().err().map(|error| error.kind));
        result
    }

    /// In the mode `observe`, counts an attempt.
    pub(super) fn observe_attempt(&self, target: &RequestTarget, has_token: bool, context: &RequestContext) {
        if self.quotas.mode() == QuotaMode::Observe {
            self.quotas.count(&counted_call(target, has_token, context));
        }
    }

    /// In the mode `shape`, counts a second attempt, which waits for no quota: WeCom refused the first for its token.
    pub(super) fn count_second_attempt(&self, target: &RequestTarget, context: &RequestContext) {
        if self.quotas.mode() == QuotaMode::Shape {
            self.quotas.count_at_once(&counted_call(target, true, context));
        }
    }

    /// In the mode `shape`, holds the quota that WeCom says is spent.
    #[cold]
    pub(super) fn on_rate_limited(&self, target: &RequestTarget, has_token: bool, context: &RequestContext) {
        if self.quotas.mode() == QuotaMode::Shape {
            self.quotas.hold(&counted_call(target, has_token, context));
        }
    }
}

/// The call as it is counted. One without a token belongs to no agent.
#[inline]
pub(super) fn counted_call<'a>(
    target: &'a RequestTarget,
    has_token: bool,
    context: &'a RequestContext,
) -> Call<'a> {
    let path = target.normalized_path();
    if has_token {
        let agent = context.agent.as_ref().map(|agent| (&agent.name, &agent.corpid));
        return Call { agent, path, credential: None };
    }
    let key =
        path.starts_with(WEBHOOK_ROOT).then(|| query::param_value(target.query().unwrap_or_default(), "key"));
    let credential = key.flatten().map(|key| FixedState::default().hash_one(&**key));
    Call { agent: None, path, credential }
}

fn quota_error(QuotaDenied { wait, is_held, quota }: &QuotaDenied) -> ProxyError {
    let seconds = ceil_seconds(*wait).max(1);
    let reason = if *is_held { "WeCom blocks this call" } else { "WeCom's quota is nearly spent" };
    let message = format!("{reason} ({quota}); retry in {seconds} s, or make fewer calls");
    ErrorKind::RateLimited.error(message).with_retry_after(*wait)
}
