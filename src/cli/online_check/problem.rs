//! Failures of an agent's check, with texts that contain no secret.

use std::{fmt, net::IpAddr};

use crate::{
    tokens::FetchError,
    upstream::UpstreamErrorKind,
    wecom::{
        errcode::{self, Explanation},
        response::caller_ip,
    },
};

/// The likely cause of a response that is not WeCom's, such as a gateway's HTML page.
const WRONG_UPSTREAM_HINT: &str = "upstream.url or upstream.via may not point to WeCom";

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
    Unreachable(String),
    /// Connected, but no complete response arrived in time.
    NoResponse(String),
    /// The response is not one of WeCom's API.
    InvalidResponse(String),
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

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errcode, errmsg } => write!(f, "errcode {errcode}: {errmsg}"),
            Self::Unreachable(cause) => write!(f, "WeCom cannot be reached: {cause}"),
            Self::NoResponse(cause) => f.write_str(cause),
            Self::InvalidResponse(cause) => write!(f, "{cause}; {WRONG_UPSTREAM_HINT}"),
            Self::AppDisabled => f.write_str("WeCom reports the app as disabled"),
        }
    }
}

impl From<UpstreamErrorKind> for Problem {
    fn from(error: UpstreamErrorKind) -> Self {
        match error {
            UpstreamErrorKind::Unreachable(cause) => Self::Unreachable(cause.to_string()),
            UpstreamErrorKind::InvalidHead(_) | UpstreamErrorKind::Framing(_) => {
                Self::InvalidResponse(error.to_string())
            }
            other => Self::NoResponse(other.to_string()),
        }
    }
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Errcode { errcode, errmsg } => Self::Refused { errcode, errmsg },
            FetchError::Upstream(error) => error.into(),
            FetchError::InvalidResponse { .. } => Self::InvalidResponse(error.to_string()),
            FetchError::TimedOut(_)
            | FetchError::OtherReplica(_)
            | FetchError::Throttled { .. }
            | FetchError::NoTicket
            | FetchError::SuiteToken(_)
            | FetchError::Cancelled => Self::NoResponse(error.to_string()),
        }
    }
}
