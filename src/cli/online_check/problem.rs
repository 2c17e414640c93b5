//! Failures of an agent's check, with texts that contain no secret.

use std::net::IpAddr;

use crate::{
    display_text, format_text, text,
    text::Text,
    tokens::FetchError,
    upstream::UpstreamErrorKind,
    wecom::{
        errcode::{self, Explanation},
        response::caller_ip,
    },
};

/// The likely cause of a response that is not WeCom's, such as a gateway's HTML page.
const WRONG_UPSTREAM_HINT: Text = text!(
    "upstream.url or upstream.via may not point to WeCom",
    "upstream.url 或 upstream.via 可能没有指向企业微信"
);

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// WeCom refused the call.
    Refused {
        /// WeCom's errcode.
        errcode: i64,
        /// WeCom's errmsg.
        errmsg: String,
    },
    /// Connecting failed: DNS, TCP, egress proxy or TLS.
    Unreachable(Text),
    /// Connected, but no complete response arrived in time.
    NoResponse(Text),
    /// The response is not one of WeCom's API.
    InvalidResponse(Text),
    /// The call succeeds, but reports that the app is disabled.
    AppDisabled,
}

impl Problem {
    /// A stable identifier for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::NoResponse(_) => "no-answer",
            Self::InvalidResponse(_) => "senseless",
            Self::AppDisabled => "disabled",
        }
    }

    /// WeCom's errcode, if the response had one.
    pub fn errcode(&self) -> Option<i64> {
        match self {
            Self::Refused { errcode, .. } => Some(*errcode),
            _ => None,
        }
    }

    /// The meaning of the errcode and what to do, if it is a known one.
    pub fn explanation(&self) -> Option<&'static Explanation> {
        match self {
            Self::AppDisabled => errcode::explain(errcode::APP_DISABLED),
            other => errcode::explain(other.errcode()?),
        }
    }

    /// The source address of the call, as WeCom saw it.
    pub fn source_address(&self) -> Option<IpAddr> {
        match self {
            Self::Refused { errmsg, .. } => caller_ip(errmsg),
            _ => None,
        }
    }
}

display_text!(Problem);

impl Problem {
    /// What went wrong.
    pub fn text(&self) -> Text {
        match self {
            Self::Refused { errcode, errmsg } => {
                format_text!("errcode {errcode}: {errmsg}", "errcode {errcode}：{errmsg}")
            }
            Self::Unreachable(cause) => {
                format_text!("WeCom cannot be reached: {}", "无法连接企业微信：{}", cause)
            }
            Self::NoResponse(cause) => cause.clone(),
            Self::InvalidResponse(cause) => format_text!("{}; {}", "{}；{}", cause, WRONG_UPSTREAM_HINT),
            Self::AppDisabled => text!("WeCom reports the app as disabled", "企业微信报告该应用已停用"),
        }
    }
}

impl From<UpstreamErrorKind> for Problem {
    fn from(error: UpstreamErrorKind) -> Self {
        match error {
            UpstreamErrorKind::Unreachable(cause) => Self::Unreachable(cause.text().clone()),
            UpstreamErrorKind::InvalidHead(_) | UpstreamErrorKind::Framing(_) => {
                Self::InvalidResponse(error.text())
            }
            other => Self::NoResponse(other.text()),
        }
    }
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Errcode { errcode, errmsg } => Self::Refused { errcode, errmsg },
            FetchError::Upstream(error) => error.into(),
            FetchError::InvalidResponse { .. } => Self::InvalidResponse(error.text()),
            FetchError::TimedOut(_)
            | FetchError::OtherReplica(_)
            | FetchError::Throttled { .. }
            | FetchError::NoTicket
            | FetchError::SuiteToken(_)
            | FetchError::Cancelled => Self::NoResponse(error.text()),
        }
    }
}
