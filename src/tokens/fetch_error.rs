//! Why a token could not be fetched, for callers, for operators and for the backoff.

use std::{borrow::Cow, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    display_text, format_text, text,
    text::Text,
    upstream::UpstreamErrorKind,
    wecom::{errcode, provider_api},
};

/// Why a token could not be fetched. The texts contain neither the secret nor the URL.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// WeCom returned an errcode.
    Errcode {
        /// The errcode.
        errcode: i64,
        /// Its errmsg, with secrets masked.
        errmsg: String,
    },
    /// The request failed, or the response was truncated.
    Upstream(UpstreamErrorKind),
    /// The whole call took longer than this.
    TimedOut(Duration),
    /// The response has no usable token.
    InvalidResponse {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        reason: &'static Text,
    },
    /// Another replica's attempt failed, and its backoff has not ended.
    OtherReplica(String),
    /// The budget for refreshes or for failed secrets is spent.
    Throttled {
        /// When it may be retried.
        retry_at: Instant,
    },
    /// WeCom has pushed no suite_ticket yet.
    NoTicket,
    /// The token of the suite is not available.
    SuiteToken(Arc<FetchError>),
    /// The refresh task ended without a result.
    Cancelled,
}

display_text!(FetchError);

impl FetchError {
    /// The error for operators, which may contain addresses.
    pub fn text(&self) -> Text {
        match self {
            Self::Errcode { errcode, errmsg } => format_text!(
                "gettoken failed with errcode {errcode}: {errmsg}",
                "gettoken 失败，errcode {errcode}：{errmsg}"
            ),
            Self::Upstream(error) => {
                format_text!("gettoken request failed: {}", "gettoken 请求失败：{}", error.text())
            }
            Self::TimedOut(limit) => format_text!(
                "gettoken request failed: no response within {} s",
                "gettoken 请求失败：{} 秒内没有响应",
                limit.as_secs()
            ),
            Self::InvalidResponse { status, reason } => format_text!(
                "gettoken response with HTTP {status} has no usable token: {}",
                "gettoken 的响应（HTTP {status}）中没有可用的 token：{}",
                reason
            ),
            Self::OtherReplica(error) => {
                format_text!("{error} (reported by another replica)", "{error}（由另一个副本报告）")
            }
            Self::Throttled { .. } => text!(
                "token refresh throttled: too many recent refreshes or failed secrets, and WeCom bans addresses for both",
                "token 续期被限制：最近续期或错误的 secret 太多，企业微信会因此封禁地址"
            ),
            Self::NoTicket => text!(
                "no suite_ticket has arrived yet: WeCom pushes one every 10 minutes to the suite's command URL",
                "还没有收到 suite_ticket：企业微信每 10 分钟向套件的指令回调 URL 推送一次"
            ),
            Self::SuiteToken(cause) => format_text!(
                "the suite's token is not available: {}",
                "套件的 token 不可用：{}",
                cause.text()
            ),
            Self::Cancelled => text!("token refresh cancelled", "token 续期已取消"),
        }
    }

    /// Whether a retry soon risks a ban of the whole address.
    pub(super) fn risks_ban(&self) -> bool {
        matches!(self, Self::Errcode { errcode, .. }
            if errcode::is_credential_or_rate_limit(*errcode) || provider_api::is_suite_credential_error(*errcode))
    }

    /// Whether WeCom refused the credentials, rather than the number of calls.
    pub(super) fn is_credential_error(&self) -> bool {
        let is_rate_limit = matches!(self, Self::Errcode { errcode, .. } if errcode::is_rate_limit(*errcode));
        self.risks_ban() && !is_rate_limit
    }

    /// Whether it is the failure of something that this token waits for: the next attempt need not wait.
    pub(super) fn is_prerequisite(&self) -> bool {
        matches!(self, Self::NoTicket | Self::SuiteToken(_))
    }

    /// Whether the suite_ticket is wrong or too old: an attempt a minute is enough until the next push.
    pub(super) fn is_ticket_error(&self) -> bool {
        matches!(self, Self::Errcode { errcode, .. } if provider_api::is_ticket_error(*errcode))
    }

    /// Whether the corp withdrew its authorisation, so that another attempt with this permanent code is useless.
    pub fn is_authorization_gone(&self) -> bool {
        matches!(self, Self::Errcode { errcode, .. } if provider_api::is_authorization_gone(*errcode))
    }

    /// Whether a call was made, and failed.
    pub(super) fn is_of_call(&self) -> bool {
        matches!(
            self,
            Self::Errcode { .. } | Self::Upstream(_) | Self::TimedOut(_) | Self::InvalidResponse { .. }
        )
    }

    /// The `error.type` of its span.
    pub(super) fn error_type(&self) -> Cow<'static, str> {
        match self {
            Self::Errcode { errcode, .. } => errcode.to_string().into(),
            Self::TimedOut(_) => "upstream-timeout".into(),
            Self::InvalidResponse { .. } => "invalid-response".into(),
            _ => "upstream-broke".into(),
        }
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
            Self::SuiteToken(failure) => {
                format!("the suite's token is not available: {}", failure.public_message()).into()
            }
            Self::OtherReplica(_) => "gettoken request failed (reported by another replica)".into(),
            other => other.to_string().into(),
        }
    }

    /// WeCom's errcode; -1 if there is none.
    pub fn errcode(&self) -> i64 {
        match self {
            Self::Errcode { errcode, .. } => *errcode,
            Self::SuiteToken(failure) => failure.errcode(),
            _ => errcode::BUSY,
        }
    }
}
